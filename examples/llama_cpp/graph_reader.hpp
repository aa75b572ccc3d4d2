// SPDX-License-Identifier: MIT
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <vector>

#include "graph_names.hpp"

namespace llama_flashmemory {

/// One layer's attention in one pass, as llama.cpp's graph has it: rows of q, k, v and out are the pass's tokens.
struct attention_node {
  flashmemory::const_tensor<3> q;  ///< [tokens, query heads, key_dim], position encoding applied
  flashmemory::const_tensor<3> k;  ///< [tokens, kv heads, key_dim], as the cache has it
  flashmemory::const_tensor<3> v;  ///< [tokens, kv heads, value_dim]
  flashmemory::tensor<3> out;      ///< [tokens, query heads, value_dim], what the output projection will read
  float scale = 0;                 ///< multiplies logits
  float soft_cap = 0;              ///< 0 = none
  flashmemory::view<const float, 1> sinks;  ///< data null = none
  const void* mask = nullptr;  ///< identity of the mask: window layers have another one than full layers
};

/// Reads K and V of a pass where llama.cpp has just put them, in its own cache, so that no other node has to be looked
/// at: the callback then splits the graph nowhere but at the attention itself.
class graph_reader {
 public:
  /// \param layers  of the model
  explicit graph_reader(std::int32_t layers);

  /// Forgets what the last pass has shown.
  void begin() noexcept;

  /// A node that is about to be computed: rows that go into a cache are taken note of.
  void note(const ggml_tensor* node);

  /// A layer's attention, once its "kqv_out" has been computed. Valid until the next layer's.
  /// \throws flashmemory::error of code unsupported, naming tensor and reason: a cache without a row of this pass, of a
  ///     type that the store does not have, attention that is not ggml's flash attention, ALiBi
  attention_node read(const ggml_tensor* output, std::int32_t layer);

 private:
  flashmemory::const_tensor<3> rows(const ggml_tensor* written, const char* cache, std::int32_t layer,
                                    std::int64_t heads, std::int64_t tokens,
                                    std::vector<std::byte>& gathered);

  std::vector<const ggml_tensor*> keys_, values_;  ///< [layers], the nodes that write them
  std::vector<std::byte> gathered_keys_, gathered_values_;
};

/// The store's name of a cache's element type.
/// \throws flashmemory::error of code unsupported naming `what`: f16, bf16 and f32 are read, quantised caches are not
flashmemory::dtype element_type(ggml_type type, const char* what);

}  // namespace llama_flashmemory
