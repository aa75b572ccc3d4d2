// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace detail {

inline constexpr const char* artifact_format = "flashmemory.dual_encoder";
inline constexpr const char* artifact_version = "1";

/// What load_dual_encoder() does once the file is open.
dual_encoder_config read_dual_encoder(const safetensors_file& file,
                                      const std::vector<std::int32_t>& layer_of_id);

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
