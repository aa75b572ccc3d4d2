// SPDX-License-Identifier: MIT
#include "src/session/session_header.hpp"

#include <cstring>
#include <flashmemory/error.hpp>
#include <limits>

#include "src/core/format.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

constexpr std::uint64_t session_magic = 0x315353454d4c46;  // "FLMESS1", then a zero byte
constexpr std::uint32_t session_version = 2;
constexpr std::uint64_t checksum_bytes = sizeof(std::uint64_t);
constexpr int format_shift = 8;  // `type` holds the dtype and above it the kv_format, which once was only one
constexpr int index_key_type_shift = 24;
constexpr std::uint32_t max_header_bytes_read = 1 << 20;

/// What every version begins with.
struct preamble {
  std::uint64_t magic = session_magic;
  std::uint32_t version = session_version;
  std::uint32_t header_bytes = 0;  ///< up to and with its checksum
  std::uint64_t file_bytes = 0;
};

/// The fixed part as it lies in the file: naturally aligned, without holes.
struct fixed_part {
  preamble start;
  std::int32_t layers = 0, kv_heads = 0, key_dim = 0, value_dim = 0, type = 0;
  std::int32_t entries_per_chunk = 0, tokens_per_entry = 0;
  std::int32_t lanes = 0, tokens_per_key = 0,
               index_key = 0;  ///< index_key: its bytes, and its type in the upper bits
  std::int32_t sink_chunks = 0, recent_chunks = 0;
  std::int64_t max_tokens = 0, max_resident_chunks = 0;
  std::int64_t tokens = 0, resident = 0, state_bytes = 0;
  file_id id{};
  std::uint64_t encoder = 0;
  std::int32_t tag_bytes = 0, encoder_name_bytes = 0;
};
static_assert(sizeof(preamble) == 24 && sizeof(fixed_part) == 24 + 12 * 4 + 5 * 8 + 16 + 8 + 2 * 4,
              "the file format has no padding");

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

std::uint64_t header_bytes(std::uint64_t lanes, std::uint64_t name_bytes) noexcept {
  return sizeof(fixed_part) + lanes * sizeof(std::int64_t) + name_bytes + checksum_bytes;
}

const char* name_of(kv_format format) noexcept {
  return format == kv_format::separate ? "separate" : format == kv_format::deepseek_v4 ? "deepseek_v4" : "?";
}

/// Compares what a file says with what is there, in words.
class comparison {
 public:
  explicit comparison(const std::string& file) : file_(file) {}
  [[noreturn]] void reject(const std::string& what) const {
    throw format_error(status::bad_argument, formatted("{}: {}", file_, what));
  }
  void same(const char* field, std::int64_t found, std::int64_t wanted) const {
    if (found != wanted) reject(formatted("{} is {}, the store's is {}", field, found, wanted));
  }
  void same_words(const char* field, std::int32_t found, std::int32_t wanted, const char* found_name,
                  const char* wanted_name) const {
    if (found == wanted) return;
    const std::string number =
        *found_name == '?' ? formatted("unknown to this library ({})", found) : found_name;
    reject(formatted("{} is {}, the store's is {}", field, number, wanted_name));
  }

 private:
  const std::string& file_;
};

std::string tag_text(const std::string& tag) {
  return tag.empty() ? "no model tag" : formatted("model tag '{}'", printable(tag));
}

}  // namespace

void require_keys_in_host_memory(const chunk_store& store, const char* doing) {
  const auto* const tiered = dynamic_cast<const tiered_chunk_store*>(&store);
  if (store.geometry().index_keys.lanes == 0 || tiered == nullptr ||
      store_access::of(*tiered).tier->host_memory())
    return;
  throw error(
      status::unsupported,
      formatted("{} a session: the store's index keys lie in device memory, which sessions do not reach",
                doing));
}

std::uint64_t session_bytes(const session_header& h, const std::string& name) {
  byte_count count(name);
  count.add(1, header_bytes(h.keys.size(), h.model_tag.size() + h.encoder_name.size()));
  count.add(static_cast<std::uint64_t>(h.resident), sizeof(chunk_id));
  count.add(1, checksum_bytes);
  count.add(static_cast<std::uint64_t>(h.chunks()), chunk_layout(h.geometry).chunk_bytes() + checksum_bytes);
  for (const std::int64_t keys : h.keys) {
    count.add(static_cast<std::uint64_t>(keys), static_cast<std::uint64_t>(h.geometry.index_keys.bytes()));
    count.add(1, checksum_bytes);
  }
  count.add(static_cast<std::uint64_t>(h.state_bytes), 1);
  count.add(2, checksum_bytes);
  return count.total();
}

std::vector<std::byte> encode_header(const session_header& h) {
  fixed_part fixed;
  const std::uint64_t names = h.model_tag.size() + h.encoder_name.size();
  fixed.start.header_bytes = static_cast<std::uint32_t>(header_bytes(h.keys.size(), names));
  fixed.start.file_bytes = session_bytes(h, "session");
  const kv_geometry& g = h.geometry;
  fixed.layers = g.layers;
  fixed.kv_heads = g.kv_heads;
  fixed.key_dim = g.key_dim;
  fixed.value_dim = g.value_dim;
  fixed.type = static_cast<std::int32_t>(g.type) | static_cast<std::int32_t>(g.format) << format_shift;
  fixed.entries_per_chunk = g.entries_per_chunk;
  fixed.tokens_per_entry = g.tokens_per_entry;
  fixed.lanes = g.index_keys.lanes;
  fixed.tokens_per_key = g.index_keys.tokens_per_key;
  fixed.index_key = g.index_keys.bytes() | static_cast<std::int32_t>(g.index_keys.type)
                                               << index_key_type_shift;
  fixed.sink_chunks = h.options.sink_chunks;
  fixed.recent_chunks = h.options.recent_chunks;
  fixed.max_tokens = h.options.max_tokens;
  fixed.max_resident_chunks = h.options.max_resident_chunks;
  fixed.tokens = h.tokens;
  fixed.resident = h.resident;
  fixed.state_bytes = h.state_bytes;
  fixed.id = h.id;
  fixed.encoder = h.encoder;
  fixed.tag_bytes = static_cast<std::int32_t>(h.model_tag.size());
  fixed.encoder_name_bytes = static_cast<std::int32_t>(h.encoder_name.size());

  std::vector<std::byte> out(fixed.start.header_bytes);
  std::byte* to = out.data();
  const auto put = [&](const void* data, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, data, bytes);
    to += bytes;
  };
  put(&fixed, sizeof fixed);
  put(h.keys.data(), h.keys.size() * sizeof(std::int64_t));
  put(h.model_tag.data(), h.model_tag.size());
  put(h.encoder_name.data(), h.encoder_name.size());
  const std::uint64_t checksum = header_checksum(out.data(), out.size() - checksum_bytes);
  put(&checksum, sizeof checksum);
  return out;
}

session_header read_header(section_reader& in, const kv_geometry& geometry, const std::string& model_tag) {
  const comparison check(in.name());
  preamble start;
  in.read(&start, sizeof start, "the header");
  if (start.magic != session_magic) check.reject("it is no flashmemory session");
  if (start.version != session_version)
    check.reject(
        formatted("a session of version {}, this library reads version {}", start.version, session_version));
  if (in.size() != input::unknown_size && start.file_bytes != in.size())
    check.reject(formatted("the header says {} bytes, the file has {}", start.file_bytes, in.size()));
  if (start.header_bytes < header_bytes(0, 0) || start.header_bytes > max_header_bytes_read ||
      start.header_bytes > start.file_bytes)
    check.reject(formatted("a header of {} bytes in a file of {}", start.header_bytes, start.file_bytes));

  std::vector<std::byte> image(start.header_bytes);
  std::memcpy(image.data(), &start, sizeof start);
  in.read(image.data() + sizeof start, image.size() - sizeof start, "the header");
  std::uint64_t checksum;
  const std::size_t body = image.size() - checksum_bytes;
  std::memcpy(&checksum, image.data() + body, sizeof checksum);
  if (header_checksum(image.data(), body) != checksum) check.reject("the header's checksum does not match");
  fixed_part fixed;
  std::memcpy(&fixed, image.data(), sizeof fixed);
  const auto is_name = [](std::int32_t bytes) { return bytes >= 0 && std::size_t(bytes) <= max_name_bytes; };
  if (fixed.lanes < 0 || !is_name(fixed.tag_bytes) || !is_name(fixed.encoder_name_bytes) ||
      start.header_bytes !=
          header_bytes(std::uint64_t(fixed.lanes),
                       std::uint64_t(fixed.tag_bytes) + std::uint64_t(fixed.encoder_name_bytes)))
    check.reject(formatted("{} lanes of index keys, names of {} and {} bytes and header_bytes {} disagree",
                           fixed.lanes, fixed.tag_bytes, fixed.encoder_name_bytes, start.header_bytes));

  session_header h;
  const auto* names = reinterpret_cast<const char*>(image.data()) + sizeof fixed +
                      std::size_t(fixed.lanes) * sizeof(std::int64_t);
  h.model_tag.assign(names, std::size_t(fixed.tag_bytes));
  h.encoder_name.assign(names + fixed.tag_bytes, std::size_t(fixed.encoder_name_bytes));
  if (h.model_tag != model_tag)
    check.reject(
        formatted("it was saved with {}, the engine gives {}", tag_text(h.model_tag), tag_text(model_tag)));
  check.same("layers", fixed.layers, geometry.layers);
  check.same("kv_heads", fixed.kv_heads, geometry.kv_heads);
  check.same("key_dim", fixed.key_dim, geometry.key_dim);
  check.same("value_dim", fixed.value_dim, geometry.value_dim);
  const std::int32_t format = fixed.type >> format_shift, type = fixed.type & ((1 << format_shift) - 1);
  check.same_words("format", format, static_cast<std::int32_t>(geometry.format),
                   name_of(static_cast<kv_format>(format)), name_of(geometry.format));
  check.same_words("type", type, static_cast<std::int32_t>(geometry.type),
                   to_string(static_cast<dtype>(type)), to_string(geometry.type));
  check.same("entries_per_chunk", fixed.entries_per_chunk, geometry.entries_per_chunk);
  check.same("tokens_per_entry", fixed.tokens_per_entry, geometry.tokens_per_entry);
  check.same("index_keys.lanes", fixed.lanes, geometry.index_keys.lanes);
  if (geometry.index_keys.lanes > 0) {
    check.same("index_keys.tokens_per_key", fixed.tokens_per_key, geometry.index_keys.tokens_per_key);
    const std::int32_t keys = fixed.index_key >> index_key_type_shift;
    check.same_words("index_keys.type", keys, static_cast<std::int32_t>(geometry.index_keys.type),
                     to_string(static_cast<index_key_type>(keys)), to_string(geometry.index_keys.type));
    check.same("bytes of index keys", fixed.index_key & ((1 << index_key_type_shift) - 1),
               geometry.index_keys.bytes());
  }

  h.geometry = geometry;
  h.options.sink_chunks = fixed.sink_chunks;
  h.options.recent_chunks = fixed.recent_chunks;
  h.options.max_tokens = fixed.max_tokens;
  h.options.max_resident_chunks = fixed.max_resident_chunks;
  h.tokens = fixed.tokens;
  h.resident = fixed.resident;
  h.state_bytes = fixed.state_bytes;
  h.id = fixed.id;
  h.encoder = fixed.encoder;
  const auto within = [&](const char* field, std::int64_t value, std::int64_t most) {
    if (value < 0 || value > most)
      check.reject(formatted("{} is {}, at most {} is possible", field, value, most));
  };
  // Half of the range keeps chunks_for() from overflowing.
  within("max_tokens", h.options.max_tokens, std::numeric_limits<std::int64_t>::max() / 2);
  within("tokens", h.tokens, h.options.max_tokens);
  within("resident", h.resident, h.complete_chunks());
  within("state_bytes", h.state_bytes, std::numeric_limits<std::int64_t>::max());
  h.keys.resize(static_cast<std::size_t>(fixed.lanes));
  if (!h.keys.empty())
    std::memcpy(h.keys.data(), image.data() + sizeof fixed, h.keys.size() * sizeof(std::int64_t));
  for (const std::int64_t keys : h.keys)
    within("index keys", keys, h.tokens / geometry.index_keys.tokens_per_key);
  if (const std::uint64_t bytes = session_bytes(h, in.name()); bytes != start.file_bytes)
    check.reject(formatted("the header describes {} bytes, the file has {}", bytes, start.file_bytes));
  in.set_id(h.id);
  return h;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
