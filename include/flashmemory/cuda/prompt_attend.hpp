// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// One item of a call, in device memory: consecutive tokens of a sequence and the part of its history that is there.
struct prompt_row {
  const std::byte* const* chunks = nullptr;  ///< [count], device: chunks in chunk_layout, ascending by id
  /// [count], device: their ids. Chunk c holds the entries from c * entries_per_chunk on. What is not listed is not
  /// attended to.
  const chunk_id* ids = nullptr;
  std::int64_t count = 0;        ///< 0 = nothing here
  std::int64_t entries = 0;      ///< of the sequence that may be read: what lies behind them is never looked at
  std::int64_t position = 0;     ///< of the first token, which sees the entries up to its own position, and so on
  std::int64_t first_token = 0;  ///< where its tokens begin in q, out and the states
  std::int32_t tokens = 0;       ///< any number; 0 = an empty item
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
