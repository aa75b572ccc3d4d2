// SPDX-License-Identifier: MIT
#include "src/session/sections.hpp"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <flashmemory/error.hpp>
#include <random>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

std::uint64_t section_seed(const file_id& id, std::uint64_t number) noexcept {
  const std::uint64_t place[] = {id[0], id[1], number};
  return XXH3_64bits(place, sizeof place);
}

}  // namespace

file_id fresh_file_id() {
  // A device without randomness of its own must still not give two files one name.
  static std::atomic<std::uint64_t> serial{0};
  std::random_device device;
  const auto word = [&] { return std::uint64_t{device()} << 32 | device(); };
  const std::uint64_t seen[] = {
      word(),
      word(),
      static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()),
      static_cast<std::uint64_t>(::getpid()),
      reinterpret_cast<std::uintptr_t>(&device),
      ++serial};
  return {XXH3_64bits_withSeed(seen, sizeof seen, 1), XXH3_64bits_withSeed(seen, sizeof seen, 2)};
}

std::uint64_t section_checksum(const void* data, std::size_t bytes, const file_id& id,
                               std::uint64_t number) noexcept {
  return XXH3_64bits_withSeed(data, bytes, section_seed(id, number));
}

std::uint64_t header_checksum(const void* data, std::size_t bytes) noexcept {
  return XXH3_64bits(data, bytes);
}

section_writer::section_writer(output& out, const file_id& id) : out_(out), id_(id) {}

void section_writer::put(const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  out_.write(data, bytes);
  digest_.add(data, bytes);
}

void section_writer::section(const void* data, std::size_t bytes) {
  put(data, bytes);
  const std::uint64_t checksum = section_checksum(data, bytes, id_, number_++);
  put(&checksum, sizeof checksum);
}

void section_writer::finish() {
  const std::uint64_t digest = digest_.value();
  out_.write(&digest, sizeof digest);
}

section_reader::section_reader(input& in) : in_(in) {}

void section_reader::read(void* data, std::size_t bytes, const char* field) {
  in_.read(data, bytes, field);
  digest_.add(data, bytes);
  section_.add(data, bytes);
}

void section_reader::begin() noexcept { section_.reset(section_seed(id_, number_++)); }

void section_reader::end(const char* field) {
  const std::uint64_t wanted = section_.value();
  std::uint64_t checksum;
  read(&checksum, sizeof checksum, field);
  if (checksum != wanted)
    throw format_error(
        status::bad_argument,
        formatted("{}: the checksum of {} does not match: it is damaged, or of another place or file", name(),
                  field));
}

void section_reader::section(void* data, std::size_t bytes, const char* field) {
  begin();
  read(data, bytes, field);
  end(field);
}

void section_reader::skip(std::uint64_t bytes, const char* field) {
  std::array<std::byte, 65536> piece;
  begin();
  while (bytes > 0) {
    const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, piece.size()));
    read(piece.data(), part, field);
    bytes -= part;
  }
  end(field);
}

void section_reader::finish() {
  const std::uint64_t wanted = digest_.value();
  std::uint64_t digest;
  in_.read(&digest, sizeof digest, "the digest");
  if (digest != wanted)
    throw format_error(status::bad_argument, formatted("{}: the digest of the whole does not match", name()));
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
