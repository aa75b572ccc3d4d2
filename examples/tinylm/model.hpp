// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <string>
#include <vector>

namespace tinylm {

struct model_config {
  std::int32_t layers = 0;
  std::int32_t hidden = 0;
  std::int32_t intermediate = 0;
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t vocabulary = 0;
  std::int32_t max_positions = 0;
  double rope_theta = 0;
  float norm_eps = 0;

  std::int32_t query_width() const noexcept { return heads * head_dim; }
  std::int32_t kv_width() const noexcept { return kv_heads * head_dim; }
};

/// A linear map without bias. Decoding reads the bf16 weights as they are in the file, since it is bound by
/// memory; the prompt's GEMMs want floats.
struct projection {
  std::int64_t rows = 0;                      ///< outputs
  std::int64_t cols = 0;                      ///< inputs
  std::vector<flashmemory::bfloat16> narrow;  ///< [rows, cols]
  std::vector<float> wide;                    ///< the same values
};

struct layer_weights {
  std::vector<float> attention_norm;
  std::vector<float> mlp_norm;
  projection qkv;  ///< rows: all query heads, then key heads, then value heads
  projection output;
  projection gate_up;  ///< rows: gate, then up
  projection down;
};

/// A Llama-style decoder: pre-norm, grouped-query attention with rotary positions, SwiGLU, tied embedding.
struct model {
  model_config config;
  projection embedding;  ///< [vocabulary, hidden]; also the output head
  std::vector<float> final_norm;
  std::vector<layer_weights> layers;
  std::vector<float> rope_cos;  ///< [max_positions, head_dim / 2]
  std::vector<float> rope_sin;

  /// Rotates one head's vector in place: element i pairs with element i + head_dim / 2.
  void rotate(float* head, std::int64_t position) const noexcept;
};

/// Reads config.json and model.safetensors (bf16, the usual Llama tensor names) from `folder`.
/// \throws std::runtime_error or flashmemory::error naming file and field or tensor
model load_model(const std::string& folder);

}  // namespace tinylm
