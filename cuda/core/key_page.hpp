// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Where keys lie in a page.
struct key_page {
  std::int32_t key_bytes = 132;
  std::int32_t page_keys = 64;
  bool planar = true;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
