// SPDX-License-Identifier: MIT
#include "src/store/host_tier.hpp"

#include <xxhash.h>

#include <cstdio>
#include <cstring>

#include "src/core/index_key.hpp"
#include "src/store/impl.hpp"
#include "src/store/rows.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

constexpr std::size_t alignment = 64;

fault backing_fault(status code, const char* what, int os_error) noexcept {
  if (code == status::ok) return {};
  fault f = make_fault(code, what);
  f.os_error = os_error;
  return f;
}

}  // namespace

std::uint64_t checksum(const void* data, std::size_t bytes) noexcept { return XXH3_64bits(data, bytes); }

host_tier::host_tier(const kv_geometry& geometry, memory_resource memory) noexcept
    : layout_(geometry),
      chunk_bytes_(layout_.chunk_bytes()),
      layer_bytes_(layout_.layer_bytes()),
      memory_(memory) {}

void host_tier::open_backing(const store_options& options, std::int64_t records,
                             std::unique_ptr<backing_store> own) {
  if (own)
    backing_ = std::move(own);
  else if (options.backing_path.empty())
    backing_ = make_ram_backing(records, chunk_bytes_, options.memory);
  else
    backing_ = make_file_backing(options.backing_path, records, chunk_bytes_, options.reserve_backing);
  verify_ = options.verify_ram || backing_->needs_verification();
}

bool host_tier::reserve_records(std::int64_t records) noexcept {
  int os_error = 0;
  const status code = backing_->reserve(records, &os_error);
  failure_[0] = 0;
  if (code == status::ok) return true;
  std::snprintf(failure_, sizeof failure_, " (backing store: %s)",
                os_error != 0 ? std::strerror(os_error) : to_string(code));
  return false;
}

bool host_tier::set_up(fast_memory& memory) noexcept {
  staging_ = static_cast<std::byte*>(memory.allocate(layer_bytes_, alignment));
  return staging_ != nullptr;
}

void host_tier::tear_down(fast_memory& memory) noexcept {
  memory.release(staging_, layer_bytes_, alignment);
  staging_ = nullptr;
}

fault host_tier::enter(stream_ref stream) noexcept {
  return stream.is_host() ? fault{} : make_fault(status::unsupported, "stream");
}

void host_tier::poison(fast_slot& slot) noexcept { std::memset(slot.data, 0xff, chunk_bytes_); }

void host_tier::zero_piece_padding(std::byte* piece) const noexcept {
  for_each_padding(layout_,
                   [piece](std::size_t offset, std::size_t bytes) { std::memset(piece + offset, 0, bytes); });
}

void host_tier::prepare(fast_slot& slot) noexcept {
  for (std::int32_t layer = 0; layer < layout_.geometry.layers; ++layer)
    zero_piece_padding(slot.data + std::size_t(layer) * layer_bytes_);
}

fault host_tier::scrub(fast_slot& slot, std::int64_t first_entry) noexcept {
  for (std::int32_t layer = 0; layer < layout_.geometry.layers; ++layer)
    zero_entries(layout_.geometry, first_entry, slot.data + layout_.key_offset(layer, 0));
  return {};
}

status host_tier::read(std::int64_t record, std::size_t offset, std::byte* to, std::size_t bytes,
                       int* os_error) const noexcept {
  std::unique_lock<std::mutex> lock(read_mutex_, std::defer_lock);
  if (!backing_->concurrent_reads()) lock.lock();
  return backing_->read(record, offset, to, bytes, os_error);
}

fault host_tier::write_rows(const row_span& span, const const_tensor<3>& k,
                            const const_tensor<3>& v) noexcept {
  chunk_record& record = *span.record;
  const std::size_t offset = layout_.key_offset(span.layer, 0);
  std::byte* const piece = record.slot ? record.slot->data + offset : staging_;
  write_entries(layout_.geometry, k, v, span.first_row, span.count, span.first_entry, piece);
  if (record.slot) return {};
  // A whole chunk that need not be resident: its piece goes to the backing store without a slot.
  zero_piece_padding(piece);
  record.checksums[span.layer] = checksum(piece, layer_bytes_);
  int os_error = 0;
  const status code = backing_->write(record.backing, offset, piece, layer_bytes_, &os_error);
  return backing_fault(code, "writing the backing store", os_error);
}

fault host_tier::seal(chunk_record& record) noexcept { return write_record(record, record.slot->data); }

fault host_tier::write_record(chunk_record& record, const std::byte* chunk) noexcept {
  for (std::int32_t layer = 0; layer < layout_.geometry.layers; ++layer)
    record.checksums[layer] = checksum(chunk + std::size_t(layer) * layer_bytes_, layer_bytes_);
  if (chunk == backing_->address(record.backing)) return {};  // the slot is the record
  int os_error = 0;
  const status code = backing_->write(record.backing, 0, chunk, chunk_bytes_, &os_error);
  return backing_fault(code, "writing the backing store", os_error);
}

fault host_tier::read_record(const chunk_record& record, std::byte* chunk) const noexcept {
  int os_error = 0;
  const status code = read(record.backing, 0, chunk, chunk_bytes_, &os_error);
  if (code != status::ok) return backing_fault(code, "reading the backing store", os_error);
  return verify(record, chunk);
}

fault host_tier::load(const chunk_record& from, fast_slot& slot) noexcept {
  return slot.data == backing_->address(from.backing) ? verify(from, slot.data)
                                                      : read_record(from, slot.data);
}

fault host_tier::verify(const chunk_record& record, const std::byte* chunk) const noexcept {
  for (std::int32_t layer = 0; verify_ && layer < layout_.geometry.layers; ++layer) {
    if (checksum(chunk + std::size_t(layer) * layer_bytes_, layer_bytes_) == record.checksums[layer])
      continue;
    fault f = make_fault(status::corrupt_chunk, "checksum");
    f.layer = layer;
    return f;
  }
  return {};
}

fault host_tier::read_piece(const chunk_record& record, std::int32_t layer, std::byte* piece) const noexcept {
  int os_error = 0;
  const status code = read(record.backing, layout_.key_offset(layer, 0), piece, layer_bytes_, &os_error);
  fault f = backing_fault(code, "reading the backing store", os_error);
  if (code == status::ok && verify_ && checksum(piece, layer_bytes_) != record.checksums[layer])
    f = make_fault(status::corrupt_chunk, "checksum");
  if (f.code != status::ok) f.layer = layer;
  return f;
}

fault host_tier::copy_slot(fast_slot& to, const fast_slot& from) noexcept {
  std::memcpy(to.data, from.data, chunk_bytes_);
  return {};
}

fault host_tier::copy_keys(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
  return {};
}

fault host_tier::read_slot(const fast_slot& slot, std::byte* chunk) const noexcept {
  std::memcpy(chunk, slot.data, chunk_bytes_);
  return {};
}

fault host_tier::write_slot(fast_slot& slot, const std::byte* chunk) noexcept {
  std::memcpy(slot.data, chunk, chunk_bytes_);
  return {};
}

fault host_tier::append_index_keys(std::byte* pages, std::int64_t first_key,
                                   const view<const std::byte, 2>& keys) noexcept {
  const kv_geometry& g = layout_.geometry;
  const std::int64_t count = keys.shape[0];
  const index_key_geometry& shape = g.index_keys;
  const std::int64_t value_bytes = shape.value_bytes(), scale_bytes = shape.scale_bytes();
  for (std::int64_t i = 0; i < count; ++i)
    if (!finite_index_key(shape, keys.data + i * keys.stride[0]))
      return make_fault(status::not_finite, "index key", -1, -1, first_key + i);

  const std::int64_t page_keys = g.index_keys_per_chunk();
  const std::size_t page_bytes = layout_.index_key_page_bytes();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::byte* const row = keys.data + i * keys.stride[0];
    const std::int64_t key = (first_key + i) % page_keys;
    std::byte* const page = pages + std::size_t((first_key + i) / page_keys) * page_bytes;
    // Keys that are not there yet read as zero, whatever the block held before.
    if (key == 0) std::memset(page, 0, page_bytes);
    if (shape.layout == index_key_layout::interleaved) {
      std::memcpy(page + key * shape.bytes(), row, std::size_t(shape.bytes()));
    } else {
      std::memcpy(page + key * value_bytes, row, std::size_t(value_bytes));
      std::memcpy(page + page_keys * value_bytes + key * scale_bytes, row + value_bytes,
                  std::size_t(scale_bytes));
    }
  }
  return {};
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
