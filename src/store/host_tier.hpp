// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/store/backing_store.hpp>
#include <mutex>

#include "src/store/fast_tier.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// Slots in host memory; every call has done its work when it returns.
class host_tier final : public fast_tier {
 public:
  host_tier(const kv_geometry& geometry, memory_resource memory) noexcept;

  memory_resource memory() const noexcept override { return memory_; }
  bool host_memory() const noexcept override { return true; }
  std::size_t workspace_bytes() const noexcept override { return layer_bytes_; }
  void open_backing(const store_options& options, std::int64_t records,
                    std::unique_ptr<backing_store> own) override;
  bool set_up(fast_memory& memory) noexcept override;
  void tear_down(fast_memory& memory) noexcept override;
  bool reserve_records(std::int64_t records) noexcept override;
  bool idle() noexcept override { return true; }
  void shut_down() noexcept override {}
  const char* allocation_failure() noexcept override { return failure_; }
  fault enter(stream_ref stream) noexcept override;
  fault leave(stream_ref) noexcept override { return {}; }
  void poison(fast_slot& slot) noexcept override;
  void prepare(fast_slot& slot) noexcept override;
  fault scrub(fast_slot& slot, std::int64_t first_entry) noexcept override;
  void begin_rows() noexcept override {}
  fault write_rows(const row_span& span, const const_tensor<3>& k,
                   const const_tensor<3>& v) noexcept override;
  fault flush_rows(std::int32_t, const const_tensor<3>&, const const_tensor<3>&) noexcept override {
    return {};
  }
  fault seal(chunk_record& record) noexcept override;
  void begin_loads(bool) noexcept override {}
  fault load(const chunk_record& from, fast_slot& slot) noexcept override;
  fault flush_loads(std::uint64_t* ticket) noexcept override {
    *ticket = 0;
    return {};
  }
  fault loaded(std::uint64_t) noexcept override { return {}; }
  fault await_loads(std::uint64_t) noexcept override { return {}; }
  fault write_record(chunk_record& record, const std::byte* chunk) noexcept override;
  fault read_record(const chunk_record& record, std::byte* chunk) const noexcept override;
  fault read_piece(const chunk_record& record, std::int32_t layer, std::byte* piece) const noexcept override;
  std::byte* record_address(const chunk_record& record) noexcept override {
    return backing_->address(record.backing);
  }
  const std::byte* piece_address(const chunk_record& record, std::int32_t layer) const noexcept override {
    const std::byte* const at = verify_ ? nullptr : backing_->address(record.backing);
    return at == nullptr ? nullptr : at + layout_.key_offset(layer, 0);
  }
  fault copy_slot(fast_slot& to, const fast_slot& from) noexcept override;
  fault copy_keys(std::byte* to, const std::byte* from, std::size_t bytes) noexcept override;
  fault read_slot(const fast_slot& slot, std::byte* chunk) const noexcept override;
  fault write_slot(fast_slot& slot, const std::byte* chunk) noexcept override;
  fault append_index_keys(std::byte* pages, std::int64_t first_key,
                          const view<const std::byte, 2>& keys) noexcept override;

 private:
  void zero_piece_padding(std::byte* piece) const noexcept;
  fault verify(const chunk_record& record, const std::byte* chunk) const noexcept;
  status read(std::int64_t record, std::size_t offset, std::byte* to, std::size_t bytes,
              int* os_error) const noexcept;

  chunk_layout layout_;
  std::size_t chunk_bytes_, layer_bytes_;
  memory_resource memory_;
  std::unique_ptr<backing_store> backing_;
  bool verify_ = false;
  mutable std::mutex read_mutex_;  ///< const calls may come from several threads, most media take one
  char failure_[96] = "";
  std::byte* staging_ = nullptr;  ///< one layer's piece on its way to the backing store
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
