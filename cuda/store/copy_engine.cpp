// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

#include "recall/gather.hpp"
#include "store/transfer.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

/// From this size on a copy of its own costs the copy engine less than it costs the host to enqueue it.
constexpr std::size_t single_copy_bytes = std::size_t{1} << 20;

class copy_engine final : public transfer {
 public:
  explicit copy_engine(const device_options& options) noexcept
      : kernel_(options.on_demand == recall_method::kernel),
        bulk_(kernel_ && has_bulk_gather()),
        num_sms_(options.num_sms) {}

  cudaError_t copy(const copy_group& group, cudaStream_t stream) noexcept override {
    if (group.count < 1) return cudaSuccess;
    if (group.urgent && group.to_device && kernel_)
      return launch_gather(group.spans, group.count, group.bytes, num_sms_, bulk_, stream);
    const std::size_t count = merge(group);
    const cudaMemcpyKind kind = group.to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    const std::size_t total = std::size_t(group.count) * group.bytes;
#if CUDART_VERSION >= 12080
    if (count > 1 && total / count < single_copy_bytes) {
      cudaMemcpyAttributes attributes{};
      attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
      attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
      std::size_t first = 0;
#if CUDART_VERSION >= 13000
      return cudaMemcpyBatchAsync(to_.data(), from_.data(), bytes_.data(), count, &attributes, &first, 1,
                                  stream);
#else
      std::size_t failed = 0;
      return cudaMemcpyBatchAsync(to_.data(), const_cast<void**>(from_.data()), bytes_.data(), count,
                                  &attributes, &first, 1, &failed, stream);
#endif
    }
#endif
    for (std::size_t i = 0; i < count; ++i) {
      const cudaError_t code = cudaMemcpyAsync(to_[i], from_[i], bytes_[i], kind, stream);
      if (code != cudaSuccess) return code;
    }
    return cudaSuccess;
  }

  cudaError_t outcome(std::uint64_t) noexcept override { return cudaSuccess; }

 private:
  /// Fills the three arrays, joining spans that are neighbours on both sides. \returns how many there are
  std::size_t merge(const copy_group& group) noexcept {
    std::sort(group.spans, group.spans + group.count,
              [](const copy_span& a, const copy_span& b) { return a.from < b.from; });
    std::size_t count = 0;
    for (std::int64_t i = 0; i < group.count; ++i) {
      const copy_span& span = group.spans[i];
      if (count > 0) {
        const std::size_t last = count - 1;
        if (static_cast<const std::byte*>(from_[last]) + bytes_[last] == span.from &&
            static_cast<std::byte*>(to_[last]) + bytes_[last] == span.to) {
          bytes_[last] += group.bytes;
          continue;
        }
      }
      to_[count] = span.to;
      from_[count] = span.from;
      bytes_[count++] = group.bytes;
    }
    return count;
  }

  bool kernel_, bulk_;
  int num_sms_;
  std::array<void*, max_group_spans> to_{};
  std::array<const void*, max_group_spans> from_{};
  std::array<std::size_t, max_group_spans> bytes_{};
};

}  // namespace

std::unique_ptr<transfer> make_transfer(const device_options& options) {
  return std::make_unique<copy_engine>(options);
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
