// SPDX-License-Identifier: MIT
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <map>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A row-major operand on the device: element (i, j) of batch b lies at data[b * batch + i * stride + j], or, if
/// transposed, at data[b * batch + j * stride + i].
struct matrix {
  const void* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t batch = 0;
  bool transposed = false;
};

/// Matrix products of f32 or of bf16 operands with f32 sums and results, by cuBLASLt. The algorithm of a shape is
/// asked for once; only such as sum in an order of their own making are taken, so that repeating gives the same bits.
class products {
 public:
  /// \param scratch  device, product_bytes, must not be used meanwhile
  products(bool bf16, cudaStream_t stream);
  ~products();
  products(const products&) = delete;
  products& operator=(const products&) = delete;

  /// c[b][m, n] = a[b][m, k] b[b][k, n] + beta * c[b], for `batches` b. Enqueued.
  /// \param beta  0 or 1
  /// \throws error with cuda_error, or unsupported if cuBLASLt has no such product
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, matrix a, matrix b, float beta, float* c,
                std::int64_t c_stride, std::int64_t c_batch, std::int32_t batches, void* scratch);

 private:
  struct plan {
    plan() = default;
    plan(plan&& other) noexcept;
    ~plan();
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };
  using key = std::array<std::int64_t, 13>;
  const plan& plan_of(const key& shape);

  bool bf16_;
  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<key, plan> plans_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
