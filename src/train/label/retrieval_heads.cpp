// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/error.hpp>
#include <flashmemory/train/label/retrieval_heads.hpp>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

// Adds every head's largest mass on one chunk at every recorded token.
void add_document(const document& doc, const window_options& options, std::int64_t heads,
                  std::vector<double>& sums) {
  const std::int64_t tokens_per_chunk = std::int64_t{options.entries_per_chunk} * options.tokens_per_entry;
  const attention_table& table = doc.attention;
  std::vector<double> mass(static_cast<std::size_t>(doc.tokens / tokens_per_chunk + 1));
  for (std::int64_t t = 0; t < table.tokens(); ++t) {
    const std::int64_t position = table.positions[static_cast<std::size_t>(t)];
    const std::int64_t first = options.sink_chunks;
    const std::int64_t end = (position + 1) / tokens_per_chunk - options.recent_chunks;
    const auto items_end = static_cast<std::size_t>(table.offsets[static_cast<std::size_t>(t) + 1]);
    for (auto i = static_cast<std::size_t>(table.offsets[static_cast<std::size_t>(t)]); i < items_end;) {
      const std::size_t begin = i;
      double most = 0;
      for (; i < items_end && table.layer[i] == table.layer[begin] && table.head[i] == table.head[begin];
           ++i) {
        const std::int64_t chunk = std::int64_t{table.entry[i]} / options.entries_per_chunk;
        if (chunk < first || chunk >= end) continue;
        double& sum = mass[static_cast<std::size_t>(chunk)];
        sum += double{table.mass[i]};
        most = std::max(most, sum);
      }
      for (std::size_t k = begin; k < i; ++k)
        mass[static_cast<std::size_t>(std::int64_t{table.entry[k]} / options.entries_per_chunk)] = 0;
      sums[static_cast<std::size_t>(table.layer[begin] * heads + table.head[begin])] += most;
    }
  }
}

}  // namespace

std::vector<ranked_head> rank_retrieval_heads(const document_source& source, const window_options& options,
                                              std::int64_t max_documents) {
  validate(options);
  const recording_geometry& geometry = source.geometry();
  std::vector<std::int64_t> documents;
  for (std::size_t i = 0; i < source.documents().size(); ++i) {
    const document_info& info = source.documents()[i];
    if (info.split == dataset_split::train && info.attention_tokens > 0)
      documents.push_back(static_cast<std::int64_t>(i));
  }
  const auto all = static_cast<std::int64_t>(documents.size());
  const std::int64_t count = max_documents > 0 ? std::min(max_documents, all) : all;
  if (count == 0)
    throw argument_error(status::bad_argument,
                         "retrieval heads: no document of the training split has recorded attention");
  std::vector<double> sums(static_cast<std::size_t>(std::int64_t{geometry.layers} * geometry.heads));
  double tokens = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const document doc = source.load(documents[static_cast<std::size_t>(i * all / count)]);
    add_document(doc, options, geometry.heads, sums);
    tokens += static_cast<double>(doc.attention.tokens());
  }
  std::vector<ranked_head> ranked;
  for (std::int32_t layer = 0; layer < geometry.layers; ++layer)
    for (std::int32_t head = 0; head < geometry.heads; ++head)
      ranked.push_back(
          {{layer, head},
           sums[static_cast<std::size_t>(std::int64_t{layer} * geometry.heads + head)] / tokens});
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const ranked_head& a, const ranked_head& b) { return a.mass > b.mass; });
  return ranked;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
