// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define REPLAY_HD __host__ __device__
#else
#define REPLAY_HD
#endif

namespace replay {

/// DeepSeek-V4-Flash, as far as attention and its indexers go.
namespace model {

inline constexpr std::int32_t layers = 43;  ///< 0 and 1 see the window only; then CSA and HCA take turns
inline constexpr std::int32_t window_only_layers = 2;
inline constexpr std::int32_t csa_layers =
    21;  ///< 2, 4, ... 42: entries of 4 tokens, chosen by the layer's indexer
inline constexpr std::int32_t hca_layers = 20;  ///< 3, 5, ... 41: entries of 128 tokens, all of them
inline constexpr std::int32_t hidden = 4096;
inline constexpr std::int32_t heads = 64;
inline constexpr std::int32_t window = 128;  ///< newest tokens that every layer attends to
inline constexpr std::int32_t csa_tokens = 4;
inline constexpr std::int32_t hca_tokens = 128;
inline constexpr std::int32_t index_heads = 64;  ///< of the lightning indexer, level 2
inline constexpr std::int32_t lightning_dim = 128;
inline constexpr std::int32_t top_entries = 512;  ///< that level 2 picks
inline constexpr std::int32_t chunk_entries = 64;

/// The memory indexer, level 1: as published, three retrievers, which tap these CSA layers.
inline constexpr std::int32_t retrievers = 3;
inline constexpr std::int32_t target_layers[retrievers] = {10, 12, 20};
/// The retriever that taps a CSA layer, -1 if none does.
REPLAY_HD constexpr std::int32_t retriever_of(std::int32_t csa_layer) noexcept {
  return csa_layer == 10 ? 0 : csa_layer == 12 ? 1 : csa_layer == 20 ? 2 : -1;
}
static_assert(retriever_of(target_layers[0]) == 0 && retriever_of(target_layers[1]) == 1 &&
                  retriever_of(target_layers[2]) == 2,
              "");
inline constexpr std::int32_t retriever_rank = 2048;
inline constexpr std::int32_t retriever_heads = 128;

enum class layer_kind { window_only, csa, hca };

constexpr layer_kind kind_of(std::int32_t layer) noexcept {
  return layer < window_only_layers ? layer_kind::window_only
         : layer % 2 == 0           ? layer_kind::csa
                                    : layer_kind::hca;
}

static_assert(window_only_layers + csa_layers + hca_layers == layers, "");

}  // namespace model
}  // namespace replay
