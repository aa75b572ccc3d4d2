// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// indexer_taps::index_key_fingerprint of an encoder with these weights, wherever it runs.
FLASHMEMORY_API std::uint64_t key_fingerprint(const dual_encoder_config& config) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
