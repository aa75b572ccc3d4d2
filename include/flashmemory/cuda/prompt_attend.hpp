// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/options.hpp>
#include <flashmemory/batch.hpp>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// One item of a call, in device memory: consecutive tokens of a sequence, and the part of its chunks that is there.
struct prompt_row {
  const std::byte* const* chunks = nullptr;  ///< [count], device: chunks in chunk_layout, ascending by id
  /// [count], device: their ids. Chunk c holds the entries from c * entries_per_chunk on; what is not listed is not
  /// attended to.
  const chunk_id* ids = nullptr;
  std::int64_t count = 0;     ///< 0 = nothing here
  std::int64_t entries = 0;   ///< of the sequence that may be read: what lies behind them is never looked at
  std::int64_t position = 0;  ///< of the first token, which sees the entries up to its own, and so on
  std::int64_t first_token = 0;  ///< where its tokens begin in q, out and lse
  std::int32_t tokens = 0;       ///< any number; 0 = an empty item
};

/// What a plan is made for: capacities, not what a call really has.
struct prompt_shape {
  kv_geometry geometry;
  std::int32_t query_heads = 0;  ///< a multiple of kv_heads
  std::int64_t max_items = 0;    ///< of a call
  std::int64_t max_tokens = 0;   ///< of all items of a call together
  std::int64_t max_chunks = 0;   ///< of a sequence: ids are below it
};

/// How the work is cut. Plain data: copy it, keep it, capture calls made with it.
///
/// Results of a token are bit for bit the same for the same plan and the same entries, wherever the chunks lie, whatever else
/// is in the batch, and however its list is cut into calls.
struct prompt_plan {
  prompt_shape shape;
  std::int64_t chunks_per_range =
      0;                      ///< chunks c with equal c / chunks_per_range are worked through in one go
  std::int32_t ranges = 0;    ///< that a sequence of max_chunks falls into; 1 unless there are few tokens
  std::int32_t num_sms = 0;   ///< multiprocessors that the call occupies
  bool tensor_cores = false;  ///< bf16 or f16 with key_dim = value_dim of 64, 128 or 256, on sm_90
};

/// Cuts the work so that calls of max_tokens fill the device.
/// \param num_sms  multiprocessors to fill; 0 = those of the current device
/// \throws argument_error naming the field that cannot work; error with cuda_error without a device
FLASHMEMORY_API prompt_plan plan_prompt(const prompt_shape& shape, std::int32_t num_sms = 0);

/// Bytes of the states of max_tokens tokens. A call needs them unless it is first and last and the plan has one range.
FLASHMEMORY_API std::size_t prompt_state_bytes(const prompt_plan& plan) noexcept;

/// Options of prompt_attend(). `counters` are always needed, `scratch` and `entries` never. Of a part that is not the last one,
/// lse is not written.
struct prompt_options : attend_options {
  /// Device, 16-byte aligned, prompt_state_bytes() of the plan: what parts leave for the ones after them. Each prompt under way
  /// has its own.
  workspace state;
  bool first = true;  ///< whatever is in `state` is nothing yet
  bool last = true;   ///< `out` and `lse` are written, sinks counted; else `out` is not touched
};

/// Attention of items of any length over their chunks, causal among themselves: out = softmax(scale * q k^T) v, f32
/// accumulation; the softmax weights are rounded to the geometry's type before they multiply V where the plan says
/// tensor_cores. Prompts and decode rows may be mixed; long items first fills the device best.
///
/// The lists of one batch may come in parts: calls with the same plan, q and items whose lists follow each other, the first
/// one `first`, the last one `last`. An item may have an empty list in any of them. The bytes are those of one call.
///
/// Enqueued on `stream`; never synchronises, never allocates, can be captured.
/// \param      rows  [n], n <= max_items, device; read when the kernel runs
/// \param      layer [0, layers)
/// \param[in]  q     [tokens of all items, query heads, key_dim], at most max_tokens, the geometry's dtype, unit last stride,
///     rows of 16 aligned bytes; K and V of the tokens themselves are among the entries
/// \param[out] out   [tokens, query heads, value_dim], the geometry's dtype or f32, contiguous; zero for a token that sees
///     nothing. What must not count must still be numbers: a NaN in V shows in all tokens that share a block of 64 entries
///     with one that sees it
/// \returns bad_shape, bad_dtype, null_data, bad_argument, out_of_range (layer), workspace_small (state), unsupported,
///     cuda_error
FLASHMEMORY_API status prompt_attend(const prompt_plan& plan, view<const prompt_row, 1> rows,
                                     std::int32_t layer, const_tensor<3> q, tensor<3> out,
                                     const prompt_options& options, stream_ref stream) noexcept;

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
