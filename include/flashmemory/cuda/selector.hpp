// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/memory.hpp>
#include <flashmemory/select/selector.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// The device side of a selector.
struct selector_device_options {
  dtype weights = dtype::bf16;  ///< of the query encoder; see query_encoder_options
  dtype rows = dtype::f32;      ///< of the hidden states that are kept; f32, bf16 or f16
  std::int32_t num_sms = 0;     ///< multiprocessors that scoring may use; 0 = all
  std::int32_t device = 0;      ///< CUDA ordinal
  memory_resource memory;       ///< device memory; null functions = cudaMalloc
  memory_resource pinned;       ///< host memory that the device can read; null functions = cudaHostAlloc
};

/// A selector whose level 1 runs on the device: the newest hidden states of every sequence stay in device memory, all
/// due sequences of a step are encoded and scored in one launch each over the index keys in the store's fast tier, and
/// one score per chunk comes back to the host, where the policy is applied as on the CPU backend.
///
/// Hidden states given to observe() are device tensors; observe_queries() is unsupported, since a dual encoder has no
/// such taps. Queries are quantised to e4m3 per head before scoring (query_encoder.hpp), so that scores differ from the
/// CPU backend's in the last digits. With selector_options::apply at_once, select_chunks() waits for scores and copies
/// up to the deadline; with overlapped it never blocks.
///
/// For host indexers that read neither keys nor hidden states (recency_indexer, random_indexer, oracle_indexer) over a
/// device store use selector's own constructor.
/// \param store  whose fast tier is memory of `device`; must outlive the selector
/// \throws as selector's constructor and query_encoder's
FLASHMEMORY_API std::unique_ptr<selector> make_selector(chunk_store& store, const dual_encoder_config& config,
                                                        const selection_policy& policy,
                                                        const selector_options& options = {},
                                                        const selector_device_options& device = {});

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
