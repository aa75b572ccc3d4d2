// SPDX-License-Identifier: MIT
#include "src/session/session_header.hpp"

#include <xxhash.h>

#include <cstring>
#include <flashmemory/error.hpp>
#include <limits>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

constexpr std::uint64_t session_magic = 0x315353454d4c46;  // "FLMESS1", then a zero byte
constexpr std::uint32_t session_version = 1;
constexpr std::uint64_t checksum_bytes = sizeof(std::uint64_t);
constexpr int format_shift = 8;  // `type` holds the dtype and above it the kv_format, which once was only one

/// The fixed part as it lies in the file: naturally aligned, without holes.
struct fixed_part {
  std::uint64_t magic = session_magic;
  std::uint32_t version = session_version;
  std::uint32_t header_bytes = 0;  ///< up to and with its checksum
  std::uint64_t file_bytes = 0;
  std::int32_t layers = 0, kv_heads = 0, key_dim = 0, value_dim = 0, type = 0;
  std::int32_t entries_per_chunk = 0, tokens_per_entry = 0;
  std::int32_t key_streams = 0, tokens_per_key = 0, key_bytes = 0;
  std::int32_t sink_chunks = 0, recent_chunks = 0;
  std::int64_t max_tokens = 0, max_resident_chunks = 0;
  std::int64_t tokens = 0, resident = 0, state_bytes = 0;
};
static_assert(sizeof(fixed_part) == 24 + 12 * 4 + 5 * 8, "the file format has no padding");

/// A sum of products that notices when it leaves 64 bits.
class byte_count {
 public:
  explicit byte_count(const std::string& name) : name_(name) {}
  void add(std::uint64_t count, std::uint64_t each) {
    if (each != 0 && count > (limit - total_) / each)
      throw format_error(status::bad_argument, formatted("{}: the header describes too many bytes", name_));
    total_ += count * each;
  }
  std::uint64_t total() const noexcept { return total_; }

 private:
  static constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
  const std::string& name_;
  std::uint64_t total_ = 0;
};

std::uint64_t header_bytes(std::uint64_t key_streams) noexcept {
  return sizeof(fixed_part) + key_streams * sizeof(std::int64_t) + checksum_bytes;
}

}  // namespace

std::uint64_t section_checksum(const void* data, std::size_t bytes) noexcept {
  return XXH3_64bits(data, bytes);
}

std::uint64_t session_bytes(const session_header& h, const std::string& name) {
  byte_count count(name);
  count.add(1, header_bytes(h.keys.size()));
  count.add(static_cast<std::uint64_t>(h.resident), sizeof(chunk_id));
  count.add(1, checksum_bytes);
  count.add(static_cast<std::uint64_t>(h.state_bytes), 1);
  count.add(1, checksum_bytes);
  for (const std::int64_t keys : h.keys) {
    count.add(static_cast<std::uint64_t>(keys), static_cast<std::uint64_t>(h.geometry.index_keys.bytes()));
    count.add(1, checksum_bytes);
  }
  count.add(static_cast<std::uint64_t>(h.chunks()), chunk_layout(h.geometry).chunk_bytes() + checksum_bytes);
  return count.total();
}

std::vector<std::byte> encode_header(const session_header& h) {
  fixed_part fixed;
  fixed.header_bytes = static_cast<std::uint32_t>(header_bytes(h.keys.size()));
  fixed.file_bytes = session_bytes(h, "session");
  const kv_geometry& g = h.geometry;
  fixed.layers = g.layers;
  fixed.kv_heads = g.kv_heads;
  fixed.key_dim = g.key_dim;
  fixed.value_dim = g.value_dim;
  fixed.type = static_cast<std::int32_t>(g.type) | static_cast<std::int32_t>(g.format) << format_shift;
  fixed.entries_per_chunk = g.entries_per_chunk;
  fixed.tokens_per_entry = g.tokens_per_entry;
  fixed.key_streams = g.index_keys.lanes;
  fixed.tokens_per_key = g.index_keys.tokens_per_key;
  fixed.key_bytes = g.index_keys.bytes();
  fixed.sink_chunks = h.options.sink_chunks;
  fixed.recent_chunks = h.options.recent_chunks;
  fixed.max_tokens = h.options.max_tokens;
  fixed.max_resident_chunks = h.options.max_resident_chunks;
  fixed.tokens = h.tokens;
  fixed.resident = h.resident;
  fixed.state_bytes = h.state_bytes;

  std::vector<std::byte> out(fixed.header_bytes);
  std::memcpy(out.data(), &fixed, sizeof fixed);
  if (!h.keys.empty())
    std::memcpy(out.data() + sizeof fixed, h.keys.data(), h.keys.size() * sizeof(std::int64_t));
  const std::size_t body = out.size() - checksum_bytes;
  const std::uint64_t checksum = section_checksum(out.data(), body);
  std::memcpy(out.data() + body, &checksum, sizeof checksum);
  return out;
}

session_header read_header(byte_source& in, const kv_geometry& geometry) {
  const auto reject = [&](const std::string& what) {
    throw format_error(status::bad_argument, formatted("{}: {}", in.name(), what));
  };
  fixed_part fixed;
  in.read(&fixed, sizeof fixed, "the header");
  if (fixed.magic != session_magic) reject("it is no flashmemory session");
  if (fixed.version != session_version)
    reject(formatted("version {}, this library reads {}", fixed.version, session_version));
  if (fixed.key_streams < 0 ||
      fixed.header_bytes != header_bytes(static_cast<std::uint64_t>(fixed.key_streams)))
    reject(formatted("key_streams {} and header_bytes {} disagree", fixed.key_streams, fixed.header_bytes));
  if (fixed.file_bytes != in.size())
    reject(formatted("the header says {} bytes, the file has {}", fixed.file_bytes, in.size()));
  if (fixed.header_bytes > in.size()) reject("ends within the header");

  std::vector<std::byte> image(fixed.header_bytes);
  std::memcpy(image.data(), &fixed, sizeof fixed);
  in.read(image.data() + sizeof fixed, image.size() - sizeof fixed, "the header");
  std::uint64_t checksum;
  const std::size_t body = image.size() - checksum_bytes;
  std::memcpy(&checksum, image.data() + body, sizeof checksum);
  if (section_checksum(image.data(), body) != checksum) reject("the header's checksum does not match");

  const auto same = [&](const char* field, std::int64_t found, std::int64_t wanted) {
    if (found != wanted) reject(formatted("{} is {}, the store's is {}", field, found, wanted));
  };
  same("layers", fixed.layers, geometry.layers);
  same("kv_heads", fixed.kv_heads, geometry.kv_heads);
  same("key_dim", fixed.key_dim, geometry.key_dim);
  same("value_dim", fixed.value_dim, geometry.value_dim);
  same("format", fixed.type >> format_shift, static_cast<std::int32_t>(geometry.format));
  same("type", fixed.type & ((1 << format_shift) - 1), static_cast<std::int32_t>(geometry.type));
  same("entries_per_chunk", fixed.entries_per_chunk, geometry.entries_per_chunk);
  same("tokens_per_entry", fixed.tokens_per_entry, geometry.tokens_per_entry);
  same("key_streams", fixed.key_streams, geometry.index_keys.lanes);
  if (geometry.index_keys.lanes > 0) {
    same("tokens_per_key", fixed.tokens_per_key, geometry.index_keys.tokens_per_key);
    same("key_bytes", fixed.key_bytes, geometry.index_keys.bytes());
  }

  session_header h;
  h.geometry = geometry;
  h.options.sink_chunks = fixed.sink_chunks;
  h.options.recent_chunks = fixed.recent_chunks;
  h.options.max_tokens = fixed.max_tokens;
  h.options.max_resident_chunks = fixed.max_resident_chunks;
  h.tokens = fixed.tokens;
  h.resident = fixed.resident;
  h.state_bytes = fixed.state_bytes;
  const auto within = [&](const char* field, std::int64_t value, std::int64_t most) {
    if (value < 0 || value > most) reject(formatted("{} is {}, at most {} is possible", field, value, most));
  };
  // Half of the range keeps chunks_for() from overflowing.
  within("max_tokens", h.options.max_tokens, std::numeric_limits<std::int64_t>::max() / 2);
  within("tokens", h.tokens, h.options.max_tokens);
  within("resident", h.resident, h.complete_chunks());
  within("state_bytes", h.state_bytes, static_cast<std::int64_t>(in.size()));
  h.keys.resize(static_cast<std::size_t>(fixed.key_streams));
  if (!h.keys.empty())
    std::memcpy(h.keys.data(), image.data() + sizeof fixed, h.keys.size() * sizeof(std::int64_t));
  for (const std::int64_t keys : h.keys)
    within("index keys", keys, h.tokens / geometry.index_keys.tokens_per_key);
  if (const std::uint64_t bytes = session_bytes(h, in.name()); bytes != in.size())
    reject(formatted("the header describes {} bytes, the file has {}", bytes, in.size()));
  return h;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
