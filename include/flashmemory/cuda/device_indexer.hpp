// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/cuda/context.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>
#include <utility>

namespace flashmemory {
inline namespace v0 {
namespace cuda {

/// What a device_indexer has to be ready for.
struct device_indexer_capacity {
  context device;
  kv_geometry geometry;
  std::int32_t max_sequences = 0;  ///< due at a time
  std::int64_t max_chunks = 0;     ///< of a sequence; grows as longer ones are attached
};

/// One sequence that is due.
struct device_score_request {
  sequence_handle sequence;
  std::int64_t position = 0;  ///< of the newest processed token
  std::int64_t chunks = 0;    ///< score chunks [0, chunks)
  float* scores = nullptr;    ///< [chunks] out, device
};

/// A refresh of all sequences that are due in a step.
struct device_scoring {
  const chunk_reader* reader = nullptr;
  view<const device_score_request, 1> due;  ///< host
  /// [taps().queries] (host array): each [due, tokens * width], device, unit last stride: the newest tokens' vectors, the
  /// newest last, as in score_request
  const const_tensor<2>* queries = nullptr;
  const std::int64_t* positions = nullptr;  ///< [due], device
  std::byte* table = nullptr;  ///< of fill_table(), 256-byte aligned: host memory there, device memory in
                               ///< score()
};

/// An indexer whose scores are made on the device: what cuda::make_selector() takes besides the library's dual encoder, for
/// an engine with a scorer of its own. An implementation is its taps and score(). Its index keys are the engine's
/// (taps().index_keys is empty; decode_step::append_index_keys() or chunk_store::append_index_keys() bring them).
class FLASHMEMORY_API device_indexer {
 public:
  virtual ~device_indexer() = default;
  device_indexer(const device_indexer&) = delete;
  device_indexer& operator=(const device_indexer&) = delete;

  /// What it reads; the same for as long as it lives.
  const indexer_taps& taps() const noexcept { return taps_; }

  /// Enqueues the scores of all due sequences; never allocates, synchronises or reads the environment. Calls follow each
  /// other on one stream.
  /// \returns anything but ok if nothing was scored, with details in `error` (not null)
  virtual status score(const device_scoring& call, stream_ref stream, fault* error) noexcept = 0;

  /// Makes room, when a selector is made and when max_chunks has grown; the device is idle then. May throw, and then the
  /// room of before must still do.
  virtual void reserve(const device_indexer_capacity& capacity);

  /// Bytes of a table that score() wants to have on the device, for `max_sequences` due sequences. It travels with the
  /// selector's own, in one launch.
  virtual std::size_t table_bytes(std::int32_t max_sequences) const noexcept;

  /// Writes that table, in pinned memory, before score() is called for the same sequences.
  virtual status fill_table(const device_scoring& call, fault* error) noexcept;

 protected:
  /// With what it says it reads.
  explicit device_indexer(indexer_taps taps) : taps_(std::move(taps)) {}

 private:
  indexer_taps taps_;
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
