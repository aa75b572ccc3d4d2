// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/chunk_tables.hpp>
#include <flashmemory/cuda/deepseek_v4.hpp>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/top_k.hpp>
#include <flashmemory/store/geometry.hpp>

#include "content.hpp"
#include "device.hpp"

namespace replay {

/// The model's own lightning indexer, confined to the resident chunks: per CSA layer, scores of the index keys inside
/// the row's chunks and the 512 best of them. Lengths and places come from the step's chunk tables, so that the jobs are
/// written once. Where everything is resident this is the model as it was.
class level2 {
 public:
  /// \param queries  [csa_layers, rows, index_heads, 128] e4m3, device
  /// \param weights  [csa_layers, rows, index_heads], device
  level2(const flashmemory::kv_geometry& geometry, const flashmemory::cuda::chunk_tables& tables,
         const std::byte* queries, const float* weights);

  /// Bytes of a row with up to `max_chunks` resident chunks.
  static std::size_t bytes_per_row(std::int64_t max_chunks) noexcept;

  /// Enqueues scoring and selection of one layer; can be captured.
  void select(std::int32_t csa_layer, const device_stream& stream) const;

  /// What was selected, for attention over that layer; valid until the next select().
  flashmemory::cuda::deepseek_v4::entry_source selected(std::int32_t csa_layer) const noexcept;

  /// Numbers of the entries of one row that the last select() picked: resident chunk times 64 plus entry.
  std::vector<std::int32_t> picked(std::int32_t row) const;

 private:
  flashmemory::chunk_layout layout_;
  const flashmemory::cuda::chunk_tables& tables_;
  std::int32_t rows_;
  std::int64_t max_chunks_;
  device_array<float> logits_, maxima_;
  device_array<std::int32_t> ids_, counts_;
  device_array<flashmemory::cuda::score_job> jobs_;      ///< [csa_layers, rows]
  device_array<flashmemory::cuda::select_row> choices_;  ///< [rows]
};

}  // namespace replay
