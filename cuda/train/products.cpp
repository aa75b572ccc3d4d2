// SPDX-License-Identifier: MIT
#include "cuda/train/products.hpp"

#include <fmt/format.h>

#include <flashmemory/error.hpp>
#include <utility>

#include "cuda/train/layout.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

void ask(cublasStatus_t code) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  throw error(status::cuda_error, fmt::format("training backend: {}", cublasLtGetStatusString(code)));
}

}  // namespace

products::products(bool bf16, cudaStream_t stream) : bf16_(bf16), stream_(stream) {
  ask(cublasLtCreate(&handle_));
}

products::~products() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

products::plan::plan(plan&& other) noexcept
    : operation(std::exchange(other.operation, nullptr)),
      a(std::exchange(other.a, nullptr)),
      b(std::exchange(other.b, nullptr)),
      c(std::exchange(other.c, nullptr)),
      algorithm(other.algorithm) {}

products::plan::~plan() {
  for (cublasLtMatrixLayout_t layout : {a, b, c}) {
    if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  }
  if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
}

const products::plan& products::plan_of(const key& shape) {
  const auto found = plans_.find(shape);
  if (found != plans_.end()) return found->second;
  const auto [m, n, k, a_stride, a_batch, a_turned, b_stride, b_batch, b_turned, beta, c_stride, c_batch,
              batches] = shape;
  (void)beta;
  plan made;
  ask(cublasLtMatmulDescCreate(&made.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  // cuBLASLt counts by columns: a row-major matrix is its transpose there, and c^T = b^T a^T.
  const auto set = [&](cublasLtMatmulDescAttributes_t which, bool turned) {
    const cublasOperation_t operation = turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    ask(cublasLtMatmulDescSetAttribute(made.operation, which, &operation, sizeof operation));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, b_turned != 0);
  set(CUBLASLT_MATMUL_DESC_TRANSB, a_turned != 0);
  const auto layout = [&](cublasLtMatrixLayout_t* out, cudaDataType_t type, std::int64_t rows,
                          std::int64_t columns, std::int64_t stride, std::int64_t batch) {
    ask(cublasLtMatrixLayoutCreate(out, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(columns), stride));
    const auto count = static_cast<std::int32_t>(batches);
    ask(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    ask(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch,
                                         sizeof batch));
  };
  const cudaDataType_t type = bf16_ ? CUDA_R_16BF : CUDA_R_32F;
  layout(&made.a, type, b_turned != 0 ? k : n, b_turned != 0 ? n : k, b_stride, b_batch);
  layout(&made.b, type, a_turned != 0 ? m : k, a_turned != 0 ? k : m, a_stride, a_batch);
  layout(&made.c, CUDA_R_32F, n, m, c_stride, c_batch);
  cublasLtMatmulPreference_t preference;
  ask(cublasLtMatmulPreferenceCreate(&preference));
  // Both reductions of a split sum add parts in a fixed order.
  const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasStatus_t code = cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
  if (code == CUBLAS_STATUS_SUCCESS) {
    code = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &product_bytes, sizeof product_bytes);
  }
  int count = 0;
  cublasLtMatmulHeuristicResult_t result{};
  if (code == CUBLAS_STATUS_SUCCESS) {
    code = cublasLtMatmulAlgoGetHeuristic(handle_, made.operation, made.a, made.b, made.c, made.c, preference,
                                          1, &result, &count);
  }
  cublasLtMatmulPreferenceDestroy(preference);
  if (code != CUBLAS_STATUS_SUCCESS || count == 0) {
    throw error(status::unsupported,
                fmt::format("training backend: cuBLASLt has no product of {} x {} by {}", m, k, n));
  }
  made.algorithm = result.algo;
  return plans_.emplace(shape, std::move(made)).first->second;
}

void products::multiply(std::int64_t m, std::int64_t n, std::int64_t k, matrix a, matrix b, float beta,
                        float* c, std::int64_t c_stride, std::int64_t c_batch, std::int32_t batches,
                        void* scratch) {
  if (m == 0 || n == 0 || k == 0) return;
  const plan& p = plan_of({m, n, k, a.stride, a.batch, a.transposed ? 1 : 0, b.stride, b.batch,
                           b.transposed ? 1 : 0, beta != 0 ? 1 : 0, c_stride, c_batch, batches});
  const float one = 1;
  ask(cublasLtMatmul(handle_, p.operation, &one, b.data, p.a, a.data, p.b, &beta, c, p.c, c, p.c,
                     &p.algorithm, scratch, product_bytes, stream_));
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
