// SPDX-License-Identifier: MIT
#include <flashmemory/train/record/recorder.hpp>

#include "src/train/record/recorder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

constexpr std::int64_t keys_at_once = 256;

void add_keys(recorder& to, recording_id id, std::int32_t stream, const recorded_key_stream& shape,
              const document_keys& keys) {
  std::vector<float> rows;
  for (std::int64_t from = 0; from < keys.keys; from += keys_at_once) {
    const std::int64_t count = std::min(keys_at_once, keys.keys - from);
    if (shape.native()) {
      to.add_native_keys(
          id, stream,
          view<const std::byte, 2>(keys.native.data() + from * shape.key_bytes, count, shape.key_bytes));
      continue;
    }
    rows.resize(static_cast<std::size_t>(count * shape.width));
    for (std::int64_t k = 0; k < count; ++k) keys.inputs.read(from + k, rows.data() + k * shape.width);
    to.add_key_inputs(id, stream, view<const float, 2>(rows.data(), count, shape.width));
  }
}

}  // namespace

void recorder::add(const document& doc) {
  const recording_geometry& g = impl_->geometry;
  check_document(doc, g, "recorder: the document");
  const recording_id id = begin(doc.tag, doc.split);
  try {
    std::vector<std::vector<float>> rows;
    std::vector<const float*> pointers;
    for (const query_tap& tap : g.queries) rows.emplace_back(static_cast<std::size_t>(tap.width));
    for (const auto& row : rows) pointers.push_back(row.data());
    for (std::size_t p = 0; p < doc.positions.size(); ++p) {
      for (std::size_t i = 0; i < rows.size(); ++i)
        doc.queries[i].read(static_cast<std::int64_t>(p), rows[i].data());
      add_query(id, doc.positions[p], pointers.data());
    }
    for (std::size_t s = 0; s < g.keys.size(); ++s)
      add_keys(*this, id, static_cast<std::int32_t>(s), g.keys[s], doc.keys[s]);
    std::vector<attention_entry> items;
    const attention_table& a = doc.attention;
    for (std::size_t t = 0; t < a.positions.size(); ++t) {
      items.clear();
      for (auto i = static_cast<std::size_t>(a.offsets[t]); i < static_cast<std::size_t>(a.offsets[t + 1]);
           ++i)
        items.push_back({a.layer[i], a.head[i], std::int64_t{a.entry[i]}, a.mass[i]});
      add_attention(id, a.positions[t], items);
    }
    for (const evidence_range& need : doc.evidence) add_evidence(id, need);
    finish(id, doc.tokens);
  } catch (...) {
    drop(id);
    throw;
  }
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
