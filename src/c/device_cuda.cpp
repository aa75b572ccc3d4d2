// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>

#include "src/c/device.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

class streaming_attention final : public device_attention {
 public:
  streaming_attention(const cuda::context& device, const cuda::prompt_attention_options& options)
      : attention_(device, options) {}
  status attend(const chunk_reader& reader, batch items, std::int32_t layer, const_tensor<3> q, tensor<3> out,
                const attend_options& options, stream_ref stream) noexcept override {
    return attention_.attend(reader, items, layer, q, out, options, stream);
  }

 private:
  cuda::prompt_attention attention_;
};

}  // namespace

std::unique_ptr<tiered_chunk_store> open_device_store(const store_options& options,
                                                      const fm_store_options& how) {
  cuda::context device;
  device.ordinal = how.device;
  device.deadline = std::chrono::milliseconds(how.deadline_ms);
  return cuda::make_store(options, device);
}

std::unique_ptr<selector> open_device_selector(tiered_chunk_store& store, indexer_object& index,
                                               const selection_policy& policy,
                                               const selector_options& options) {
  switch (index.made) {
    case indexer_object::make::dual_encoder:
      return cuda::make_selector(store, static_cast<dual_encoder_indexer&>(*index.index).config(), policy,
                                 options);
    case indexer_object::make::pooled_keys:
      return cuda::make_selector(store, static_cast<pooled_keys_indexer&>(*index.index).config(), policy,
                                 options);
    default:
      return std::make_unique<selector>(store, *index.index, policy, options);
  }
}

std::unique_ptr<device_attention> open_device_attention(tiered_chunk_store& store,
                                                        const fm_attention_options& options) {
  cuda::prompt_attention_options o;
  o.geometry = store.geometry();
  o.query_heads = options.query_heads;
  o.max_tokens = options.max_tokens;
  o.max_items = options.max_items;
  o.max_chunks = options.max_chunks;
  return std::make_unique<streaming_attention>(cuda::context_of(store), o);
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
