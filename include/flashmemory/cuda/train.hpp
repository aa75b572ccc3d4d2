// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/memory.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/train/learn/backend.hpp>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Where a training backend on a device keeps things.
struct training_options {
  std::int32_t device = 0;                 ///< CUDA ordinal; calls set it and restore what was current
  stream_ref stream = stream_ref::host();  ///< work is enqueued there and waited for; host() = one of its own
  memory_resource device_memory;           ///< aligned to 256 bytes; null functions = cudaMalloc
  memory_resource pinned_memory;           ///< for staging; null functions = cudaHostAlloc
  std::size_t document_bytes = std::size_t{2} << 30;  ///< of key inputs kept between steps; 0 = none
  std::size_t tile_bytes = std::size_t{32} << 20;     ///< of logits of single heads that exist at a time
};

/// Bytes of device memory for what lives as long as the backend: parameters, two moments, gradient, all f32, and
/// with bf16 operands a rounded copy of the query side's matrices; rows padded to multiples of 8 values.
FLASHMEMORY_API std::size_t training_state_bytes(const train::backend_setup& setup);

/// Bytes of device memory for the activations of one document: as the largest so far needs.
FLASHMEMORY_API std::size_t training_workspace_bytes(const train::backend_setup& setup, std::int64_t windows,
                                                     std::int64_t chunks,
                                                     const training_options& options = {});

/// The trainer's arithmetic on one GPU, for trainer_options::backend. Parameters, moments and gradients stay in
/// device memory; per document the sampled windows' hidden states and the keys go there, and the chunks' scores
/// and their gradient come and go. All matrix products are cuBLASLt's, of f32 operands (no TF32) or bf16 operands
/// as the setup says, with f32 sums.
///
/// Deterministic: no sum's order depends on timing, so the same run gives the same bits on the same kind of device
/// and library. Its bits are not the CPU's; checkpoints of either go on with the other.
///
/// Memory: training_state_bytes() when the trainer is made, training_workspace_bytes() of a document when one is
/// larger than those before, up to document_bytes for key inputs of documents that the trainer keeps too, the ones used
/// longest ago being let go, and pinned staging for one document's vectors. Where a resource has none,
/// admission_error, and the step may be repeated; key inputs are not kept then.
///
/// The factory throws argument_error naming what cannot work, error with unsupported for a device that is not
/// there or cuda_error; calls of the backend throw error with cuda_error.
FLASHMEMORY_API train::backend_factory training_on_device(const training_options& options = {});

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
