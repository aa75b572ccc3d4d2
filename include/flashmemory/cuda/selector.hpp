// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/device_indexer.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// The device side of a selector over the library's dual encoder.
struct device_selector_options {
  dtype weights = dtype::bf16;  ///< of the query encoder; see query_encoder_options
  dtype rows = dtype::f32;      ///< of the hidden states that are kept; f32, bf16 or f16
};

/// A selector whose level 1 runs on the device: the newest hidden states of every sequence stay in device memory, all
/// due sequences of a step are encoded and scored in one launch each over the index keys in the store's fast tier, and
/// one score per chunk comes back to the host, where the policy is applied as on the CPU backend.
///
/// What observe(), observe_queries() and observe_keys() are given are device tensors. Queries are quantised to e4m3 per head before scoring (query_encoder.hpp), so that scores differ from the
/// CPU backend's in the last digits. With selector_options::apply at_once, select_chunks() waits for scores and copies
/// up to the deadline; with overlapped it never blocks.
///
/// For host indexers that read neither keys nor hidden states (recency_indexer, random_indexer, oracle_indexer) over a
/// device store use selector's own constructor.
/// \param store  made by cuda::make_store(), whose context is used; must outlive the selector
/// \throws as selector's constructor and query_encoder's; argument_error if the store is not on a device
FLASHMEMORY_API std::unique_ptr<selector> make_selector(tiered_chunk_store& store,
                                                        const dual_encoder_config& config,
                                                        const selection_policy& policy,
                                                        const selector_options& options = {},
                                                        const device_selector_options& device = {});

/// The same over pooled keys. Index keys without a projection have the same bytes as the CPU backend's where the rows are
/// kept in f32; scores differ from its in the last digits.
/// \param rows   of the queries and keys that are kept; f32, bf16 or f16
/// \throws as selector's and pooled_keys_indexer's constructor; argument_error if the store is not on a device
FLASHMEMORY_API std::unique_ptr<selector> make_selector(tiered_chunk_store& store,
                                                        const pooled_keys_config& config,
                                                        const selection_policy& policy,
                                                        const selector_options& options = {},
                                                        dtype rows = dtype::f32);

/// The same over a scorer of the engine's own.
/// \param index  must outlive the selector
/// \param rows   of the vectors that are kept; f32, bf16 or f16
/// \throws argument_error if the indexer encodes index keys itself
FLASHMEMORY_API std::unique_ptr<selector> make_selector(tiered_chunk_store& store, device_indexer& index,
                                                        const selection_policy& policy,
                                                        const selector_options& options = {},
                                                        dtype rows = dtype::f32);

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
