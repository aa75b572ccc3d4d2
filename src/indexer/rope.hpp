// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Elements of a query head that RoPE turns, the last ones.
inline constexpr std::int32_t rope_dim = 64;

/// Radians per position of each pair, with the published scorer's roundings.
using rope_frequencies = std::array<float, rope_dim / 2>;

/// Exported for the CUDA library, which computes them on the host too.
FLASHMEMORY_API rope_frequencies yarn_frequencies(const rope_options& options) noexcept;

/// Cosine and sine of every pair at one position.
struct rope_rotation {
  std::array<float, rope_dim / 2> cosine;
  std::array<float, rope_dim / 2> sine;
};

FLASHMEMORY_API rope_rotation rotation_at(const rope_frequencies& frequencies, std::int64_t position,
                                          std::int64_t max_positions) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
