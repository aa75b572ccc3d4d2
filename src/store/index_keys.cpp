// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>

#include "store/impl.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::make_fault;
using detail::sequence_state;

namespace {

bool finite_key(const std::byte* row, std::int64_t value_bytes) noexcept {
  for (std::int64_t i = 0; i < value_bytes; ++i)
    if ((row[i] & std::byte{0x7f}) == std::byte{0x7f}) return false;
  float scale;
  std::memcpy(&scale, row + value_bytes, sizeof scale);
  return std::isfinite(scale);
}

}  // namespace

status tiered_chunk_store::impl::append_keys(sequence_handle sequence, std::int32_t stream_index,
                                             std::int64_t first_key, view<const std::byte, 2> keys,
                                             stream_ref stream) noexcept {
  status code;
  sequence_state* const s = find_or_fail(sequence, &code);
  if (!s) return code;
  const auto refuse = [&](status why, const char* what, std::int64_t expected, std::int64_t actual) {
    fault f = make_fault(why, what, sequence.index, expected, actual);
    f.stream = stream_index;
    return fail(f);
  };
  if (!stream.is_host()) return refuse(status::unsupported, "stream", -1, -1);
  if (stream_index < 0 || stream_index >= geometry.key_streams)
    return refuse(status::out_of_range, "stream_index", geometry.key_streams, stream_index);
  const std::int64_t count = keys.shape[0];
  const std::int64_t key_bytes = geometry.key_bytes;
  if (count < 0) return refuse(status::bad_shape, "keys.shape[0]", 0, count);
  if (keys.shape[1] != key_bytes) return refuse(status::bad_shape, "keys.shape[1]", key_bytes, keys.shape[1]);
  if (count > 0 && keys.stride[1] != 1) return refuse(status::bad_shape, "keys.stride[1]", 1, keys.stride[1]);
  if (count > 0 && !keys.data) return refuse(status::null_data, "keys", -1, -1);
  const std::int64_t present = s->num_keys[stream_index];
  if (first_key != present) return refuse(status::out_of_order, "first_key", present, first_key);
  if (count > s->max_keys() - present)
    return refuse(status::sequence_full, "keys", s->max_keys() - present, count);
  for (std::int64_t i = 0; i < count; ++i)
    if (!finite_key(keys.data + i * keys.stride[0], key_bytes - 4))
      return refuse(status::not_finite, "index key", -1, first_key + i);

  const std::int64_t page_keys = geometry.keys_per_chunk();
  const std::size_t page_bytes = layout.key_page_bytes();
  std::byte* const pages = s->keys + std::size_t(stream_index) * s->key_stream_bytes();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::byte* const row = keys.data + i * keys.stride[0];
    const std::int64_t key = (first_key + i) % page_keys;
    std::byte* const page = pages + std::size_t((first_key + i) / page_keys) * page_bytes;
    // Keys that are not there yet read as zero, whatever the block held before.
    if (key == 0) std::memset(page, 0, page_bytes);
    if (geometry.keys == key_layout::interleaved) {
      std::memcpy(page + key * key_bytes, row, std::size_t(key_bytes));
    } else {
      std::memcpy(page + key * (key_bytes - 4), row, std::size_t(key_bytes - 4));
      std::memcpy(page + page_keys * (key_bytes - 4) + key * 4, row + key_bytes - 4, 4);
    }
  }
  s->num_keys[stream_index] += count;
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
