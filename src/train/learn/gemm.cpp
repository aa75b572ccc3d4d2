// SPDX-License-Identifier: MIT
#include "src/train/learn/gemm.hpp"

#include <cblas.h>

#include <algorithm>

#include "src/core/parallel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

CBLAS_TRANSPOSE transposition(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

// Rows or columns of the output that one task makes: large enough for a BLAS to reach its speed, small enough
// to keep a few cores busy.
constexpr std::int64_t block = 64;

}  // namespace

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, operand<float> a, operand<float> b,
          float beta, float* c, std::int64_t c_stride) {
  if (m == 0 || n == 0) return;
  cblas_sgemm(CblasRowMajor, transposition(a.transposed), transposition(b.transposed), static_cast<int>(m),
              static_cast<int>(n), static_cast<int>(k), alpha, a.data, static_cast<int>(a.stride), b.data,
              static_cast<int>(b.stride), beta, c, static_cast<int>(c_stride));
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, operand<double> a, operand<double> b,
          double beta, double* c, std::int64_t c_stride) {
  if (m == 0 || n == 0) return;
  cblas_dgemm(CblasRowMajor, transposition(a.transposed), transposition(b.transposed), static_cast<int>(m),
              static_cast<int>(n), static_cast<int>(k), alpha, a.data, static_cast<int>(a.stride), b.data,
              static_cast<int>(b.stride), beta, c, static_cast<int>(c_stride));
}

template <class Real>
void parallel_gemm(const thread_hook& threads, std::int64_t m, std::int64_t n, std::int64_t k, Real alpha,
                   operand<Real> a, operand<Real> b, Real beta, Real* c, std::int64_t c_stride) {
  const bool by_rows = m > n;
  const std::int64_t extent = by_rows ? m : n;
  const auto tasks = static_cast<std::int32_t>((extent + block - 1) / block);
  flashmemory::detail::parallel_for(threads, tasks, [&](std::int32_t task) {
    const std::int64_t first = std::int64_t{task} * block;
    const std::int64_t count = std::min(block, extent - first);
    if (by_rows) {
      operand<Real> part = a;
      part.data += a.transposed ? first : first * a.stride;
      gemm(count, n, k, alpha, part, b, beta, c + first * c_stride, c_stride);
    } else {
      operand<Real> part = b;
      part.data += b.transposed ? first * b.stride : first;
      gemm(m, count, k, alpha, a, part, beta, c + first, c_stride);
    }
  });
}

template void parallel_gemm(const thread_hook&, std::int64_t, std::int64_t, std::int64_t, float,
                            operand<float>, operand<float>, float, float*, std::int64_t);
template void parallel_gemm(const thread_hook&, std::int64_t, std::int64_t, std::int64_t, double,
                            operand<double>, operand<double>, double, double*, std::int64_t);

#if defined(FLASHMEMORY_OPENBLAS)
serial_blas::serial_blas() noexcept : before_(openblas_get_num_threads()) { openblas_set_num_threads(1); }
serial_blas::~serial_blas() { openblas_set_num_threads(before_); }
#else
serial_blas::serial_blas() noexcept = default;
serial_blas::~serial_blas() = default;
#endif

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
