// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/exchange/retrieval.hpp>
#include <random>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/io/atomic_file.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw argument_error(status::bad_argument, "export_retrieval: " + what);
}

/// Keys of one stream as floats [keys, width]; width of native keys is key_bytes - 4.
std::vector<float> key_vectors(const document_keys& keys, const recorded_key_stream& stream) {
  if (!stream.native()) return keys.inputs.to_floats();
  std::vector<float> out;
  for (std::int64_t k = 0; k < keys.keys; ++k) {
    const std::byte* key = keys.native.data() + k * stream.key_bytes;
    float scale;
    std::memcpy(&scale, key + stream.key_bytes - 4, sizeof scale);
    for (std::int32_t i = 0; i < stream.key_bytes - 4; ++i)
      out.push_back(from_e4m3(static_cast<std::uint8_t>(key[i])) * scale);
  }
  return out;
}

tensor_source tensor_of(const char* name, const std::vector<float>& values, std::vector<std::int64_t> shape) {
  tensor_source t;
  t.name = name;
  t.type = tensor_type::f32;
  t.shape = std::move(shape);
  t.data = reinterpret_cast<const std::byte*>(values.data());
  t.bytes = static_cast<std::size_t>(t.elements()) * sizeof(float);
  return t;
}

/// `count` different negatives of a window, ascending.
std::vector<chunk_id> draw_negatives(const window_labels& labels, std::int32_t count,
                                     std::mt19937_64& random) {
  std::vector<chunk_id> pool;
  auto positive = labels.positives.begin();
  for (std::int64_t c = labels.first_candidate; c < labels.end_candidate; ++c) {
    if (positive != labels.positives.end() && positive->chunk == c)
      ++positive;
    else
      pool.push_back(static_cast<chunk_id>(c));
  }
  const auto take = std::min(pool.size(), static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < take; ++i)  // not std::shuffle, which differs among libraries
    std::swap(pool[i], pool[i + static_cast<std::size_t>(random() % (pool.size() - i))]);
  pool.resize(take);
  std::sort(pool.begin(), pool.end());
  return pool;
}

}  // namespace

retrieval_export_counts export_retrieval(const recordings& data, const retrieval_export_options& options,
                                         const std::string& folder) {
  const recording_geometry& g = data.geometry();
  const auto within = [](std::int32_t index, std::size_t count) {
    return index >= 0 && static_cast<std::size_t>(index) < count;
  };
  if (!within(options.query_tap, g.queries.size())) refuse(formatted("query_tap {}", options.query_tap));
  if (!within(options.key_stream, g.keys.size())) refuse(formatted("key_stream {}", options.key_stream));
  if (options.negatives < 0) refuse(formatted("{} negatives", options.negatives));
  validate(options.rule);
  validate(options.windows);
  const auto tap = static_cast<std::size_t>(options.query_tap);
  const auto stream_index = static_cast<std::size_t>(options.key_stream);
  const recorded_key_stream& stream = g.keys[stream_index];
  const std::int64_t chunk_tokens =
      std::int64_t{options.windows.entries_per_chunk} * options.windows.tokens_per_entry;
  if (chunk_tokens % stream.tokens_per_key != 0)
    refuse(formatted("chunks of {} tokens with a key per {}", chunk_tokens, stream.tokens_per_key));
  const std::int64_t keys_per_chunk = chunk_tokens / stream.tokens_per_key;
  const std::int64_t width = stream.native() ? stream.key_bytes - 4 : stream.width;

  std::error_code code;
  std::filesystem::create_directory(folder, code);
  if (code)
    throw io_failure(status::io_error, formatted("cannot make the folder {}: {}", folder, code.message()));
  flashmemory::detail::atomic_file rows(folder + "/rows.jsonl");
  retrieval_export_counts counts;
  for (std::size_t d = 0; d < data.documents().size(); ++d) {
    const document doc = data.load(static_cast<std::int64_t>(d));
    const std::string name = formatted("{:06}.safetensors", d);
    std::mt19937_64 random(options.seed * 1000003 + d);
    std::string lines;
    for (std::size_t q = 0; q < doc.positions.size(); ++q) {
      const window_labels labels = label_window(doc, doc.positions[q], options.rule, options.windows);
      if (labels.tokens_seen == 0) continue;
      if (labels.positives.empty() && !options.keep_windows_without_positives) continue;
      std::vector<chunk_id> positives;
      std::vector<float> weights;
      for (const positive_chunk& p : labels.positives) {
        positives.push_back(p.chunk);
        weights.push_back(p.weight);
      }
      const auto negatives = draw_negatives(labels, options.negatives, random);
      const nlohmann::ordered_json row = {{"vectors", name},        {"query", q},
                                          {"positives", positives}, {"weights", weights},
                                          {"negatives", negatives}, {"split", to_string(doc.split)},
                                          {"tag", doc.tag},         {"position", doc.positions[q]}};
      lines += json_text(row) + '\n';
      ++counts.rows;
      counts.positives += static_cast<std::int64_t>(positives.size());
      counts.negatives += static_cast<std::int64_t>(negatives.size());
    }
    const std::vector<float> queries = doc.queries[tap].to_floats();
    const std::vector<float> keys = key_vectors(doc.keys[stream_index], stream);
    const std::int64_t chunks = doc.tokens / chunk_tokens;
    write_safetensors(folder + '/' + name,
                      {tensor_of("queries", queries, {doc.queries[tap].rows(), g.queries[tap].width}),
                       tensor_of("keys", keys, {chunks, keys_per_chunk, width})},
                      {{"model_fingerprint", g.model_fingerprint}, {"document", data.documents()[d].name}});
    rows.write(lines.data(), lines.size());
    ++counts.documents;
  }
  rows.commit();
  return counts;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
