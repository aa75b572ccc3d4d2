// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/memory.hpp>
#include <flashmemory/status.hpp>
#include <memory>
#include <string>

namespace flashmemory {
inline namespace v0 {

/// Where the complete copy of every chunk lies: a flat space of records of equal size. An engine may bring
/// its own (another medium, a wrapper that injects faults); the store above it does the checksums. Calls are
/// made from one thread at a time, also where several threads are in const calls of the store, unless
/// concurrent_reads() says that reads may meet.
class FLASHMEMORY_API backing_store {
 public:
  virtual ~backing_store() = default;
  backing_store(const backing_store&) = delete;
  backing_store& operator=(const backing_store&) = delete;

  /// Makes sure that no write into records [0, records) will find the medium full, as long as this object lives. Called
  /// when a sequence is opened, with as many records as open sequences may use. Does nothing unless it is overridden.
  /// \returns io_error with *os_error set
  virtual status reserve(std::int64_t records, int* os_error) noexcept {
    static_cast<void>(records);
    if (os_error) *os_error = 0;
    return status::ok;
  }

  /// Writes `bytes` bytes into a record at `offset`. io_error with *os_error set; a failed write may leave
  /// the range undefined, nothing else.
  virtual status write(std::int64_t record, std::size_t offset, const void* data, std::size_t bytes,
                       int* os_error) noexcept = 0;

  /// Reads what write() wrote.
  virtual status read(std::int64_t record, std::size_t offset, void* data, std::size_t bytes,
                      int* os_error) const noexcept = 0;

  /// Where a record lies, for media in host memory: then chunks are read and written there and no second copy is made. The
  /// address holds as long as this object lives. Null, the default, for all others.
  virtual std::byte* address(std::int64_t record) noexcept {
    static_cast<void>(record);
    return nullptr;
  }

  /// True if what is read should be verified against its checksum (media that can rot or be changed by
  /// others).
  virtual bool needs_verification() const noexcept = 0;

  /// True if read() may be called by several threads at once. write() never runs beside another call.
  virtual bool concurrent_reads() const noexcept { return false; }

 protected:
  backing_store() = default;
};

/// Records in host memory, one block of `records` x `record_bytes` taken from `memory` up front and touched
/// as used.
/// \throws admission_error if `memory` has no such block
FLASHMEMORY_API std::unique_ptr<backing_store> make_ram_backing(std::int64_t records,
                                                                std::size_t record_bytes,
                                                                memory_resource memory);

/// Records in a file of this object's own beside `path`: in the same folder and thus on the same disk, and without a name
/// as soon as it is there, so that nobody else can take it for theirs and nothing is left of it however the process
/// ends. It can be seen below /proc/PID/fd. `path` itself must not exist, and does not come to exist.
///
/// Only the process that made it writes to it; of a forked child every write is io_error (EPERM), so that it cannot
/// spoil what its parent reads.
/// \param reserve  take the space of records when they are reserved, not when they are written. Without it the file is
///     sparse, and a disk that is full later fails a step
/// \throws io_failure if `path` exists or the file cannot be created
FLASHMEMORY_API std::unique_ptr<backing_store> make_file_backing(const std::string& path,
                                                                 std::int64_t records,
                                                                 std::size_t record_bytes,
                                                                 bool reserve = true);

}  // namespace v0
}  // namespace flashmemory
