// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/deepseek_v4.hpp>

#include "content.hpp"
#include "device.hpp"

namespace replay {

/// What an engine keeps of DeepSeek-V4 beside the store, always on the device: per layer the window's newest 128 tokens
/// in a ring, and per HCA layer all entries of 128 tokens.
class engine_caches {
 public:
  /// \param max_tokens  of a sequence
  engine_caches(std::int32_t rows, std::int64_t max_tokens);

  /// Bytes of one sequence, lists included.
  std::size_t bytes_per_row() const noexcept;
  /// The same without making one.
  static std::size_t bytes_per_row(std::int64_t max_tokens) noexcept;

  /// Fills everything with made-up entries, as after a prompt.
  void fill(std::uint64_t seed, const device_stream& stream);

  /// The step's entries, [layers, rows, 512] for the windows, then [hca_layers, rows, 512] for HCA: what the model would
  /// compute, made outside of the step.
  void make_entries(std::uint64_t seed, const device_stream& stream);

  /// Writes the step's entries to their places: three kernels for all layers, since all exist by now; can be captured.
  /// \param positions  [rows], device, -1 = empty row
  void append(const std::int64_t* positions, const device_stream& stream);

  /// What the queries of a layer attend to besides selected entries.
  flashmemory::cuda::deepseek_v4::entry_source window(std::int32_t layer) const noexcept;
  /// \param index  of the layer among the HCA layers
  flashmemory::cuda::deepseek_v4::entry_source hca(std::int32_t index) const noexcept;

  /// Entries of a row that hca() may name.
  std::int32_t hca_capacity() const noexcept { return hca_capacity_; }

 private:
  static std::int32_t hca_pages(std::int64_t max_tokens) noexcept;
  flashmemory::cuda::deepseek_v4::page_pool window_pool() const noexcept;
  flashmemory::cuda::deepseek_v4::page_pool hca_pool() const noexcept;

  std::int32_t rows_;
  std::int64_t max_tokens_;
  std::int32_t hca_capacity_;
  device_array<std::byte> window_pages_, hca_pages_;
  device_array<std::int32_t> window_list_, hca_list_;  ///< [rows, capacity]
  device_array<std::int32_t> window_places_, hca_places_, hca_counts_;
  device_array<bfloat16> entries_;
};

}  // namespace replay
