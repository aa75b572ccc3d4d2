// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// XXH3 of bytes that come in pieces.
class running_hash {
 public:
  running_hash();
  ~running_hash();
  void reset(std::uint64_t seed) noexcept;
  void add(const void* data, std::size_t bytes) noexcept;
  std::uint64_t value() const noexcept;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
