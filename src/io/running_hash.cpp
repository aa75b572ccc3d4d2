// SPDX-License-Identifier: MIT
#include "src/io/running_hash.hpp"

#include <xxhash.h>

namespace flashmemory {
inline namespace v0 {
namespace detail {

struct running_hash::state {
  XXH3_state_t xxh3;
};

running_hash::running_hash() : state_(std::make_unique<state>()) { reset(0); }
running_hash::~running_hash() = default;
void running_hash::reset(std::uint64_t seed) noexcept { XXH3_64bits_reset_withSeed(&state_->xxh3, seed); }
void running_hash::add(const void* data, std::size_t bytes) noexcept {
  if (bytes > 0) XXH3_64bits_update(&state_->xxh3, data, bytes);
}
std::uint64_t running_hash::value() const noexcept { return XXH3_64bits_digest(&state_->xxh3); }

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
