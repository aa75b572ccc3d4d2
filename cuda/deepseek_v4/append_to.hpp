// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/status.hpp>
#include <flashmemory/store/geometry.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

#include "cuda/core/append_target.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

/// Quantises new entries and their index keys into chunks of kv_format::deepseek_v4, bit for bit as the host's store
/// does; padding is left alone. A kernel per call that reads the targets when it runs; can be captured.
/// \param[in] targets     [num_targets], device; those that name the same chunk name different entries
/// \param     layer       [0, layers)
/// \param[in] entries     [rows, 1, 512], f32 or bf16, unit last stride, rows of 16 aligned bytes, device
/// \param[in] index_keys  [rows, 1, 128], likewise
/// \returns unsupported (format), out_of_range (layer), bad_shape, bad_dtype, bad_argument (alignment), null_data,
///     cuda_error. A target whose row is not in [0, rows) writes nothing
status launch_append_to(const append_target* targets, std::int64_t num_targets, const kv_geometry& geometry,
                        std::int32_t layer, const const_tensor<3>& entries, const const_tensor<3>& index_keys,
                        stream_ref stream, fault* error = nullptr) noexcept;

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
