// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/record/document.hpp>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Appends one part of a document, as a shard holds it under "<number>.<part>.", to what earlier parts made.
/// The document as a whole is not checked.
/// \throws format_error naming the shard and the tensor for a wrong type or shape
void append_part(const safetensors_file& shard, std::int64_t number, std::int64_t part,
                 const recording_geometry& geometry, document& doc);

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
