// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/context.hpp>
#include <flashmemory/store/backing_store.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// How recall(), which somebody waits for, brings chunks to the device. start_recall() always uses the copy
/// engines, which leave the multiprocessors alone.
enum class recall_method : std::int32_t {
  automatic,    ///< the kernel where it was measured to be faster: more than 8 chunks of less than 256 KB
  kernel,       ///< a kernel that reads pinned host memory and writes the slots
  copy_engine,  ///< as start_recall() does
};

/// How a store on a device moves things.
struct device_store_options {
  /// The backing store's pinned memory comes in blocks of about this size, as sequences are opened.
  std::size_t pinned_slab_bytes = std::size_t{256} << 20;
  std::int32_t touch_threads = 8;  ///< that touch a new block's pages, with the default pinned memory

  /// Slots in one contiguous block that is allocated when the store is built and stays; 0 = none. With as many as
  /// all sequences need (their quotas and the transition pool) no other block ever exists; see slots_of().
  std::int64_t initial_slots = 0;

  recall_method on_demand = recall_method::automatic;
  std::int32_t recall_sms = 4;  ///< multiprocessors that the recall kernel occupies
};

/// A chunk_store whose slots and index keys lie in the memory of one GPU; options.memory has the tables, in host
/// memory. Everything is as chunk_store and tiered_chunk_store say, and besides:
///
/// append(), append_index_keys(), recall(), start_recall() and finish_recall() take a CUDA stream, and refuse host()
/// as unsupported. K, V and index keys are device memory and are read when the stream gets there. What these
/// calls do happens in the order of their streams, also where the stream changes from call to call; the newest
/// one must live until the next call with another one, or as long as the store. fork(), truncate() and close()
/// queue behind it. None may be made while the stream is being captured.
///
/// append() and append_index_keys() queue work and return. start_recall(), poll_recall() and finish_recall() with
/// late_policy::keep never wait for the device. recall(), finish_recall() with late_policy::wait, and calls without
/// a stream that move chunks between the tiers (fork(), truncate(), read_chunk(), append_chunk()) wait,
/// context::deadline at most: then timed_out. Index keys are not checked for NaN.
///
/// The backing store is pinned memory, options.backing_bytes and 64 bytes a block at most, of which blocks are allocated as sequences
/// are opened. With options.backing_path, options.verify_ram or a backing store of the engine's own, chunks go
/// there through a pinned staging buffer, and the calls that seal or start to recall chunks wait for that
/// buffer's copies and for the medium.
///
/// \throws argument_error, admission_error, io_failure as tiered_chunk_store does; error with unsupported for a
///     device that is not there, with cuda_error if streams or events cannot be made
/// \param device   the GPU, also for the selectors, steps and tables over the store
/// \param backing  the engine's own backing store, which must have room for backing_bytes / chunk bytes records; null =
///     pinned memory, or the file at options.backing_path
FLASHMEMORY_API std::unique_ptr<tiered_chunk_store> make_store(
    const store_options& options, const context& device = {}, const device_store_options& how = {},
    std::unique_ptr<backing_store> backing = nullptr);

/// A run of slots in device memory: slot i begins at data + i * chunk_bytes.
struct slot_range {
  std::byte* data = nullptr;
  std::size_t chunk_bytes = 0;
  std::int64_t count = 0;
};

/// The block of device_store_options::initial_slots, for kernels that address chunks by number.
FLASHMEMORY_API slot_range slots_of(const tiered_chunk_store& store) noexcept;

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
