// SPDX-License-Identifier: MIT
#include "cuda/store/device_tier.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <flashmemory/error.hpp>

#include "cuda/core/device_guard.hpp"
#include "cuda/core/device_wait.hpp"
#include "src/store/rows.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

using flashmemory::detail::make_fault;

namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t piece_memory = std::size_t{4} << 20, staging_memory = std::size_t{64} << 20;

std::int64_t buffers_in(std::size_t bytes, std::size_t each) noexcept {
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(bytes / each), 2, 64);
}

void require(cudaError_t code, const char* what) {
  if (code != cudaSuccess)
    throw error(status::cuda_error, fmt::format("{}: {}", what, cudaGetErrorString(code)));
}

/// Now, beside whatever other streams do; on a stream of its own, since any other may have an engine's work in it.
cudaError_t zero(void* block, std::size_t bytes, std::chrono::milliseconds deadline) noexcept {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  cudaError_t code = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (code == cudaSuccess) code = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (code == cudaSuccess) code = cudaMemsetAsync(block, 0, bytes, stream);
  if (code == cudaSuccess) code = cudaEventRecord(event, stream);
  if (code == cudaSuccess) code = wait_for(event, deadline);
  if (event) cudaEventDestroy(event);
  if (stream) cudaStreamDestroy(stream);
  return code;
}

const context& checked(const context& device) {
  const auto refuse = [](const char* field, std::int64_t value, const char* rule) {
    throw argument_error(status::bad_argument,
                         fmt::format("cuda::context::{} is {}; {}", field, value, rule));
  };
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  if (device.ordinal < 0 || device.ordinal >= count)
    throw error(
        status::unsupported,
        fmt::format("cuda::context::ordinal is {}, but {} CUDA devices are there", device.ordinal, count));
  if (device.num_sms < 0) refuse("num_sms", device.num_sms, "it must not be negative");
  if (device.deadline.count() < 1) refuse("deadline", device.deadline.count(), "it must be at least 1 ms");
  if (!device.memory.allocate != !device.memory.deallocate)
    throw argument_error(status::null_data, "cuda::context::memory lacks a function");
  if (!device.pinned.allocate != !device.pinned.deallocate)
    throw argument_error(status::null_data, "cuda::context::pinned lacks a function");
  return device;
}

const device_store_options& checked(const device_store_options& options) {
  const auto refuse = [](const char* field, std::int64_t value, const char* rule) {
    throw argument_error(status::bad_argument,
                         fmt::format("device_store_options::{} is {}; {}", field, value, rule));
  };
  if (options.recall_sms < 1) refuse("recall_sms", options.recall_sms, "it must be at least 1");
  if (options.touch_threads < 1) refuse("touch_threads", options.touch_threads, "it must be at least 1");
  if (options.initial_slots < 0) refuse("initial_slots", options.initial_slots, "it must not be negative");
  if (options.pinned_slab_bytes < 1) refuse("pinned_slab_bytes", 0, "it must be at least 1");
  if (options.on_demand < recall_method::automatic || options.on_demand > recall_method::copy_engine)
    refuse("on_demand", static_cast<int>(options.on_demand), "it must be automatic, kernel or copy_engine");
  return options;
}

}  // namespace

device_tier::device_tier(const kv_geometry& geometry, const context& device,
                         const device_store_options& options)
    : context_(checked(device)),
      options_(checked(options)),
      backing_memory_(pinned_memory()),
      layout_(geometry),
      chunk_bytes_(layout_.chunk_bytes()),
      layer_bytes_(layout_.layer_bytes()),
      num_pieces_(buffers_in(piece_memory, layer_bytes_)),
      pinned_(backing_memory_, chunk_bytes_, options_.pinned_slab_bytes) {
  const device_guard guard(context_.ordinal);
  require(in_.open(), "making the stream for copies to the device");
  require(out_.open(), "making the stream for copies from the device");
  require(cudaEventCreateWithFlags(&compute_event_, cudaEventDisableTiming), "making an event");
  compute_ = in_.stream();
}

/// The engine's, or the default: registering is faster where the device can use the host's pointers to what was
/// registered.
memory_resource device_tier::pinned_memory() const {
  if (context_.pinned.allocate) return context_.pinned;
  int same_pointer = 0;
  require(
      cudaDeviceGetAttribute(&same_pointer, cudaDevAttrCanUseHostPointerForRegisteredMem, context_.ordinal),
      "asking for a device attribute");
  return same_pointer ? touched_pinned_memory(&options_.touch_threads) : allocated_pinned_memory();
}

device_tier::~device_tier() {
  const device_guard guard(context_.ordinal);
  if (compute_event_) cudaEventDestroy(compute_event_);
  in_.close();
  out_.close();
}

fault device_tier::check(cudaError_t code, const char* what) const noexcept {
  if (code == cudaSuccess) return {};
  if (code == cudaErrorNotReady) return make_fault(status::timed_out, what);
  cudaGetLastError();
  fault f = make_fault(status::cuda_error, what);
  f.os_error = static_cast<std::int32_t>(code);
  return f;
}

memory_resource device_tier::memory() const noexcept {
  memory_resource resource;
  resource.context = const_cast<device_tier*>(this);
  resource.allocate = [](void* context, std::size_t bytes, std::size_t wanted) -> void* {
    auto& self = *static_cast<device_tier*>(context);
    const device_guard guard(self.context_.ordinal);
    const memory_resource& own = self.context_.memory;
    void* block = nullptr;
    cudaError_t code = cudaSuccess;
    if (own.allocate)
      block = own.allocate(own.context, bytes, std::max(wanted, alignment));
    else
      code = cudaMalloc(&block, bytes);  // aligned to 256 bytes
    // A chunk that is not complete is copied as a whole, so what no row has been written to must be something.
    if (code == cudaSuccess && block && (code = zero(block, bytes, self.context_.deadline)) != cudaSuccess) {
      if (code != cudaErrorNotReady) self.memory().deallocate(context, block, bytes, wanted);
      block = nullptr;
    }
    if (code != cudaSuccess) {
      cudaGetLastError();
      std::snprintf(self.failure_, sizeof self.failure_, " (device memory: %s)", cudaGetErrorString(code));
    }
    return block;
  };
  resource.deallocate = [](void* context, void* block, std::size_t bytes, std::size_t wanted) {
    auto& self = *static_cast<device_tier*>(context);
    if (self.stuck_) return;  // lost: it may still be in use
    const device_guard guard(self.context_.ordinal);
    const memory_resource& own = self.context_.memory;
    if (own.allocate)
      own.deallocate(own.context, block, bytes, std::max(wanted, alignment));
    else
      cudaFree(block);
  };
  return resource;
}

void device_tier::open_backing(const store_options& options, std::int64_t records,
                               std::unique_ptr<backing_store> own) {
  if (own)
    backing_ = std::move(own);
  else if (!options.backing_path.empty())
    backing_ = make_file_backing(options.backing_path, records, chunk_bytes_, options.reserve_backing);
  else if (options.verify_ram)
    backing_ = make_ram_backing(records, chunk_bytes_, options.memory);
  verify_ = backing_ && (options.verify_ram || backing_->needs_verification());
  if (!backing_) pinned_.set_limit(records);
}

bool device_tier::set_up(fast_memory& memory) noexcept {
  const device_guard guard(context_.ordinal);
  pieces_ = static_cast<std::byte*>(memory.allocate_data(workspace_bytes(), alignment));
  if (!pieces_) return false;
  bool made = true;  // pieces_ is zero, and its padding stays so
  if (staged()) {
    num_staging_ = buffers_in(staging_memory, chunk_bytes_);
    staging_ = static_cast<std::byte*>(
        backing_memory_.allocate(backing_memory_.context, std::size_t(num_staging_) * chunk_bytes_, 4096));
    made = staging_ != nullptr;
    if (!made) std::snprintf(failure_, sizeof failure_, " (no pinned memory for staging)");
  }
  if (!made) tear_down(memory);
  return made;
}

void device_tier::tear_down(fast_memory& memory) noexcept {
  const device_guard guard(context_.ordinal);
  if (in_.wait(in_.issued(), context_.deadline) != cudaSuccess ||
      out_.wait(out_.issued(), context_.deadline) != cudaSuccess)
    give_up();
  memory.release_data(pieces_, workspace_bytes(), alignment);
  if (staging_ && !stuck_)
    backing_memory_.deallocate(backing_memory_.context, staging_, std::size_t(num_staging_) * chunk_bytes_,
                               4096);
  pieces_ = staging_ = nullptr;
}

bool device_tier::reserve_records(std::int64_t records) noexcept {
  if (staged()) {
    int os_error = 0;
    const status code = backing_->reserve(records, &os_error);
    if (code == status::ok) return true;
    std::snprintf(failure_, sizeof failure_, " (backing store: %s)",
                  os_error != 0 ? std::strerror(os_error) : to_string(code));
    return false;
  }
  const device_guard guard(context_.ordinal);
  if (pinned_.reserve(records)) return true;
  std::snprintf(failure_, sizeof failure_, " (no pinned memory for %lld chunks)",
                static_cast<long long>(records));
  return false;
}

bool device_tier::idle() noexcept {
  const device_guard guard(context_.ordinal);
  return cudaEventRecord(compute_event_, compute_) == cudaSuccess &&
         wait_for(compute_event_, context_.deadline) == cudaSuccess &&
         in_.wait(in_.issued(), context_.deadline) == cudaSuccess &&
         out_.wait(out_.issued(), context_.deadline) == cudaSuccess;
}

void device_tier::shut_down() noexcept {
  const device_guard guard(context_.ordinal);
  if (wait_for_device(context_.deadline) == cudaErrorNotReady) give_up();
  compute_ = in_.stream();
}

/// What the device does not let go of is never given back.
void device_tier::give_up() noexcept {
  stuck_ = true;
  pinned_.abandon();
}

fault device_tier::scrub(fast_slot& slot, std::int64_t first_entry) noexcept {
  const device_guard guard(context_.ordinal);
  cudaError_t code = fence(slot);
  if (first_entry == 0) {
    if (code == cudaSuccess) code = cudaMemsetAsync(slot.data, 0, chunk_bytes_, compute_);
    return check(code, "scrubbing a slot");
  }
  // The same range of every layer at a time.
  flashmemory::detail::for_each_tail(layout_, first_entry, [&](std::size_t offset, std::size_t bytes) {
    if (code == cudaSuccess && bytes > 0)
      code = cudaMemset2DAsync(slot.data + offset, layer_bytes_, 0, bytes,
                               std::size_t(layout_.geometry.layers), compute_);
  });
  return check(code, "scrubbing a slot");
}

fault device_tier::order(stream_ref stream) const noexcept {
  if (stream.is_host() || stream.cuda() == compute_) return {};
  // A graph orders its own work; what the store has queued comes before its launch or not.
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream.cuda(), &capturing) != cudaSuccess) cudaGetLastError();
  if (capturing != cudaStreamCaptureStatusNone) return {};
  const std::lock_guard<std::mutex> lock(read_mutex_);
  const device_guard guard(context_.ordinal);
  cudaError_t code = follow_compute(stream.cuda());
  // Who reads records has to see what is still being written through.
  std::uint64_t none = 0;
  if (code == cudaSuccess) code = out_.hold_back(stream.cuda(), out_.issued(), &none);
  return check(code, "ordering a stream behind the store's");
}

fault device_tier::enter(stream_ref stream) noexcept {
  if (stream.is_host()) return make_fault(status::unsupported, "the host stream on the CUDA backend");
  num_targets_ = 0;
  num_outgoing_ = num_saves_ = 0;
  if (stream.cuda() == compute_) return {};
  const device_guard guard(context_.ordinal);
  const cudaError_t code = follow_compute(stream.cuda());
  if (code == cudaSuccess) compute_ = stream.cuda();
  return check(code, "ordering the stream behind the one before");
}

fault device_tier::leave(stream_ref) noexcept { return flush_saves(); }

/// What is enqueued on `lane` from now on comes after everything that is on the caller's stream now.
cudaError_t device_tier::follow_compute(cudaStream_t lane) const noexcept {
  const cudaError_t code = cudaEventRecord(compute_event_, compute_);
  return code == cudaSuccess ? cudaStreamWaitEvent(lane, compute_event_, 0) : code;
}

/// What is enqueued on the caller's stream from now on comes after the copies into the slot and out of it.
cudaError_t device_tier::fence(const fast_slot& slot) noexcept {
  const cudaError_t code = in_.hold_back(compute_, slot.loads, &compute_saw_in_);
  return code == cudaSuccess ? out_.hold_back(compute_, slot.saves, &compute_saw_out_) : code;
}

void device_tier::poison(fast_slot& slot) noexcept {
  const device_guard guard(context_.ordinal);
  if (follow_compute(in_.stream()) == cudaSuccess &&
      out_.hold_back(in_.stream(), slot.saves, &in_saw_out_) == cudaSuccess &&
      cudaMemsetAsync(slot.data, 0xff, chunk_bytes_, in_.stream()) == cudaSuccess &&
      in_.mark() == cudaSuccess)
    slot.loads = in_.issued();
}

void device_tier::prepare(fast_slot& slot) noexcept {
  const device_guard guard(context_.ordinal);
  // An error here is sticky: the launch of the rows reports it.
  if (fence(slot) != cudaSuccess) return;
  flashmemory::detail::for_each_padding(layout_, [&](std::size_t offset, std::size_t bytes) {
    cudaMemset2DAsync(slot.data + offset, layer_bytes_, 0, bytes, std::size_t(layout_.geometry.layers),
                      compute_);
  });
}

fault device_tier::copy_slot(fast_slot& to, const fast_slot& from) noexcept {
  const device_guard guard(context_.ordinal);
  cudaError_t code = fence(to);
  if (code == cudaSuccess) code = fence(from);
  if (code == cudaSuccess)
    code = cudaMemcpyAsync(to.data, from.data, chunk_bytes_, cudaMemcpyDeviceToDevice, compute_);
  return check(code, "copying a slot");
}

fault device_tier::copy_keys(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  const device_guard guard(context_.ordinal);
  return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, compute_), "copying index keys");
}

fault device_tier::read_slot(const fast_slot& slot, std::byte* chunk) const noexcept {
  const std::lock_guard<std::mutex> lock(read_mutex_);
  const device_guard guard(context_.ordinal);
  cudaError_t code = cudaEventRecord(compute_event_, compute_);
  if (code == cudaSuccess) code = wait_for(compute_event_, context_.deadline);
  if (code == cudaSuccess) code = in_.wait(slot.loads, context_.deadline);
  if (code == cudaSuccess) code = out_.wait(out_.issued(), context_.deadline);
  if (code == cudaSuccess)
    code = cudaMemcpyAsync(chunk, slot.data, chunk_bytes_, cudaMemcpyDeviceToHost, out_.stream());
  if (code == cudaSuccess) code = out_.mark();
  if (code == cudaSuccess) code = out_.wait(out_.issued(), context_.deadline);
  return check(code, "reading a slot");
}

fault device_tier::write_slot(fast_slot& slot, const std::byte* chunk) noexcept {
  const device_guard guard(context_.ordinal);
  cudaError_t code = cudaEventRecord(compute_event_, compute_);
  if (code == cudaSuccess) code = wait_for(compute_event_, context_.deadline);
  if (code == cudaSuccess) code = in_.wait(in_.issued(), context_.deadline);
  if (code == cudaSuccess) code = out_.wait(slot.saves, context_.deadline);
  if (code == cudaSuccess)
    code = cudaMemcpyAsync(slot.data, chunk, chunk_bytes_, cudaMemcpyHostToDevice, in_.stream());
  if (code == cudaSuccess) code = in_.mark();
  if (code == cudaSuccess) {
    slot.loads = in_.issued();
    code = in_.wait(slot.loads, context_.deadline);
  }
  return check(code, "writing a slot");
}

fault device_tier::append_index_keys(std::byte* pages, std::int64_t first_key,
                                     const view<const std::byte, 2>& keys) noexcept {
  const device_guard guard(context_.ordinal);
  return check(launch_keys(layout_.geometry, pages, first_key, keys, compute_), "writing index keys");
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
