// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <map>
#include <string>
#include <vector>

#include "tests/support/store_values.hpp"
#include "tests/support/temporary_folder.hpp"

/// What the store's tests share: made-up K and V that can be computed again from a tag, a memory resource
/// that counts, backing stores that fail on demand.
namespace store_testing {

inline const fm::stream_ref host = fm::stream_ref::host();

/// Counts what is taken and given back, checks that sizes agree, and can run dry.
class counting_memory {
 public:
  fm::memory_resource resource() {
    fm::memory_resource r;
    r.context = this;
    r.allocate = [](void* self, std::size_t bytes, std::size_t alignment) {
      return static_cast<counting_memory*>(self)->take(bytes, alignment);
    };
    r.deallocate = [](void* self, void* block, std::size_t bytes, std::size_t alignment) {
      static_cast<counting_memory*>(self)->give(block, bytes, alignment);
    };
    return r;
  }
  std::size_t in_use = 0, peak = 0;
  std::int64_t calls = 0;
  std::int64_t allowed = -1;  ///< allocations that still succeed; -1 = any number
  bool mismatched = false;
  std::map<void*, std::size_t> blocks;

 private:
  void* take(std::size_t bytes, std::size_t alignment) {
    ++calls;
    if (allowed == 0) return nullptr;
    if (allowed > 0) --allowed;
    void* block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    blocks[block] = bytes;
    in_use += bytes;
    peak = std::max(peak, in_use);
    return block;
  }
  void give(void* block, std::size_t bytes, std::size_t) {
    const auto at = blocks.find(block);
    if (at == blocks.end() || at->second != bytes)
      mismatched = true;
    else
      blocks.erase(at);
    in_use -= bytes;
    std::free(block);
  }
};

/// A path that no other test uses; whatever is there goes away with it.
class temporary_path {
 public:
  const std::string& string() const { return path_; }

 private:
  flashmemory_test::temporary_folder folder_;
  std::string path_ = folder_.file("store");
};

/// Passes calls on to another backing store and refuses the n-th read or write, or several from there on.
class failing_backing : public fm::backing_store {
 public:
  struct switches {
    std::int64_t reads = 0, writes = 0;  ///< so far
    std::int64_t fail_read = -1;         ///< the read with this number fails
    std::int64_t failing_reads = 1;      ///< as many running; flip_read likewise
    std::int64_t fail_write = -1;
    std::int64_t read_only_after = -1;  ///< every write from this number on fails
    int os_error = 5;
    bool verify = false;
    std::int64_t flip_read = -1;  ///< the read with this number returns one changed byte
    std::size_t flip_at = 0;
  };

  failing_backing(std::unique_ptr<fm::backing_store> inner, switches* control)
      : inner_(std::move(inner)), control_(control) {}

  fm::status write(std::int64_t record, std::size_t offset, const void* data, std::size_t bytes,
                   int* os_error) noexcept override {
    const std::int64_t number = control_->writes++;
    const bool full = control_->read_only_after >= 0 && number >= control_->read_only_after;
    if (number == control_->fail_write || full) {
      // A failed write may leave half of the range behind.
      int ignored;
      (void)inner_->write(record, offset, data, bytes / 2, &ignored);
      *os_error = control_->os_error;
      return fm::status::io_error;
    }
    return inner_->write(record, offset, data, bytes, os_error);
  }
  fm::status read(std::int64_t record, std::size_t offset, void* data, std::size_t bytes,
                  int* os_error) const noexcept override {
    const std::int64_t number = control_->reads++;
    if (hit(control_->fail_read, number)) {
      std::memset(data, 0x5a, bytes / 2);
      *os_error = control_->os_error;
      return fm::status::io_error;
    }
    const fm::status code = inner_->read(record, offset, data, bytes, os_error);
    if (hit(control_->flip_read, number))
      static_cast<unsigned char*>(data)[control_->flip_at % bytes] ^= 0x10;
    return code;
  }
  bool needs_verification() const noexcept override { return control_->verify; }

 private:
  bool hit(std::int64_t first, std::int64_t number) const noexcept {
    return first >= 0 && number >= first && number < first + control_->failing_reads;
  }

  std::unique_ptr<fm::backing_store> inner_;
  switches* control_;
};

/// RAM for what the options say, which fails when it is told to.
inline std::unique_ptr<fm::backing_store> failing_ram(const fm::store_options& o,
                                                      failing_backing::switches* control) {
  const auto bytes = fm::chunk_layout(o.geometry).chunk_bytes();
  return std::make_unique<failing_backing>(
      fm::make_ram_backing(std::int64_t(o.backing_bytes / bytes), bytes, fm::default_memory()), control);
}

inline fm::kv_geometry small_geometry() {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 2;
  g.key_dim = 8;
  g.value_dim = 6;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = 4;
  g.index_keys.lanes = 1;
  g.index_keys.tokens_per_key = 2;
  g.index_keys.dim = 8;
  return g;
}

/// `count` index keys with finite bytes and scales.
inline std::vector<std::byte> make_keys(const fm::kv_geometry& g, std::int64_t count, std::uint64_t tag) {
  std::vector<std::byte> out(std::size_t(count * g.index_keys.bytes()) + 1);
  for (std::int64_t i = 0; i < count; ++i) {
    std::byte* const row = out.data() + i * g.index_keys.bytes();
    for (std::int32_t b = 0; b < g.index_keys.bytes() - 4; ++b) {
      auto bits = static_cast<unsigned char>(mixed(tag + std::uint64_t(i) * 131 + std::uint64_t(b)));
      if ((bits & 0x7f) == 0x7f) bits ^= 1;
      row[b] = std::byte{bits};
    }
    const float scale = 0.25f + float(mixed(tag + std::uint64_t(i)) % 1000) / 1000.0f;
    std::memcpy(row + g.index_keys.bytes() - 4, &scale, 4);
  }
  return out;
}

inline fm::view<const std::byte, 2> key_view(const fm::kv_geometry& g, const std::vector<std::byte>& keys,
                                             std::int64_t count) {
  return fm::view<const std::byte, 2>(keys.data(), count, g.index_keys.bytes());
}

/// One sequence as its engine remembers it.
struct engine_sequence {
  fm::sequence_handle handle;
  std::vector<std::uint64_t> tags;  ///< one per entry
  std::int64_t tokens = 0;
};

inline std::vector<std::uint64_t> new_tags(const fm::kv_geometry& g, const engine_sequence& s,
                                           std::int64_t tokens, std::uint64_t seed) {
  std::vector<std::uint64_t> tags;
  const std::int64_t count = g.entries_for(s.tokens + tokens) - g.entries_for(s.tokens);
  for (std::int64_t i = 0; i < count; ++i) tags.push_back(mixed(seed * 7919 + std::uint64_t(i)) ^ seed);
  return tags;
}

/// A forward pass of one sequence through all layers. On an error the model stays as it was.
inline fm::status grow(fm::chunk_store& store, engine_sequence& s, std::int64_t tokens, std::uint64_t seed) {
  const fm::kv_geometry& g = store.geometry();
  const auto tags = new_tags(g, s, tokens, seed);
  const fm::batch_item item{s.handle, s.tokens, std::int32_t(tokens)};
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const made_rows rows = make_rows(g, tags, layer);
    const fm::status code = store.append(fm::batch(&item, 1), layer, rows.k_view, rows.v_view, host);
    if (code != fm::status::ok) return code;
  }
  s.tags.insert(s.tags.end(), tags.begin(), tags.end());
  s.tokens += tokens;
  return fm::status::ok;
}

inline fm::status recall(fm::chunk_store& store, const engine_sequence& s,
                         const std::vector<fm::chunk_id>& chunks, fm::recall_report* report = nullptr) {
  return store.recall(s.handle, fm::view<const fm::chunk_id, 1>(chunks.data(), chunks.size()), report, host);
}

/// Token by token, with a recall of nothing whenever a chunk is complete, as an engine with a small quota
/// decodes.
inline fm::status decode(fm::chunk_store& store, engine_sequence& s, std::int64_t tokens,
                         std::uint64_t seed) {
  for (std::int64_t i = 0; i < tokens; ++i) {
    fm::status code = fm::status::ok;
    if (s.tokens % store.geometry().tokens_per_chunk() == 0) code = recall(store, s, {});
    if (code == fm::status::ok) code = grow(store, s, 1, seed + std::uint64_t(i));
    if (code != fm::status::ok) return code;
  }
  return fm::status::ok;
}

inline fm::resident_set resident(const fm::chunk_store& store, const engine_sequence& s,
                                 std::int32_t layer = 0) {
  fm::resident_set set;
  if (store.resident(s.handle, layer, &set) != fm::status::ok) throw std::runtime_error("resident() failed");
  return set;
}

inline std::vector<fm::chunk_id> resident_ids(const fm::chunk_store& store, const engine_sequence& s,
                                              std::int32_t layer = 0) {
  std::vector<fm::chunk_id> ids;
  const fm::resident_set set = resident(store, s, layer);
  for (std::int64_t i = 0; i < set.count; ++i) ids.push_back(set.chunks[i].id);
  return ids;
}

inline fm::sequence_info info(const fm::chunk_store& store, const engine_sequence& s) {
  fm::sequence_info i;
  if (store.info(s.handle, &i) != fm::status::ok) throw std::runtime_error("info() failed");
  return i;
}

inline std::vector<std::byte> read_chunk(const fm::chunk_store& store, const engine_sequence& s,
                                         std::int64_t chunk) {
  std::vector<std::byte> out(fm::chunk_layout(store.geometry()).chunk_bytes(), std::byte{0xcd});
  if (store.read_chunk(s.handle, fm::chunk_id(chunk), fm::view<std::byte, 1>(out.data(), out.size())) !=
      fm::status::ok)
    throw std::runtime_error("read_chunk() failed");
  return out;
}

/// True if the first `entries` entries of one layer of a chunk are those of `expected`.
inline bool same_entries(const fm::kv_geometry& g, std::int64_t layer, std::int64_t entries,
                         const std::byte* chunk, const std::vector<std::byte>& expected) {
  bool same = true;
  for (std::int64_t e = 0; e < entries; ++e)
    for_each_part(g, layer, e, [&](std::size_t offset, std::size_t bytes) {
      same = same && std::memcmp(chunk + offset, expected.data() + offset, bytes) == 0;
    });
  return same;
}

/// True if every readable byte of every resident chunk, in every layer, is what was appended. Between forward
/// passes only.
inline bool resident_bytes_right(const fm::chunk_store& store, const engine_sequence& s) {
  const fm::kv_geometry& g = store.geometry();
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const fm::resident_set set = resident(store, s, layer);
    for (std::int64_t i = 0; i < set.count; ++i)
      if (!same_entries(g, layer, set.chunks[i].entries, set.chunks[i].data,
                        expected_chunk(g, s.tags, set.chunks[i].id)))
        return false;
  }
  return true;
}

inline bool all_chunks_right(const fm::chunk_store& store, const engine_sequence& s) {
  const fm::kv_geometry& g = store.geometry();
  for (std::int64_t c = 0; c < g.chunks_for(s.tokens); ++c)
    if (read_chunk(store, s, c) != expected_chunk(g, s.tags, c)) return false;
  return resident_bytes_right(store, s);
}

inline fm::store_options small_options(const fm::kv_geometry& g = small_geometry()) {
  fm::store_options o;
  o.geometry = g;
  o.fast_bytes = 1 << 20;
  o.backing_bytes = 1 << 20;
  o.max_sequences = 8;
  return o;
}

inline fm::sequence_options tokens(std::int64_t max_tokens, std::int64_t quota = 0, std::int32_t sink = 1,
                                   std::int32_t recent = 2) {
  fm::sequence_options o;
  o.max_tokens = max_tokens;
  o.max_resident_chunks = quota;
  o.sink_chunks = sink;
  o.recent_chunks = recent;
  return o;
}

inline engine_sequence open(fm::chunk_store& store, const fm::sequence_options& options) {
  engine_sequence s;
  s.handle = store.open(options);
  return s;
}

/// What an error leaves behind must be what was there before.
struct snapshot {
  std::vector<fm::chunk_id> ids;
  std::int64_t tokens, complete, resident, keys;
  fm::store_usage usage;
  fm::store_counters counters;

  snapshot(const fm::chunk_store& store, const engine_sequence& s)
      : ids(resident_ids(store, s)), usage(store.usage()), counters(store.counters()) {
    const fm::sequence_info i = info(store, s);
    tokens = i.tokens;
    complete = i.complete_chunks;
    resident = i.resident_chunks;
    keys = 0;
    for (std::int32_t k = 0; k < store.geometry().index_keys.lanes; ++k) {
      fm::index_key_pages pages;
      if (store.index_keys(s.handle, k, &pages) != fm::status::ok) throw std::runtime_error("keys() failed");
      keys += pages.keys;
    }
  }
  bool operator==(const snapshot& o) const {
    return ids == o.ids && tokens == o.tokens && complete == o.complete && resident == o.resident &&
           keys == o.keys && usage.fast_bytes == o.usage.fast_bytes &&
           usage.backing_bytes == o.usage.backing_bytes &&
           usage.backing_reserved_bytes == o.usage.backing_reserved_bytes &&
           counters.chunks_sealed == o.counters.chunks_sealed && counters.selected == o.counters.selected &&
           counters.copies_on_write == o.counters.copies_on_write;
  }
};

}  // namespace store_testing
