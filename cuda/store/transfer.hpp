// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/cuda/store/copy_span.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Most spans of one copy_group.
inline constexpr std::int64_t max_group_spans = 1024;

/// Copies of equal size in one direction between pinned host memory and the device.
struct copy_group {
  copy_span* spans = nullptr;  ///< [count]; may be reordered
  std::int64_t count = 0;      ///< at most max_group_spans
  std::size_t bytes = 0;       ///< of each; a multiple of 16
  bool to_device = true;
  bool urgent = false;           ///< somebody waits
  std::int64_t whole_count = 0;  ///< spans of the whole request so far, of which this may be a part
  std::uint64_t ticket = 0;      ///< that the event behind these copies will have
};

/// How a device tier's bytes get between the host and the device: all copies of chunks go through one of these,
/// so that tests can put one in between that delays or fails them.
class transfer {
 public:
  virtual ~transfer() = default;
  transfer(const transfer&) = delete;
  transfer& operator=(const transfer&) = delete;

  /// Enqueues the copies on `stream`. On error some may have been enqueued.
  virtual cudaError_t copy(const copy_group& group, cudaStream_t stream) noexcept = 0;

  /// What has become of the copies to the device with this ticket, once the event behind them has come.
  virtual cudaError_t outcome(std::uint64_t ticket) noexcept = 0;

 protected:
  transfer() = default;
};

/// With so many copies of a request the device should begin, while the host puts the next together, twice as many. The
/// engines begin soon; a kernel takes the host 5 us, and waits for the end of the one before.
std::int64_t spans_to_begin_with(recall_method method, bool urgent, std::size_t bytes) noexcept;

/// The copy engines, and for urgent copies to the device the recall kernel if `options` say so.
/// \throws std::bad_alloc
std::unique_ptr<transfer> make_transfer(const device_store_options& options);

/// As cuda::make_store(); `wrap`, if there is one, gets the store's transfer and returns what to use instead.
FLASHMEMORY_API std::unique_ptr<tiered_chunk_store> make_store(
    const store_options& options, const context& device, const device_store_options& how,
    std::unique_ptr<backing_store> backing,
    std::unique_ptr<transfer> (*wrap)(std::unique_ptr<transfer> inner, void* argument), void* argument);

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
