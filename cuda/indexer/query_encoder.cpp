// SPDX-License-Identifier: MIT
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <flashmemory/cuda/query_encoder.hpp>
#include <flashmemory/error.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/core/device_guard.hpp"
#include "cuda/core/error.hpp"
#include "cuda/indexer/encode_kernels.hpp"
#include "src/core/convert.hpp"
#include "src/indexer/rope.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t product_scratch = std::size_t{16} << 20;

std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

using detail::ask;
using detail::block_kind;
using detail::device_guard;
using detail::memory_block;

void ask(cublasStatus_t code) {
  if (code != CUBLAS_STATUS_SUCCESS)
    throw error(status::cuda_error, fmt::format("query_encoder: {}", cublasLtGetStatusString(code)));
}

cudaDataType_t type_of(dtype type) { return type == dtype::f32 ? CUDA_R_32F : CUDA_R_16BF; }

/// [retrievers] x: y [m, n] = x [m, k] w^T with w [n, k], for m up to a capacity. Algorithms are chosen at set-up, for
/// powers of two; what lies in rows beyond the wanted ones is multiplied along and never read.
class batched_product {
 public:
  batched_product(cublasLtHandle_t handle, dtype type, std::int32_t batches, std::int64_t n, std::int64_t k,
                  std::int64_t capacity)
      : handle_(handle) {
    ask(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    ask(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                       sizeof transpose));
    const auto layout = [&](cublasLtMatrixLayout_t* out, cudaDataType_t element, std::int64_t rows,
                            std::int64_t columns, std::int64_t stride) {
      ask(cublasLtMatrixLayoutCreate(out, element, std::uint64_t(rows), std::uint64_t(columns), rows));
      ask(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batches,
                                           sizeof batches));
      ask(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride));
    };
    layout(&w_, type_of(type), k, n, n * k);
    cublasLtMatmulPreference_t preference;
    ask(cublasLtMatmulPreferenceCreate(&preference));
    ask(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &product_scratch, sizeof product_scratch));
    for (std::int64_t m = 1; m <= capacity; m *= 2) {
      choice c;
      layout(&c.x, type_of(type), k, m, capacity * k);
      layout(&c.y, CUDA_R_32F, n, m, capacity * n);
      int found = 0;
      const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(handle_, operation_, w_, c.x, c.y, c.y,
                                                                 preference, 1, &c.algorithm, &found);
      choices_.push_back(c);
      if (code != CUBLAS_STATUS_SUCCESS || found == 0) {
        cublasLtMatmulPreferenceDestroy(preference);
        ask(code);
        throw error(status::unsupported,
                    fmt::format("query_encoder: cuBLASLt has no product of {} x {} by {}", n, k, m));
      }
    }
    cublasLtMatmulPreferenceDestroy(preference);
  }
  batched_product(const batched_product&) = delete;
  batched_product& operator=(const batched_product&) = delete;
  ~batched_product() {
    for (auto& c : choices_) {
      cublasLtMatrixLayoutDestroy(c.x);
      cublasLtMatrixLayoutDestroy(c.y);
    }
    if (w_ != nullptr) cublasLtMatrixLayoutDestroy(w_);
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
  }

  cublasStatus_t run(const void* w, const void* x, void* y, std::int64_t m, void* scratch,
                     cudaStream_t stream) const {
    std::size_t i = 0;
    while ((std::int64_t{1} << i) < m) ++i;
    const choice& c = choices_[i];
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle_, operation_, &one, w, w_, x, c.x, &zero, y, c.y, y, c.y, &c.algorithm.algo,
                          scratch, product_scratch, stream);
  }

 private:
  struct choice {
    cublasLtMatrixLayout_t x = nullptr, y = nullptr;
    cublasLtMatmulHeuristicResult_t algorithm;
  };
  cublasLtHandle_t handle_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr;
  std::vector<choice> choices_;
};

void append_as(dtype type, const std::vector<float>& values, std::byte*& to) {
  if (type == dtype::f32) {
    std::memcpy(to, values.data(), values.size() * sizeof(float));
    to += values.size() * sizeof(float);
    return;
  }
  for (const float value : values) {
    bfloat16 rounded;
    flashmemory::detail::from_float(value, rounded);
    std::memcpy(to, &rounded, sizeof rounded);
    to += sizeof rounded;
  }
}

class lt_handle {
 public:
  lt_handle() { ask(cublasLtCreate(&handle_)); }
  lt_handle(const lt_handle&) = delete;
  lt_handle& operator=(const lt_handle&) = delete;
  ~lt_handle() { cublasLtDestroy(handle_); }
  cublasLtHandle_t get() const { return handle_; }

 private:
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace

struct query_encoder::impl {
  std::int32_t device, retrievers, hidden, rank, heads, max_rows;
  std::int64_t capacity;  // rows of operands: two parts of max_rows, rounded up to a power of two
  dtype weights;
  float eps;
  bool bf16_rounding, rope;
  std::int64_t max_positions;
  lt_handle handle;
  batched_product first, second;
  std::size_t first_bytes, second_bytes, norm_bytes;
  memory_block memory;

  static std::int64_t capacity_for(std::int32_t rows) {
    std::int64_t capacity = 1;
    while (capacity < 2 * std::int64_t{rows}) capacity *= 2;
    return capacity;
  }

  impl(const dual_encoder_config& c, const context& d, const query_encoder_options& o)
      : device(d.ordinal),
        retrievers(static_cast<std::int32_t>(c.retrievers.size())),
        hidden(c.hidden),
        rank(c.rank),
        heads(c.heads),
        max_rows(o.max_rows),
        capacity(capacity_for(o.max_rows)),
        weights(o.weights),
        eps(c.q_norm_eps),
        bf16_rounding(c.bf16_rounding),
        rope(c.rope.dim != 0),
        max_positions(c.rope.max_positions),
        first(handle.get(), o.weights, retrievers, std::int64_t{rank} + heads, hidden, capacity),
        second(handle.get(), o.weights, retrievers, std::int64_t{heads} * 128, rank, capacity),
        first_bytes(aligned(std::size_t(retrievers) * std::size_t(rank + heads) * std::size_t(hidden) *
                            size_of(o.weights))),
        second_bytes(aligned(std::size_t(retrievers) * std::size_t(heads) * 128 * std::size_t(rank) *
                             size_of(o.weights))),
        norm_bytes(aligned(std::size_t(retrievers) * std::size_t(rank) * sizeof(float))),
        memory(block_kind::device, d.memory, first_bytes + second_bytes + norm_bytes + alignment,
               "weights of the query encoder") {
    std::vector<std::byte> host(memory.bytes());
    std::byte* a = host.data();
    std::byte* b = host.data() + first_bytes;
    std::byte* norm = host.data() + first_bytes + second_bytes;
    for (const auto& r : c.retrievers) {
      append_as(weights, r.wq_a, a);
      append_as(weights, r.weights_proj, a);
      append_as(weights, r.wq_b, b);
      append_as(dtype::f32, r.q_norm, norm);
    }
    if (rope) {
      const auto frequencies = flashmemory::detail::yarn_frequencies(c.rope);
      std::memcpy(host.data() + first_bytes + second_bytes + norm_bytes, frequencies.data(),
                  sizeof frequencies);
    }
    ask(cudaMemcpy(memory.as<std::byte>(), host.data(), host.size(), cudaMemcpyHostToDevice),
        "query_encoder");
    ask(cudaStreamSynchronize(nullptr),
        "query_encoder");  // copies of pageable memory may return before they have landed
  }

  std::size_t operand_bytes(std::int64_t width) const {
    return aligned(std::size_t(retrievers * capacity * width) * size_of(weights));
  }
  std::size_t product_bytes(std::int64_t width) const {
    return aligned(std::size_t(retrievers * capacity * width) * sizeof(float));
  }
};

query_encoder::query_encoder(const dual_encoder_config& config, const context& device,
                             const query_encoder_options& options) {
  const dual_encoder_indexer checked(config);  // its constructor names whatever is wrong with the weights
  if (config.retrievers.size() > detail::max_retrievers)
    throw argument_error(status::bad_argument, fmt::format("query_encoder: {} retrievers, at most {}",
                                                           config.retrievers.size(), detail::max_retrievers));
  if (options.weights != dtype::f32 && options.weights != dtype::bf16)
    throw argument_error(status::bad_dtype, "query_encoder_options::weights must be bf16 or f32");
  if (options.max_rows < 1 || options.max_rows > 4096)
    throw argument_error(status::bad_argument,
                         fmt::format("query_encoder_options::max_rows must be in [1, 4096], it "
                                     "is {}",
                                     options.max_rows));
  const device_guard guard(device.ordinal);
  impl_ = std::make_unique<impl>(config, device, options);
}

query_encoder::~query_encoder() = default;

std::size_t query_encoder::weight_bytes() const noexcept { return impl_->memory.bytes(); }

std::size_t query_encoder::workspace_bytes() const noexcept {
  const impl& s = *impl_;
  return s.operand_bytes(s.hidden) + s.product_bytes(std::int64_t{s.rank} + s.heads) +
         s.operand_bytes(s.rank) + s.product_bytes(std::int64_t{s.heads} * 128) + product_scratch;
}

status query_encoder::encode(const const_tensor<2>* hidden, const std::int64_t* positions, std::int64_t rows,
                             const encoded_queries& out, workspace scratch, stream_ref stream,
                             fault* error) const noexcept {
  const impl& s = *impl_;
  const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
    return detail::refuse(code, what, expected, actual, error);
  };
  if (rows < 0 || rows > s.max_rows) return refuse(status::bad_shape, "rows", s.max_rows, rows);
  if (stream.is_host()) return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1);
  if (rows == 0) return status::ok;
  if (hidden == nullptr) return refuse(status::null_data, "hidden", -1, -1);
  if (s.rope && positions == nullptr) return refuse(status::null_data, "positions", -1, -1);
  if (out.queries == nullptr) return refuse(status::null_data, "out.queries", -1, -1);
  if (out.weights == nullptr) return refuse(status::null_data, "out.weights", -1, -1);
  if (scratch.data == nullptr) return refuse(status::null_data, "scratch", -1, -1);
  if (scratch.bytes < workspace_bytes())
    return refuse(status::workspace_small, "scratch", std::int64_t(workspace_bytes()),
                  std::int64_t(scratch.bytes));
  if (reinterpret_cast<std::uintptr_t>(scratch.data) % alignment != 0)
    return refuse(status::bad_argument, "scratch alignment", std::int64_t(alignment), -1);
  detail::hidden_rows from;
  bool all_bf16 = true;
  for (std::int32_t r = 0; r < s.retrievers; ++r) {
    const const_tensor<2>& h = hidden[r];
    if (h.data == nullptr) return refuse(status::null_data, "hidden", r, -1);
    if (h.shape[0] != rows) return refuse(status::bad_shape, "hidden rows", rows, h.shape[0]);
    if (h.shape[1] != s.hidden) return refuse(status::bad_shape, "hidden width", s.hidden, h.shape[1]);
    if (h.stride[1] != 1) return refuse(status::bad_shape, "hidden stride", 1, h.stride[1]);
    from.data[r] = h.data;
    from.stride[r] = h.stride[0];
    from.type[r] = h.type;
    all_bf16 = all_bf16 && h.type == dtype::bf16;
  }

  auto* next = static_cast<std::byte*>(scratch.data);
  const auto take = [&](std::size_t bytes) {
    std::byte* const block = next;
    next += bytes;
    return block;
  };
  const auto count = static_cast<std::int32_t>(rows), capacity = static_cast<std::int32_t>(s.capacity);
  const bool split = s.weights == dtype::bf16;
  const detail::operand x{
      take(s.operand_bytes(s.hidden)), s.weights, split && !all_bf16 ? 2 : 1, count, capacity, s.hidden};
  void* const first = take(s.product_bytes(std::int64_t{s.rank} + s.heads));
  const detail::operand a{take(s.operand_bytes(s.rank)), s.weights, split ? 2 : 1, count, capacity, s.rank};
  void* const second = take(s.product_bytes(std::int64_t{s.heads} * 128));
  void* const product = take(product_scratch);
  const cudaStream_t cuda = stream.cuda();
  const auto failed = [&](cublasStatus_t code) {
    if (code == CUBLAS_STATUS_SUCCESS) return false;
    if (error != nullptr) {
      *error = fault{};
      error->code = status::cuda_error;
      error->os_error = static_cast<std::int32_t>(code);
      error->what = "cublasLtMatmul";
    }
    return true;
  };
  status code = detail::check(detail::launch_gather(from, s.retrievers, x, cuda), "gather", error);
  if (code != status::ok) return code;
  if (failed(s.first.run(s.memory.as<std::byte>(), x.data, first, x.parts * rows, product, cuda)))
    return status::cuda_error;
  const auto* const norm =
      reinterpret_cast<const float*>(s.memory.as<std::byte>() + s.first_bytes + s.second_bytes);
  const auto gate_scale = static_cast<float>(1 / std::sqrt(128.0) / std::sqrt(static_cast<double>(s.heads)));
  code = detail::check(detail::launch_normalise(static_cast<const float*>(first), x, norm, s.eps,
                                                s.retrievers, s.heads, gate_scale, a, out.weights, cuda),
                       "normalise", error);
  if (code != status::ok) return code;
  if (failed(s.second.run(s.memory.as<std::byte>() + s.first_bytes, a.data, second, a.parts * rows, product,
                          cuda)))
    return status::cuda_error;
  detail::finish_call finish;
  finish.product = static_cast<const float*>(second);
  finish.from = a;
  finish.positions = positions;
  finish.frequencies = s.rope ? reinterpret_cast<const float*>(s.memory.as<std::byte>() + s.first_bytes +
                                                               s.second_bytes + s.norm_bytes)
                              : nullptr;
  finish.max_positions = s.max_positions;
  finish.retrievers = s.retrievers;
  finish.heads = s.heads;
  finish.bf16_rounding = s.bf16_rounding;
  finish.queries = out.queries;
  finish.weights = out.weights;
  finish.full_precision = out.full_precision;
  return detail::check(detail::launch_finish(finish, cuda), "finish", error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
