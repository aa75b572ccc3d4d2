// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <flashmemory/cuda/device_indexer.hpp>
#include <memory>

#include "cuda/core/append_target.hpp"
#include "cuda/core/key_page.hpp"
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The key side of an indexer in device memory. A key that is no number is stored as all zero and counted.
class key_encoders {
 public:
  virtual ~key_encoders() = default;
  key_encoders(const key_encoders&) = delete;
  key_encoders& operator=(const key_encoders&) = delete;

  /// Keys [first_key, first_key + count) of a part, whose tokens' rows are in `from` and whose earlier ones are kept.
  /// \param[out] out  [count, index_keys.bytes()] rows
  virtual cudaError_t encode(std::int32_t lane, const kept_rows& kept, const row_part& part,
                             const row_tensor& from, std::int64_t first_key, std::int64_t count,
                             std::byte* out, unsigned long long* nan_keys, cudaStream_t stream) noexcept = 0;

  /// The keys that a decode step completes, from kept rows alone, to their pages: key j of row r is that of tokens
  /// ending with (positions[r] / tokens_per_key + j + 1) * tokens_per_key - 1.
  /// \param targets  [rows * per_row]
  virtual cudaError_t encode_step(std::int32_t lane, const kept_rows& kept, const std::int64_t* places,
                                  const std::int64_t* positions, const append_target* targets,
                                  std::int64_t rows, std::int32_t per_row, const key_page& page,
                                  unsigned long long* nan_keys, cudaStream_t stream) noexcept = 0;

 protected:
  key_encoders() = default;
};

/// An indexer of the library's own, which makes its index keys itself.
class library_indexer : public device_indexer {
 public:
  /// Called once, before reserve(). Null if its index keys are the engine's.
  /// \throws admission_error, error with cuda_error
  virtual std::unique_ptr<key_encoders> make_encoders(const memory_resource& memory) const = 0;

 protected:
  using device_indexer::device_indexer;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
