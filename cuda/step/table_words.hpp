// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <flashmemory/status.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A change of one word.
struct table_patch {
  std::uint64_t index;
  std::uint64_t value;
};

cudaError_t launch_patches(const table_patch* patches, std::int64_t count, std::uint64_t* words,
                           cudaStream_t stream) noexcept;

/// Words in device memory at fixed addresses, and what they will be after everything that was sent. Changes are
/// written to pinned memory, from where one small kernel takes them; that memory is a ring, whose parts are fenced
/// with events.
class table_words {
 public:
  /// All words start as zero.
  table_words(std::int64_t count, const memory_resource& device_memory, const memory_resource& pinned,
              std::int32_t parts, std::chrono::milliseconds deadline);

  std::uint64_t* device() const noexcept { return words_.as<std::uint64_t>(); }
  std::size_t device_bytes() const noexcept { return words_.bytes(); }
  std::size_t pinned_bytes() const noexcept { return staging_.bytes(); }
  std::int64_t bytes_sent() const noexcept { return bytes_sent_; }

  /// Starts the changes of a step. timed_out if the device has not taken those of `parts` steps ago.
  status begin(fault* error) noexcept;
  /// Word `index` shall be `value`; once per word and step.
  void set(std::int64_t index, std::uint64_t value) noexcept {
    std::uint64_t& now = shadow_[static_cast<std::size_t>(index)];
    if (now == value) return;
    now = value;
    // With everything to be sent anyway, single changes need no note.
    if (!all_) patches_[changes_++] = {static_cast<std::uint64_t>(index), value};
  }
  template <class T>
  void set(std::int64_t index, T* pointer) noexcept {
    set(index, static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(pointer)));
  }
  /// Enqueues the changes. If that fails they are sent with the next ones.
  status send(cudaStream_t stream, fault* error) noexcept;

 private:
  memory_block words_, staging_;
  std::vector<std::uint64_t> shadow_;
  std::vector<event> fences_;
  std::chrono::milliseconds deadline_;
  std::size_t part_ = 0;
  table_patch* patches_ = nullptr;  ///< of the current part, room for every word
  std::int64_t changes_ = 0;
  bool all_ = false;  ///< changes were not sent, so nobody knows what is on the device
  std::int64_t bytes_sent_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
