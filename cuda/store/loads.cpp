// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/core/device_guard.hpp"
#include "cuda/store/device_tier.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

using flashmemory::detail::make_fault;

namespace {

/// Whether batches of copies can be enqueued on it.
bool takes_batches(cudaStream_t stream) noexcept { return stream != nullptr && stream != cudaStreamLegacy; }

}  // namespace

void device_tier::begin_loads(bool urgent) noexcept {
  urgent_ = urgent;
  num_loads_ = 0;
  loads_begun_ = 0;
  start_at_ = spans_to_begin_with(options_.on_demand, urgent, chunk_bytes_);
  loads_started_ = false;
  const device_guard guard(context_.ordinal);
  const bool alone = urgent && !staged() && takes_batches(compute_) && in_.query(in_.issued()) == cudaSuccess;
  loads_stream_ = alone ? compute_ : in_.stream();
}

fault device_tier::load(const chunk_record& from, fast_slot& slot) noexcept {
  const std::byte* source;
  if (staged()) {
    const device_guard guard(context_.ordinal);
    const auto buffer = std::size_t(next_staging_);
    cudaError_t code = cudaSuccess;
    if (staging_loads_[buffer] == in_.next()) {  // this group has used them all
      code = start_loads();
      if (code == cudaSuccess) code = in_.mark();
    }
    if (code == cudaSuccess) code = in_.wait(staging_loads_[buffer], context_.deadline);
    if (code != cudaSuccess) return check(code, "waiting for a staging buffer");
    std::byte* const staging = staging_ + buffer * chunk_bytes_;
    if (const fault f = read_record(from, staging); f.code != status::ok) return f;
    next_staging_ = (next_staging_ + 1) % num_staging_;
    staging_loads_[buffer] = in_.next();
    source = staging;
  } else {
    source = pinned_[from.backing];
    // The first copies begin while the books of the rest are still being kept, which takes a large request about as
    // long as small chunks take to copy.
    if (num_loads_ == start_at_) {
      const device_guard guard(context_.ordinal);
      if (const fault f = check(start_loads(), "copying chunks to the device"); f.code != status::ok)
        return f;
      start_at_ = std::min(2 * start_at_, max_group_spans);
    }
  }
  slot.loads = in_.next();
  loads_[std::size_t(num_loads_++)] = {slot.data, source};
  return {};
}

/// Enqueues the loads collected so far.
cudaError_t device_tier::start_loads() noexcept {
  if (num_loads_ == 0) return cudaSuccess;
  cudaError_t code = cudaSuccess;
  if (!loads_started_) {
    const bool crosses = loads_stream_ != compute_;
    if (crosses) code = follow_compute(loads_stream_);
    if (code == cudaSuccess)
      code = out_.hold_back(loads_stream_, out_.issued(), crosses ? &in_saw_out_ : &compute_saw_out_);
  }
  if (code != cudaSuccess) return code;
  loads_started_ = true;
  copy_group group;
  group.spans = loads_.data();
  group.count = num_loads_;
  group.bytes = chunk_bytes_;
  group.urgent = urgent_;
  group.ticket = in_.next();
  loads_begun_ += num_loads_;
  group.whole_count = loads_begun_;
  num_loads_ = 0;
  return copies_->copy(group, loads_stream_);
}

fault device_tier::flush_loads(std::uint64_t* ticket) noexcept {
  *ticket = 0;
  if (num_loads_ == 0 && !loads_started_) return {};
  const device_guard guard(context_.ordinal);
  const cudaError_t code = start_loads();
  const cudaError_t marked = in_.mark_on(loads_stream_);  // after an error too: part of it may be under way
  loads_started_ = false;
  *ticket = in_.issued();
  return check(code == cudaSuccess ? marked : code, "copying chunks to the device");
}

fault device_tier::loaded(std::uint64_t ticket) noexcept {
  if (ticket == 0) return {};
  const device_guard guard(context_.ordinal);
  const cudaError_t code = in_.query(ticket);
  if (code == cudaErrorNotReady) return make_fault(status::pending, "chunks are on their way");
  return check(code == cudaSuccess ? copies_->outcome(ticket) : code, "copying chunks to the device");
}

fault device_tier::await_loads(std::uint64_t ticket) noexcept {
  if (ticket == 0) return {};
  const device_guard guard(context_.ordinal);
  const cudaError_t code = in_.wait(ticket, context_.deadline);
  return check(code == cudaSuccess ? copies_->outcome(ticket) : code, "copying chunks to the device");
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
