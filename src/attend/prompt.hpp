// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/attend/call.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// A piece of a prompt, or a decoding item that attends to everything.
struct prompt_unit {
  attend_unit rows;  ///< its chunks are those that are resident
  sequence_handle sequence;
  chunk_id end = 0;  ///< chunks [0, end) hold what its last token sees
  chunk_id own = 0;  ///< chunks [own, end) are attended to wherever they are, the others if they are resident
  bool streamed = false;         ///< not all of those are resident
  std::int64_t tasks = 0;        ///< row blocks of all heads
  std::int64_t first_state = 0;  ///< of them, among those of all streamed items
};

/// Chunks of a wave: a list, as far as it is short of memory, and slots for what has to be read.
inline constexpr std::int64_t wave_list = 1024;

/// Slots of a wave, so that waves can be cut between blocks of entries.
std::int64_t wave_slots(const kv_geometry& geometry) noexcept;

/// Where what pieces of prompts need lies in the workspace, in bytes from its start.
struct prompt_layout {
  std::size_t units = 0;
  std::size_t list = 0;    ///< resident_chunk[wave_list], and
  std::size_t slots = 0;   ///< wave_slots() layers' parts of chunks, and
  std::size_t states = 0;  ///< of the row blocks of all streamed items, if anything is streamed
  std::size_t lanes = 0;
  std::size_t lane_bytes = 0;  ///< of each
  std::size_t bytes = 0;       ///< with `concurrency` lanes

  /// \param start  of this part of the workspace
  prompt_layout(const kv_geometry& geometry, std::int32_t query_heads, std::int64_t items, std::int64_t rows,
                bool streamed, std::int32_t concurrency, std::size_t start) noexcept;
};

/// What an item attends to, given what of it is resident.
prompt_unit plan_prompt(const attend_call& call, const attend_unit& rows, sequence_handle sequence,
                        attend_reach reach) noexcept;

/// Attention of all of them. `base` is the workspace; nothing is written before everything has been read.
status run_prompts(const attend_call& call, const chunk_reader& reader, const prompt_unit* units,
                   std::int64_t count, const attend_options& options, char* base, const prompt_layout& layout,
                   std::int32_t lanes) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
