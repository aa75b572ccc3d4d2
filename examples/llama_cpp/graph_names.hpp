// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string_view>

namespace llama_flashmemory {

/// What a tensor of llama.cpp's graphs is to the adapter.
enum class graph_role : std::int32_t {
  none,              ///< nothing
  attention_input,   ///< "attn_norm-3": the input of layer 3's attention block, after its norm
  attention_output,  ///< "kqv_out-3": what its attention gave, before the output projection
  key_cache,         ///< "cache_k_l3": where its K is kept
  value_cache,       ///< "cache_v_l3": where its V is kept
};

/// A name that was understood.
struct graph_name {
  graph_role role = graph_role::none;
  std::int32_t layer = -1;
};

/// Reads a tensor's name. What ggml puts behind it in parentheses, " (view)" for instance, does not matter; anything else
/// behind the number makes it another name.
graph_name read_name(std::string_view name) noexcept;

}  // namespace llama_flashmemory
