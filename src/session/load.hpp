// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/session.hpp>

#include "src/io/input.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// load_session() from any input.
FLASHMEMORY_API sequence_handle load_session_from(input& in, chunk_store& store, selector* select,
                                                  const sequence_options& options,
                                                  const session_options& session);

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
