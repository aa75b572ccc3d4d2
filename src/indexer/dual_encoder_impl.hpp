// SPDX-License-Identifier: MIT
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <vector>

#include "src/indexer/rope.hpp"

namespace flashmemory {
inline namespace v0 {

struct dual_encoder_indexer::impl {
  explicit impl(dual_encoder_config c);

  /// Where score() keeps what it works out before it looks at keys. `base` null only counts.
  struct layout {
    float* queries = nullptr;   // [retrievers, heads, 128]
    float* gates = nullptr;     // [retrievers, heads]
    float* low_rank = nullptr;  // [retrievers, rank]
    std::size_t bytes = 0;
  };
  layout carve(void* base) const noexcept;

  /// Encodes retrievers [first, first + count): `hidden` [count] pointers, outputs back to back.
  void encode(std::int32_t first, std::int32_t count, const float* const* hidden, std::int64_t position,
              const layout& out, const thread_hook& threads) const noexcept;

  dual_encoder_config config;
  std::vector<std::int32_t> tap_of;                        // [retrievers], into the query taps
  std::vector<hwy::AlignedFreeUniquePtr<float[]>> panels;  // wk of each retriever, packed; empty without wk
  detail::rope_frequencies frequencies{};
};

namespace detail {

/// Most retrievers of one ensemble.
inline constexpr std::int32_t max_retrievers = 64;

/// The query tap that a retriever reads; one past the last if there is none yet.
std::int32_t query_tap_of(const indexer_taps& taps, const retriever_weights& retriever) noexcept;

/// \throws argument_error naming the field, or the retriever and tensor
void validate(const dual_encoder_config& config);

/// Elementwise over keys: what an ensemble of `count` retrievers says of a key, from the logits
/// z[0], z[stride], ... NaN if any of them is.
float combine_logits(ensemble how, const float* z, std::int32_t count, std::int64_t stride) noexcept;

}  // namespace detail

}  // namespace v0
}  // namespace flashmemory
