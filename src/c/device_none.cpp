// SPDX-License-Identifier: MIT
#include "src/c/device.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {
namespace {

[[noreturn]] void refuse_device() {
  throw error(status::unsupported, "cuda: this libflashmemory_c was built without CUDA");
}

}  // namespace

std::unique_ptr<tiered_chunk_store> open_device_store(const store_options&, const fm_store_options&) {
  refuse_device();
}
std::unique_ptr<selector> open_device_selector(tiered_chunk_store&, indexer_object&, const selection_policy&,
                                               const selector_options&) {
  refuse_device();
}
std::unique_ptr<device_attention> open_device_attention(tiered_chunk_store&, const fm_attention_options&) {
  refuse_device();
}

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
