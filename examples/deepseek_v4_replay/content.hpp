// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>

#include "model.hpp"
#include "topics.hpp"

namespace replay {

/// What the model would compute: kernels that fill tensors with numbers of a hash of their place, so that any part can
/// be made at any time, and with the planted structure. All pointers are device pointers; calls enqueue one kernel.

using flashmemory::bfloat16;

inline constexpr std::int32_t max_rows = 64;  ///< sequences of a step

/// Directions that the index keys of planted entries have, [csa_layers, topics, 128], about 1 per element.
struct planted_directions {
  const float* values = nullptr;
  std::int32_t topics = 0;
};

/// Normal numbers of standard deviation about 1.
void fill_noise(bfloat16* out, std::int64_t count, std::uint64_t seed, cudaStream_t stream);

/// Index keys of `count` entries of one layer and sequence from entry `first` on: noise, and where a topic is planted
/// its direction.
/// \param      places  [num_chunks] as topic_plan has them; entries of chunks beyond carry nothing
/// \param[out] keys    [count, 128] bf16
/// \param[out] rows    [count, 132] the same quantised, for the store's index-key lanes; null if not wanted
void fill_index_keys(bfloat16* keys, std::byte* rows, std::int64_t first, std::int64_t count,
                     std::int32_t layer, const topic_rule& rule, const std::int32_t* places,
                     std::int32_t num_chunks, const planted_directions& directions, std::uint64_t seed,
                     cudaStream_t stream);

/// Hidden states that ask for a topic, the same for every sequence, without noise.
/// \param[out] out  [topics, hidden], of topics first .. first + topics - 1
void fill_topic_hidden(bfloat16* out, std::int32_t retriever, std::int32_t first, std::int32_t topics,
                       cudaStream_t stream);

/// What each row of a step is about.
struct step_topics {
  std::int32_t hidden[max_rows] = {};  ///< that the target layers' hidden states ask for: the next interval's
  std::int32_t queries[max_rows] = {};  ///< that level 2 looks for
  std::int32_t rows = 0;
};

/// What a step brings, besides noise().
struct step_tensors {
  bfloat16* hidden = nullptr;       ///< [retrievers, rows, hidden]
  std::byte* queries = nullptr;     ///< [csa_layers, rows, index_heads, 128] e4m3
  float* weights = nullptr;         ///< [csa_layers, rows, index_heads]
  bfloat16* index_keys = nullptr;   ///< [csa_layers, rows, 128]
  std::byte* index_rows = nullptr;  ///< [retrievers, rows, 132] those of the target layers, quantised
};

void fill_step(const step_tensors& out, const step_topics& topics, const planted_directions& directions,
               std::uint64_t seed, cudaStream_t stream);

/// Where the step's entries of the engine's own caches go, from the position of each row's token: into the window's
/// ring in every layer, and into the HCA caches where an entry of 128 tokens is complete.
struct cache_places {
  std::int32_t* window = nullptr;      ///< [layers, rows]
  std::int32_t* hca = nullptr;         ///< [hca_layers, rows], -1 = no entry yet
  std::int32_t* hca_counts = nullptr;  ///< [rows] entries of a row after the step
};

/// \param positions     [rows], -1 = empty row
/// \param hca_capacity  entry numbers of a row and layer
void place_step(const cache_places& out, const std::int64_t* positions, std::int32_t rows,
                std::int32_t hca_capacity, cudaStream_t stream);

/// Fills a list with first, first + 1, ...
void fill_iota(std::int32_t* out, std::int64_t count, std::int32_t first, cudaStream_t stream);

}  // namespace replay
