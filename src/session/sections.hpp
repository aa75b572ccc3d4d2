// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "src/io/input.hpp"
#include "src/io/running_hash.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// 128 random bits that tell one file from every other.
using file_id = std::array<std::uint64_t, 2>;

file_id fresh_file_id();

/// XXH3 of a section's bytes that holds in this file and in this place of it only: sections that are exchanged, or that
/// come from another save, do not match.
std::uint64_t section_checksum(const void* data, std::size_t bytes, const file_id& id,
                               std::uint64_t number) noexcept;

/// XXH3 of a header, which comes before there is an id.
std::uint64_t header_checksum(const void* data, std::size_t bytes) noexcept;

/// Where a session goes.
class output {
 public:
  virtual ~output() = default;
  output(const output&) = delete;
  output& operator=(const output&) = delete;

  /// \throws io_failure
  virtual void write(const void* data, std::size_t bytes) = 0;

 protected:
  output() = default;
};

/// A header, numbered sections each followed by its checksum, and the digest of it all.
class section_writer {
 public:
  section_writer(output& out, const file_id& id);
  void header(const std::vector<std::byte>& bytes) { put(bytes.data(), bytes.size()); }
  void section(const void* data, std::size_t bytes);
  void finish();

 private:
  void put(const void* data, std::size_t bytes);

  output& out_;
  file_id id_;
  std::uint64_t number_ = 0;
  running_hash digest_;
};

/// Reads what a section_writer wrote. A section is read in as many parts as the reader likes, between begin() and end().
class section_reader final : public input {
 public:
  explicit section_reader(input& in);
  std::uint64_t size() const noexcept override { return in_.size(); }
  const std::string& name() const noexcept override { return in_.name(); }
  void read(void* data, std::size_t bytes, const char* field) override;

  /// Once the header has been read.
  void set_id(const file_id& id) noexcept { id_ = id; }
  void begin() noexcept;
  /// \throws format_error naming `field` if the checksum is another one
  void end(const char* field);
  void section(void* data, std::size_t bytes, const char* field);
  /// Reads a section for its checksum alone.
  void skip(std::uint64_t bytes, const char* field);
  /// \throws format_error if the digest is another one
  void finish();

 private:
  input& in_;
  file_id id_{};
  std::uint64_t number_ = 0;
  running_hash digest_, section_;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
