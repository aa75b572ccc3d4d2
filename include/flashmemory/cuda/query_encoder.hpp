// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/context.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <memory>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// Set-up of a query encoder.
struct query_encoder_options {
  /// Of the weights on the device. bf16 halves what a call reads; activations then travel as two bf16 numbers that
  /// add up to the f32 one, so that nothing but the weights is rounded.
  dtype weights = dtype::bf16;
  std::int32_t max_rows = 64;  ///< due sequences of one call, at most
};

/// What encode() writes; all device memory, contiguous.
struct encoded_queries {
  std::byte* queries = nullptr;     ///< [retrievers, rows, heads, 128] e4m3, quantised per head
  float* weights = nullptr;         ///< [retrievers, rows, heads]: gates times the head's query scale
  float* full_precision = nullptr;  ///< [retrievers, rows, heads, 128] before quantisation, or null
};

/// The query side of a dual encoder on the device: hidden states of due sequences -> rotated, transformed query
/// heads in e4m3 and head weights, what score_job reads. The arithmetic is dual_encoder_indexer's, with both bf16
/// roundings where the configuration has them; matrix products are cuBLASLt's. Queries are then quantised per head,
/// s = max(largest magnitude, 1e-4) / 448, as the published serving path does (reference scorer, paged path).
class FLASHMEMORY_API query_encoder {
 public:
  /// Copies the weights to the device; synchronises.
  /// \throws argument_error naming what cannot work; error with cuda_error
  query_encoder(const dual_encoder_config& config, const context& device,
                const query_encoder_options& options = {});
  ~query_encoder();
  query_encoder(const query_encoder&) = delete;
  query_encoder& operator=(const query_encoder&) = delete;

  /// Bytes of the weights on the device.
  std::size_t weight_bytes() const noexcept;

  /// Bytes of device scratch that encode() needs.
  std::size_t workspace_bytes() const noexcept;

  /// Encodes `rows` due sequences for all retrievers. Enqueued on `stream`; never allocates or synchronises. Calls
  /// that may run at the same time need scratch of their own.
  /// \param[in]  hidden     [retrievers] (host array): each [rows, hidden], device, f32, bf16 or f16, unit last stride
  /// \param[in]  positions  [rows], device: of the token that is asked for
  /// \param      rows       [0, max_rows]
  /// \param      scratch    device, 256-byte aligned, workspace_bytes()
  /// \param[out] error      details if the call fails; may be null
  /// \returns bad_shape, bad_dtype, null_data, workspace_small, unsupported for stream_ref::host(), cuda_error
  status encode(const const_tensor<2>* hidden, const std::int64_t* positions, std::int64_t rows,
                const encoded_queries& out, workspace scratch, stream_ref stream,
                fault* error = nullptr) const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
