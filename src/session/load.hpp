// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/session.hpp>

#include "src/session/byte_source.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// load_session() from any source of bytes.
sequence_handle load_session_from(byte_source& in, chunk_store& store, selector* select,
                                  const sequence_options& options);

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
