// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// A row-major matrix operand: element (i, j) lies at data[i * stride + j], or, if transposed, at
/// data[j * stride + i].
template <class Real>
struct operand {
  const Real* data;
  std::int64_t stride;
  bool transposed = false;
};

/// c[m, n] = alpha * a[m, k] b[k, n] + beta * c, on the calling thread. The seam behind which a BLAS stands.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, operand<float> a, operand<float> b,
          float beta, float* c, std::int64_t c_stride);
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, operand<double> a, operand<double> b,
          double beta, double* c, std::int64_t c_stride);

/// The same on several threads. The output is cut into blocks of a fixed size, so its bits do not depend on
/// how many threads there are.
template <class Real>
void parallel_gemm(const thread_hook& threads, std::int64_t m, std::int64_t n, std::int64_t k, Real alpha,
                   operand<Real> a, operand<Real> b, Real beta, Real* c, std::int64_t c_stride);

/// Keeps the BLAS on the calling thread while it lives, where the BLAS can be told so: the trainer brings its
/// own parallelism, and a BLAS that splits sums by its number of threads would make results depend on it.
class serial_blas {
 public:
  serial_blas() noexcept;
  ~serial_blas();
  serial_blas(const serial_blas&) = delete;
  serial_blas& operator=(const serial_blas&) = delete;

 private:
  int before_ = 0;
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
