// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// One block of a copy whose blocks are equally long; 16-byte aligned addresses that the device can read and write.
struct copy_span {
  std::byte* to;
  const std::byte* from;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
