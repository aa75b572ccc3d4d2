// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "cuda/store/transfer.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/support/store_testing.hpp"

/// What the device store's tests share: appends from device memory, reading slots back, gates that hold a stream
/// up for as long as a test wants, and a transfer that fails or is held up on demand.
namespace store_testing {

using flashmemory_test::device_array;
using flashmemory_test::device_stream;
using flashmemory_test::must;
using flashmemory_test::repeats;

/// Streams wait at a closed gate. Opens at the latest when it goes away. Nothing may be allocated or freed on the
/// device while it is closed.
class gate {
 public:
  ~gate() { open(); }
  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
  }
  void open() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      open_ = true;
    }
    changed_.notify_all();
  }
  void hold(cudaStream_t stream) {
    must(cudaLaunchHostFunc(
        stream,
        [](void* self) {
          auto& g = *static_cast<gate*>(self);
          std::unique_lock<std::mutex> lock(g.mutex_);
          g.changed_.wait(lock, [&] { return g.open_; });
        },
        this));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

struct transfer_switches {
  std::int64_t loads = 0, saves = 0;  ///< groups so far
  std::int64_t fail_load = -1;        ///< the group with this number is refused after its first half
  std::int64_t fail_save = -1;        ///< likewise
  std::int64_t lose_load = -1;        ///< the group with this number turns out to have failed
  bool hold_loads = false, hold_saves = false;  ///< groups wait at the gate
  gate door;
};

class switched_transfer final : public fm::cuda::detail::transfer {
 public:
  switched_transfer(std::unique_ptr<transfer> inner, transfer_switches* control)
      : inner_(std::move(inner)), control_(control) {}

  cudaError_t copy(const fm::cuda::detail::copy_group& group, cudaStream_t stream) noexcept override {
    transfer_switches& c = *control_;
    const std::int64_t number = group.to_device ? c.loads++ : c.saves++;
    if (group.to_device ? c.hold_loads : c.hold_saves) c.door.hold(stream);
    if (number == (group.to_device ? c.fail_load : c.fail_save)) {
      auto half = group;
      half.count /= 2;
      (void)inner_->copy(half, stream);
      return cudaErrorUnknown;
    }
    if (group.to_device && number == c.lose_load) {
      lost_.insert(group.ticket);
      auto half = group;
      half.count /= 2;
      return inner_->copy(half, stream);
    }
    return inner_->copy(group, stream);
  }
  cudaError_t outcome(std::uint64_t ticket) noexcept override {
    return lost_.count(ticket) ? cudaErrorUnknown : inner_->outcome(ticket);
  }

  static std::unique_ptr<transfer> wrap(std::unique_ptr<transfer> inner, void* control) {
    return std::make_unique<switched_transfer>(std::move(inner), static_cast<transfer_switches*>(control));
  }

 private:
  std::unique_ptr<transfer> inner_;
  transfer_switches* control_;
  std::set<std::uint64_t> lost_;
};

inline std::unique_ptr<fm::tiered_chunk_store> make_device_store(
    const fm::store_options& options, transfer_switches* control, const fm::cuda::context& device = {},
    std::unique_ptr<fm::backing_store> own = nullptr, const fm::cuda::device_store_options& how = {}) {
  return fm::cuda::detail::make_store(options, device, how, std::move(own),
                                      control ? switched_transfer::wrap : nullptr, control);
}

/// Device memory for what an engine hands over, taken once and used in turn, since allocating waits for the device.
class scratch_ring {
 public:
  explicit scratch_ring(std::size_t bytes) : memory_(bytes) {
    void* block = nullptr;
    must(cudaHostAlloc(&block, bytes, cudaHostAllocDefault));
    pinned_.reset(static_cast<std::byte*>(block));
  }
  /// Copies host bytes into the ring. Where it comes round everything must have been used.
  std::byte* put(const std::byte* data, std::size_t bytes, std::size_t misalign = 0) {
    const std::size_t room = (bytes + misalign + 255) / 256 * 256;
    if (next_ + room > memory_.size()) {
      must(cudaDeviceSynchronize());
      next_ = 0;
    }
    if (room > memory_.size()) throw std::runtime_error("scratch_ring is too small");
    std::byte* const to = memory_.data() + next_ + misalign;
    next_ += room;
    // From pinned memory a copy has landed when the call returns, and no other stream is waited for.
    std::memcpy(pinned_.get(), data, bytes);
    must(cudaMemcpy(to, pinned_.get(), bytes, cudaMemcpyHostToDevice));
    return to;
  }

 private:
  struct unpin {
    void operator()(std::byte* block) const { cudaFreeHost(block); }
  };
  device_array<std::byte> memory_;
  std::unique_ptr<std::byte, unpin> pinned_;
  std::size_t next_ = 0;
};

/// Appends host rows as device tensors.
inline fm::status append_on_device(fm::chunk_store& store, fm::batch items, std::int32_t layer,
                                   const fm::const_tensor<3>& k, const fm::const_tensor<3>& v,
                                   scratch_ring& ring, fm::stream_ref stream) {
  const auto moved = [&](const fm::const_tensor<3>& t) {
    fm::const_tensor<3> there = t;
    const std::size_t bytes =
        std::size_t(t.shape[0]) * std::size_t(t.shape[1]) * std::size_t(t.shape[2]) * size_of(t.type);
    if (bytes > 0) there.data = ring.put(static_cast<const std::byte*>(t.data), bytes);
    return there;
  };
  return store.append(items, layer, moved(k), moved(v), stream);
}

/// grow() for a store on a device.
inline fm::status grow_on_device(fm::chunk_store& store, engine_sequence& s, std::int64_t tokens,
                                 std::uint64_t seed, scratch_ring& ring, fm::stream_ref stream) {
  const fm::kv_geometry& g = store.geometry();
  const auto tags = new_tags(g, s, tokens, seed);
  const fm::batch_item item{s.handle, s.tokens, std::int32_t(tokens)};
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const made_rows rows = make_rows(g, tags, layer);
    const fm::status code =
        append_on_device(store, fm::batch(&item, 1), layer, rows.k_view, rows.v_view, ring, stream);
    if (code != fm::status::ok) return code;
  }
  s.tags.insert(s.tags.end(), tags.begin(), tags.end());
  s.tokens += tokens;
  return fm::status::ok;
}

inline std::vector<std::byte> bytes_at(const std::byte* device, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  must(cudaMemcpy(out.data(), device, bytes, cudaMemcpyDeviceToHost));
  return out;
}

/// resident_bytes_right() for a store on a device; nothing may be under way.
inline bool device_bytes_right(const fm::chunk_store& store, const engine_sequence& s) {
  const fm::kv_geometry& g = store.geometry();
  const fm::chunk_layout layout(g);
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const fm::resident_set set = resident(store, s, layer);
    for (std::int64_t i = 0; i < set.count; ++i) {
      const auto expected = expected_chunk(g, s.tags, set.chunks[i].id);
      const auto actual = bytes_at(set.chunks[i].data, layout.chunk_bytes());
      const std::size_t key = std::size_t(g.key_dim) * size_of(g.type) * std::size_t(set.chunks[i].entries);
      const std::size_t value =
          std::size_t(g.value_dim) * size_of(g.type) * std::size_t(set.chunks[i].entries);
      for (std::int64_t h = 0; h < g.kv_heads; ++h) {
        const std::size_t k = layout.key_offset(layer, h), v = layout.value_offset(layer, h);
        if (std::memcmp(actual.data() + k, expected.data() + k, key) != 0) return false;
        if (std::memcmp(actual.data() + v, expected.data() + v, value) != 0) return false;
      }
    }
  }
  return true;
}

inline bool all_device_chunks_right(const fm::chunk_store& store, const engine_sequence& s) {
  const fm::kv_geometry& g = store.geometry();
  for (std::int64_t c = 0; c < g.chunks_for(s.tokens); ++c)
    if (read_chunk(store, s, c) != expected_chunk(g, s.tags, c)) return false;
  return device_bytes_right(store, s);
}

}  // namespace store_testing
