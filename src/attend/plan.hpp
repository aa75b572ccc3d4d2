// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/attend/call.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Records what is wrong in options.error, if that is given, and returns its code.
inline status refuse(const attend_options& options, const fault& f) noexcept {
  if (options.error != nullptr) *options.error = f;
  return f.code;
}

inline status refuse(const attend_options& options, status code, const char* what, std::int64_t expected = -1,
                     std::int64_t actual = -1) noexcept {
  fault f;
  f.code = code;
  f.what = what;
  f.expected = expected;
  f.actual = actual;
  return refuse(options, f);
}

/// Where the parts of the workspace lie, in bytes from its start.
struct attend_layout {
  std::size_t states = 0;
  std::size_t sums = 0;
  std::size_t end = 0;    ///< where pieces of prompts may have theirs
  std::size_t bytes = 0;  ///< with room to align the scratch

  attend_layout(const kv_geometry& geometry, std::int32_t query_heads, std::int64_t rows,
                std::int64_t max_splits) noexcept;
};

/// Most splits that a sequence of up to `chunks` resident chunks can have; at least one, so that somebody
/// writes the output.
std::int64_t most_splits(const kv_geometry& geometry, std::int64_t chunks) noexcept;

/// Checks everything about a call that does not depend on its sequences, and fills `call` from it.
status check_call(const chunk_reader& reader, std::int32_t layer, const const_tensor<3>& q,
                  const attend_options& options, attend_call& call) noexcept;

/// Checks how many tokens an item has.
status check_tokens(const batch_item& item, const attend_options& options) noexcept;

/// Checks the rest of an item against the store and describes it in `unit`.
status check_item(const chunk_reader& reader, const batch_item& item, std::int32_t layer,
                  const attend_options& options, attend_unit& unit) noexcept;

/// Checks the level-2 list of `unit`, which has one token.
status check_list(const attend_call& call, const attend_unit& unit, const batch_item& item,
                  const attend_options& options) noexcept;

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
