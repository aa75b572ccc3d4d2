// SPDX-License-Identifier: MIT
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::make_fault;
using detail::sequence_state;

status tiered_chunk_store::impl::append_index_keys(sequence_handle sequence, std::int32_t lane,
                                                   std::int64_t first_key, view<const std::byte, 2> keys,
                                                   stream_ref stream) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const auto refuse = [&](status why, const char* what, std::int64_t expected, std::int64_t actual) {
    fault f = make_fault(why, what, sequence.index, expected, actual);
    f.lane = lane;
    return fail(f);
  };
  fault f = tier->enter(stream);
  if (f.code != status::ok) return refuse(f.code, f.what, f.expected, f.actual);
  if (lane < 0 || lane >= geometry.index_keys.lanes)
    return refuse(status::out_of_range, "lane", geometry.index_keys.lanes, lane);
  const std::int64_t count = keys.shape[0];
  const std::int64_t key_bytes = geometry.index_keys.bytes();
  if (count < 0) return refuse(status::bad_shape, "count of keys", 0, count);
  if (keys.shape[1] != key_bytes)
    return refuse(status::bad_shape, "key_bytes of keys", key_bytes, keys.shape[1]);
  if (count > 0 && keys.stride[1] != 1)
    return refuse(status::bad_shape, "last stride of keys", 1, keys.stride[1]);
  if (count > 0 && !keys.data) return refuse(status::null_data, "keys", -1, -1);
  const std::int64_t present = s->num_keys[lane];
  if (first_key != present) return refuse(status::out_of_order, "first_key", present, first_key);
  if (count > s->max_keys() - present)
    return refuse(status::sequence_full, "keys", s->max_keys() - present, count);
  if (count > 0) {
    f = tier->append_index_keys(s->keys + std::size_t(lane) * s->index_key_lane_bytes(), first_key, keys);
    if (f.code == status::ok) f = tier->leave(stream);
    f.sequence = sequence.index;
    f.lane = lane;
    if (f.code != status::ok) return fail(f);
  }
  s->num_keys[lane] += count;
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
