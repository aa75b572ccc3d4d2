// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>

#include "cuda/core/device_guard.hpp"
#include "cuda/store/device_tier.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

using flashmemory::detail::checksum;
using flashmemory::detail::make_fault;

namespace {

fault backing_fault(status code, const char* what, int os_error) noexcept {
  if (code == status::ok) return {};
  fault f = make_fault(code, what);
  f.os_error = os_error;
  return f;
}

}  // namespace

void device_tier::begin_rows() noexcept { num_targets_ = 0, num_outgoing_ = 0; }

fault device_tier::write_rows(const row_span& span, const const_tensor<3>& k,
                              const const_tensor<3>& v) noexcept {
  const device_guard guard(context_.ordinal);
  chunk_record& record = *span.record;
  row_target target;
  target.first_row = span.first_row;
  target.first_entry = static_cast<std::int32_t>(span.first_entry);
  target.count = static_cast<std::int32_t>(span.count);
  if (record.slot) {
    if (const fault f = check(fence(*record.slot), "ordering rows behind copies"); f.code != status::ok)
      return f;
    target.piece = record.slot->data + layout_.key_offset(span.layer, 0);
  } else {
    const std::int64_t piece = next_piece_;
    const cudaError_t code = out_.hold_back(compute_, piece_saves_[std::size_t(piece)], &compute_saw_out_);
    if (code != cudaSuccess) return check(code, "ordering rows behind copies");
    next_piece_ = (next_piece_ + 1) % num_pieces_;
    target.piece = pieces_ + std::size_t(piece) * layer_bytes_;
    outgoing_[std::size_t(num_outgoing_++)] = {&record, piece, span.layer};
  }
  targets_[num_targets_++] = target;
  // Only half of the pieces, so that the rows of one half do not wait for the copies of the same half.
  if (num_targets_ < max_row_targets && num_outgoing_ < std::max<std::int64_t>(num_pieces_ / 2, 1)) return {};
  return flush_rows(span.layer, k, v);
}

fault device_tier::flush_rows(std::int32_t, const const_tensor<3>& k, const const_tensor<3>& v) noexcept {
  const device_guard guard(context_.ordinal);
  const fault f =
      check(launch_rows(layout_.geometry, targets_, num_targets_, k, v, compute_), "writing rows");
  num_targets_ = 0;
  return f.code == status::ok ? save_pieces() : f;
}

/// Sends the pieces of whole chunks to the backing store.
fault device_tier::save_pieces() noexcept {
  const std::int64_t count = num_outgoing_;
  num_outgoing_ = 0;
  if (count == 0) return {};
  if (staged()) {
    for (std::int64_t i = 0; i < count; ++i) {
      const outgoing_piece& out = outgoing_[std::size_t(i)];
      const fault f = save_staged(pieces_ + std::size_t(out.piece) * layer_bytes_, *out.record, out.layer, 1);
      if (f.code != status::ok) return f;
    }
    return {};
  }
  copy_span spans[64];
  for (std::int64_t i = 0; i < count; ++i) {
    const outgoing_piece& out = outgoing_[std::size_t(i)];
    spans[i] = {pinned_[out.record->backing] + layout_.key_offset(out.layer, 0),
                pieces_ + std::size_t(out.piece) * layer_bytes_};
    piece_saves_[std::size_t(out.piece)] = out_.next();
  }
  return check(save(spans, count, layer_bytes_), "writing the backing store");
}

fault device_tier::seal(chunk_record& record) noexcept {
  if (num_saves_ == max_group_spans)
    if (const fault f = flush_saves(); f.code != status::ok) return f;
  record.slot->saves = out_.next();
  saved_[std::size_t(num_saves_)] = &record;
  std::byte* const to = staged() ? nullptr : pinned_[record.backing];
  saves_[std::size_t(num_saves_++)] = {to, record.slot->data};
  return {};
}

fault device_tier::flush_saves() noexcept {
  const std::int64_t count = num_saves_;
  num_saves_ = 0;
  if (count == 0) return {};
  const device_guard guard(context_.ordinal);
  if (!staged()) return check(save(saves_.data(), count, chunk_bytes_), "writing the backing store");
  for (std::int64_t i = 0; i < count; ++i) {
    const fault f =
        save_staged(saves_[std::size_t(i)].from, *saved_[std::size_t(i)], 0, layout_.geometry.layers);
    if (f.code != status::ok) return f;
  }
  return {};
}

/// Copies from the device to pinned records. A copy that still reads a record for whoever had it before was given
/// up, so what it reads does not matter.
cudaError_t device_tier::save(copy_span* spans, std::int64_t count, std::size_t bytes) noexcept {
  cudaError_t code = follow_compute(out_.stream());
  if (code != cudaSuccess) return code;
  copy_group group;
  group.spans = spans;
  group.count = count;
  group.bytes = bytes;
  group.to_device = false;
  group.ticket = out_.next();
  code = copies_->copy(group, out_.stream());
  const cudaError_t marked = out_.mark();  // after an error too: part of it may be under way
  return code == cudaSuccess ? marked : code;
}

/// Through the staging buffer to the engine's medium; waits for both.
fault device_tier::save_staged(const std::byte* from, chunk_record& record, std::int32_t first_layer,
                               std::int32_t num_layers) noexcept {
  // The first buffer is as good as any once no load reads it.
  cudaError_t code = in_.wait(staging_loads_[0], context_.deadline);
  const std::size_t bytes = std::size_t(num_layers) * layer_bytes_;
  copy_span span{staging_, from};
  if (code == cudaSuccess) code = save(&span, 1, bytes);
  if (code == cudaSuccess) code = out_.wait(out_.issued(), context_.deadline);
  if (code != cudaSuccess) return check(code, "copying a chunk to the host");
  checksum_layers(record, staging_, first_layer, num_layers);
  int os_error = 0;
  const status written =
      backing_->write(record.backing, layout_.key_offset(first_layer, 0), staging_, bytes, &os_error);
  return backing_fault(written, "writing the backing store", os_error);
}

void device_tier::checksum_layers(chunk_record& record, const std::byte* data, std::int32_t first,
                                  std::int32_t count) const noexcept {
  for (std::int32_t i = 0; i < count; ++i)
    record.checksums[first + i] = checksum(data + std::size_t(i) * layer_bytes_, layer_bytes_);
}

fault device_tier::verify(const chunk_record& record, const std::byte* data, std::int32_t first,
                          std::int32_t count) const noexcept {
  for (std::int32_t i = 0; verify_ && i < count; ++i) {
    if (checksum(data + std::size_t(i) * layer_bytes_, layer_bytes_) == record.checksums[first + i]) continue;
    fault f = make_fault(status::corrupt_chunk, "checksum");
    f.layer = first + i;
    return f;
  }
  return {};
}

fault device_tier::write_record(chunk_record& record, const std::byte* chunk) noexcept {
  const device_guard guard(context_.ordinal);
  if (staged()) {
    checksum_layers(record, chunk, 0, layout_.geometry.layers);
    int os_error = 0;
    const status code = backing_->write(record.backing, 0, chunk, chunk_bytes_, &os_error);
    return backing_fault(code, "writing the backing store", os_error);
  }
  cudaError_t code = in_.wait(in_.issued(), context_.deadline);
  if (code == cudaSuccess) code = out_.wait(out_.issued(), context_.deadline);
  if (code == cudaSuccess) std::memcpy(pinned_[record.backing], chunk, chunk_bytes_);
  return check(code, "waiting for copies of a record");
}

fault device_tier::read_record(const chunk_record& record, std::byte* chunk) const noexcept {
  const std::lock_guard<std::mutex> lock(read_mutex_);
  if (staged()) {
    int os_error = 0;
    const status code = backing_->read(record.backing, 0, chunk, chunk_bytes_, &os_error);
    if (code != status::ok) return backing_fault(code, "reading the backing store", os_error);
    return verify(record, chunk, 0, layout_.geometry.layers);
  }
  const device_guard guard(context_.ordinal);
  const cudaError_t code = out_.wait(out_.issued(), context_.deadline);
  if (code == cudaSuccess) std::memcpy(chunk, pinned_[record.backing], chunk_bytes_);
  return check(code, "waiting for copies of a record");
}

fault device_tier::read_piece(const chunk_record& record, std::int32_t layer,
                              std::byte* piece) const noexcept {
  const std::lock_guard<std::mutex> lock(read_mutex_);
  const std::size_t offset = layout_.key_offset(layer, 0);
  fault f;
  if (staged()) {
    int os_error = 0;
    const status code = backing_->read(record.backing, offset, piece, layer_bytes_, &os_error);
    f = code == status::ok ? verify(record, piece, layer, 1)
                           : backing_fault(code, "reading the backing store", os_error);
  } else {
    const device_guard guard(context_.ordinal);
    const cudaError_t code = out_.wait(out_.issued(), context_.deadline);
    if (code == cudaSuccess) std::memcpy(piece, pinned_[record.backing] + offset, layer_bytes_);
    f = check(code, "waiting for copies of a record");
  }
  if (f.code != status::ok) f.layer = layer;
  return f;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
