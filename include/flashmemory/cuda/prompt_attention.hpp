// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/batch.hpp>
#include <flashmemory/cuda/context.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// What a prompt_attention is made for: capacities of one call.
struct prompt_attention_options {
  kv_geometry geometry;
  std::int32_t query_heads = 0;
  std::int64_t max_tokens = 0;  ///< of all items together
  std::int64_t max_items = 1;
  std::int64_t max_chunks = 0;  ///< of one sequence, resident or not
  /// Device memory of one wave: one layer's parts of so many chunks. There are two, so that one is filled while the other
  /// is attended to. At least one chunk's part fits in any case.
  std::size_t wave_bytes = std::size_t{64} << 20;
  /// Pinned staging as large as the waves, for chunks that the reader cannot give an address of: those on files, of a
  /// backing store of the engine's own, or verified. Calls then wait for the medium, and for the wave before.
  bool staged = false;
  std::int32_t calls_ahead = 4;  ///< calls that the host may be ahead of the device
};

/// Attention of pieces of prompts over a store on the device, and of decoding rows over everything: what sparse_attend()
/// with attend_reach is on the CPU. Chunks that are not resident come from the host in waves, a layer's part at a time,
/// while the wave before is attended to; the sequences' quotas are not touched.
///
/// Calls are made from one thread at a time, and the object must outlive what it has enqueued.
class FLASHMEMORY_API prompt_attention {
 public:
  /// \param device  of the chunks: context_of(store)
  /// \throws argument_error naming the field; admission_error if a memory resource has no room; error with cuda_error
  prompt_attention(const context& device, const prompt_attention_options& options);
  ~prompt_attention();
  prompt_attention(const prompt_attention&) = delete;
  prompt_attention& operator=(const prompt_attention&) = delete;

  /// What it was built with.
  const prompt_attention_options& options() const noexcept;

  std::size_t device_bytes() const noexcept;  ///< of device memory: waves, states and tables
  std::size_t pinned_bytes() const noexcept;  ///< of pinned host memory: tables, and staging if there is any

  /// Enqueues attention of all items on `stream`, behind the copies that it needs, which go on a stream of its own. Never
  /// blocks the host, unless it is calls_ahead ahead of the device or chunks are staged; never allocates. Not to be
  /// captured: prompt_attend() is, where everything is resident.
  ///
  /// Equal bits between two residencies; see sparse_attend() of the CPU, whose rules on reach, empty items and
  /// unreadable chunks hold here.
  /// \param items    as sparse_attend()
  /// \param[in]  q   [tokens, query heads, key_dim], the geometry's dtype, device
  /// \param[out] out [tokens, query heads, value_dim], the geometry's dtype or f32, device, contiguous
  /// \param options  scale, soft cap, sinks, lse, reach, leave_out_unreadable, left_out; scratch and counters are its own
  /// \returns what prompt_attend() returns; out_of_order if K and V up to the last query are not there; budget_exceeded
  ///     naming the option whose capacity is too small; unsupported for a chunk that has no address without `staged`
  ///     (fault: sequence, chunk); io_error, corrupt_chunk; timed_out. On error `out` is untouched
  status attend(const chunk_reader& reader, batch items, std::int32_t layer, const_tensor<3> q, tensor<3> out,
                const attend_options& options, stream_ref stream) noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
