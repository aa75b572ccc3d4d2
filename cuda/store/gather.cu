// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/cuda/store/gather.cuh>

#include "cuda/store/gather.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// Blocks that a launch's parameters have room for: more take longer to launch.
constexpr int few = 8, some = 64, most = 512;

template <int N>
cudaError_t launch(const copy_span* spans, std::int64_t count, std::size_t bytes, int num_sms, bool bulk,
                   cudaStream_t stream) noexcept {
  gather::span_table<N> table;
  std::copy(spans, spans + count, table.spans);
  return bulk ? gather::launch_bulk(table, count, bytes, num_sms, stream)
              : gather::launch_portable(table, count, bytes, num_sms, stream);
}

}  // namespace

bool has_bulk_gather() noexcept {
  return gather::make_bulk_ready<gather::span_table<few>>() &&
         gather::make_bulk_ready<gather::span_table<some>>() &&
         gather::make_bulk_ready<gather::span_table<most>>();
}

cudaError_t launch_gather(const copy_span* spans, std::int64_t count, std::size_t bytes, int num_sms,
                          bool bulk, cudaStream_t stream) noexcept {
  cudaError_t code = cudaSuccess;
  while (count > 0 && code == cudaSuccess) {
    const std::int64_t now = std::min<std::int64_t>(count, most);
    const auto run = now <= few ? launch<few> : now <= some ? launch<some> : launch<most>;
    code = run(spans, now, bytes, num_sms, bulk, stream);
    spans += now;
    count -= now;
  }
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
