// SPDX-License-Identifier: MIT
#include <flashmemory/attend/deepseek_v4_resident.hpp>

#include "src/attend/deepseek_v4.hpp"

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {

status list_resident(const chunk_reader& reader, sequence_handle sequence, std::int32_t layer,
                     view<const std::byte*, 1> table, resident_entries* out, fault* error) noexcept {
  const kv_geometry& g = reader.geometry();
  if (out == nullptr) return refuse(status::null_data, "out", -1, -1, error);
  if (g.format != kv_format::deepseek_v4) {
    return refuse(status::unsupported, "the store's kv_format",
                  static_cast<std::int64_t>(kv_format::deepseek_v4), static_cast<std::int64_t>(g.format),
                  error);
  }
  resident_set set;
  if (const status bad = reader.resident(sequence, layer, &set); bad != status::ok) {
    if (error != nullptr) *error = reader.last_fault();
    return bad;
  }
  if (table.shape[0] < set.count) return refuse(status::bad_shape, "table", set.count, table.shape[0], error);
  if (set.count > 0 && table.data == nullptr) return refuse(status::null_data, "table", -1, -1, error);
  if (set.count > 1 && table.stride[0] != 1)
    return refuse(status::bad_shape, "table", 1, table.stride[0], error);
  const chunk_layout layout(g);
  resident_entries r;
  for (std::int64_t i = 0; i < set.count; ++i) {
    table(i) = set.chunks[i].data;
    r.count += set.chunks[i].entries;
  }
  r.pool.table = table.data;
  r.pool.table_offset = static_cast<std::int64_t>(layout.key_offset(layer, 0));
  r.pool.num_pages = set.count;
  r.pool.entries_per_page = g.entries_per_chunk;
  r.index_offset = static_cast<std::int64_t>(layout.value_offset(layer, 0));
  *out = r;
  return status::ok;
}

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
