// SPDX-License-Identifier: MIT
#include "cuda/step/table_words.hpp"

#include "cuda/core/error.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

table_words::table_words(std::int64_t count, const memory_resource& device_memory,
                         const memory_resource& pinned, std::int32_t parts,
                         std::chrono::milliseconds deadline)
    : words_(block_kind::device, device_memory, std::size_t(count) * sizeof(std::uint64_t), "device tables"),
      staging_(block_kind::pinned, pinned,
               std::size_t(count) * sizeof(table_patch) * static_cast<std::size_t>(parts),
               "staging of device tables"),
      shadow_(static_cast<std::size_t>(count)),
      fences_(static_cast<std::size_t>(parts)),
      deadline_(deadline) {
  ask(cudaMemset(words_.as<void>(), 0, words_.bytes()), "device tables");
  ask(cudaDeviceSynchronize(), "device tables");
}

status table_words::begin(fault* error) noexcept {
  const std::size_t next = (part_ + 1) % fences_.size();
  const cudaError_t code = fences_[next].wait(deadline_);
  if (code == cudaErrorNotReady)
    return refuse(status::timed_out, "staging of device tables", static_cast<std::int64_t>(fences_.size()),
                  -1, error);
  if (code != cudaSuccess) return check(code, "staging of device tables", error);
  if (changes_ > 0) all_ = true;
  part_ = next;
  patches_ = staging_.as<table_patch>() + part_ * shadow_.size();
  changes_ = 0;
  return status::ok;
}

status table_words::send(cudaStream_t stream, fault* error) noexcept {
  if (all_)
    for (changes_ = 0; changes_ < static_cast<std::int64_t>(shadow_.size()); ++changes_)
      patches_[changes_] = {static_cast<std::uint64_t>(changes_),
                            shadow_[static_cast<std::size_t>(changes_)]};
  if (changes_ == 0) return status::ok;
  all_ = true;
  status code = check(launch_patches(patches_, changes_, device(), stream), "device tables", error);
  if (code == status::ok) code = check(fences_[part_].record(stream), "staging of device tables", error);
  if (code != status::ok) return code;
  all_ = false;
  bytes_sent_ += changes_ * static_cast<std::int64_t>(sizeof(table_patch));
  changes_ = 0;
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
