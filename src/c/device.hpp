// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "src/c/objects.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {

/// Attention over a store on a device; its memory is its own.
class device_attention {
 public:
  virtual ~device_attention() = default;
  virtual status attend(const chunk_reader& reader, batch items, std::int32_t layer, const_tensor<3> q,
                        tensor<3> out, const attend_options& options, stream_ref stream) noexcept = 0;
};

// What the CUDA backend does. In a library without it each throws error with status::unsupported.

std::unique_ptr<tiered_chunk_store> open_device_store(const store_options& options,
                                                      const fm_store_options& how);
std::unique_ptr<selector> open_device_selector(tiered_chunk_store& store, indexer_object& index,
                                               const selection_policy& policy,
                                               const selector_options& options);
std::unique_ptr<device_attention> open_device_attention(tiered_chunk_store& store,
                                                        const fm_attention_options& options);

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
