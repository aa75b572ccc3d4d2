// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/store/backing_store.hpp>

#include "src/core/format.hpp"
#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

constexpr std::size_t block_alignment = 4096;

class ram_backing final : public backing_store {
 public:
  ram_backing(std::int64_t records, std::size_t record_bytes, memory_resource memory)
      : records_(records), record_bytes_(record_bytes), memory_(memory) {
    if (records < 1 || record_bytes < 1)
      throw argument_error(status::bad_argument,
                           formatted("ram backing store: {} records of {} bytes; both must be at least 1",
                                     records, record_bytes));
    if (!memory.allocate || !memory.deallocate)
      throw argument_error(status::null_data, "ram backing store: the memory resource lacks a function");
    const std::size_t bytes = detail::saturating_multiply(std::size_t(records), record_bytes);
    block_ = static_cast<std::byte*>(memory.allocate(memory.context, bytes, block_alignment));
    if (!block_)
      throw admission_error(status::budget_exceeded,
                            formatted("ram backing store: host memory has no block of {} records x {} bytes "
                                      "= {} bytes",
                                      records, record_bytes, bytes));
  }

  ~ram_backing() override {
    memory_.deallocate(memory_.context, block_, std::size_t(records_) * record_bytes_, block_alignment);
  }

  status write(std::int64_t record, std::size_t offset, const void* data, std::size_t bytes,
               int* os_error) noexcept override {
    if (os_error) *os_error = 0;
    if (!inside(record, offset, bytes)) return status::out_of_range;
    std::memcpy(at(record, offset), data, bytes);
    return status::ok;
  }

  status read(std::int64_t record, std::size_t offset, void* data, std::size_t bytes,
              int* os_error) const noexcept override {
    if (os_error) *os_error = 0;
    if (!inside(record, offset, bytes)) return status::out_of_range;
    std::memcpy(data, at(record, offset), bytes);
    return status::ok;
  }

  std::byte* address(std::int64_t record) noexcept override {
    return inside(record, 0, record_bytes_) ? at(record, 0) : nullptr;
  }

  bool needs_verification() const noexcept override { return false; }
  bool concurrent_reads() const noexcept override { return true; }

 private:
  bool inside(std::int64_t record, std::size_t offset, std::size_t bytes) const noexcept {
    return record >= 0 && record < records_ && offset <= record_bytes_ && bytes <= record_bytes_ - offset;
  }
  std::byte* at(std::int64_t record, std::size_t offset) const noexcept {
    return block_ + std::size_t(record) * record_bytes_ + offset;
  }

  std::int64_t records_;
  std::size_t record_bytes_;
  memory_resource memory_;
  std::byte* block_ = nullptr;
};

}  // namespace

std::unique_ptr<backing_store> make_ram_backing(std::int64_t records, std::size_t record_bytes,
                                                memory_resource memory) {
  return std::make_unique<ram_backing>(records, record_bytes, memory);
}

}  // namespace v0
}  // namespace flashmemory
