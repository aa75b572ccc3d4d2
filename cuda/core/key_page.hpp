// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/store/geometry.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Where index keys lie in a page. As they are to be had on the host: `value_bytes` and then `scale_bytes` each.
struct key_page {
  std::int32_t value_bytes = 128, scale_bytes = 4;
  std::int32_t page_keys = 64;
  index_key_type type = index_key_type::e4m3;
  bool planar = true;

#ifdef __CUDACC__
  __host__ __device__
#endif
      constexpr std::int32_t
      key_bytes() const noexcept {
    return value_bytes + scale_bytes;
  }
};

inline key_page key_page_of(const kv_geometry& g) noexcept {
  return {g.index_keys.value_bytes(), g.index_keys.scale_bytes(),
          static_cast<std::int32_t>(g.index_keys_per_chunk()), g.index_keys.type,
          g.index_keys.layout == index_key_layout::planar};
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
