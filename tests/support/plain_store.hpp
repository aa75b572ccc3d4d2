// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/memory.hpp>
#include <flashmemory/store/chunk_store.hpp>
#include <memory>
#include <random>
#include <vector>

namespace flashmemory_test {

using namespace flashmemory;

inline float element_as_float(const void* data, dtype type, std::int64_t index) {
  if (type == dtype::f32) return static_cast<const float*>(data)[index];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(data)[index];
  std::uint32_t word = bits << 16;
  if (type == dtype::f16) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    if (exponent == 0) {
      const float value = float(fraction) * 0x1p-24f;
      return sign != 0 ? -value : value;
    }
    word = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
  }
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// A chunk_store without tiers: every chunk is a block of its own, at an address of no particular order, and
/// the test says which are resident. Checks little; test subjects check their own arguments.
///
/// K and V must be appended in the geometry's dtype. Set-up calls throw what the tiered store would throw
/// only where it is trivial.
class plain_store final : public chunk_store {
 public:
  explicit plain_store(const kv_geometry& geometry, memory_resource memory = default_memory())
      : layout_(geometry), memory_(memory) {
    noted.reserve(16);  // readers that count allocations take note of faults too
  }

  const kv_geometry& geometry() const noexcept override { return layout_.geometry; }

  sequence_handle open(const sequence_options& options) override {
    for (std::uint32_t i = 0; i <= sequences_.size(); ++i) {
      if (i == sequences_.size()) sequences_.emplace_back();
      sequence& s = sequences_[i];
      if (s.open) continue;
      const std::uint32_t generation = s.generation + 1;
      s = sequence();
      s.open = true;
      s.generation = generation;
      s.options = options;
      s.tokens.resize(std::size_t(geometry().layers));
      s.residents.resize(std::size_t(geometry().layers));
      s.keys.resize(std::size_t(geometry().index_keys.lanes));
      return {i, generation};
    }
    return {};
  }

  sequence_handle fork(sequence_handle parent, const sequence_options& options) override {
    require(find(parent) != nullptr);
    const sequence_handle child = open(options);
    sequence& to = sequences_[child.index];
    const sequence& from = sequences_[parent.index];
    to.tokens = from.tokens;
    to.keys = from.keys;
    to.all_resident = from.all_resident;
    to.wanted = from.wanted;
    for (const block& b : from.chunks) {
      to.chunks.push_back(new_block());
      std::memcpy(to.chunks.back().get(), b.get(), layout_.chunk_bytes());
    }
    list(to);
    return child;
  }

  status truncate(sequence_handle handle, std::int64_t tokens) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    if (tokens < 0 || tokens > shortest(*s)) return status::out_of_range;
    for (auto& t : s->tokens) t = tokens;
    s->chunks.resize(std::size_t(geometry().chunks_for(tokens)));
    for (auto& keys : s->keys) {
      keys.resize(std::size_t(tokens / geometry().index_keys.tokens_per_key * geometry().index_keys.bytes()));
    }
    list(*s);
    return status::ok;
  }

  status close(sequence_handle handle) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    s->open = false;
    s->chunks.clear();
    return status::ok;
  }

  status append(batch items, std::int32_t layer, const_tensor<3> k, const_tensor<3> v,
                stream_ref) noexcept override {
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) {
      if (items(i).empty()) {
        row += geometry().entries_for(items(i).position + items(i).num_tokens) -
               geometry().entries_for(items(i).position);
        continue;
      }
      sequence* s = find(items(i).sequence);
      if (s == nullptr) return refused(items(i).sequence);
      std::int64_t& tokens = s->tokens[std::size_t(layer)];
      if (items(i).position != tokens) return status::out_of_order;
      const std::int64_t after = tokens + items(i).num_tokens;
      while (std::int64_t(s->chunks.size()) < geometry().chunks_for(after)) {
        s->chunks.push_back(new_block());
        std::memset(s->chunks.back().get(), 0, layout_.chunk_bytes());
      }
      for (std::int64_t e = geometry().entries_for(tokens); e < geometry().entries_for(after); ++e, ++row) {
        for (std::int64_t h = 0; h < geometry().kv_heads; ++h) {
          copy_row(k, row, h, key_row(*s, layer, h, e));
          copy_row(v, row, h, value_row(*s, layer, h, e));
        }
      }
      tokens = after;
      list(*s);
    }
    return status::ok;
  }

  status append_index_keys(sequence_handle handle, std::int32_t lane, std::int64_t first_key,
                           view<const std::byte, 2> rows, stream_ref) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    auto& keys = s->keys[std::size_t(lane)];
    if (first_key * geometry().index_keys.bytes() != std::int64_t(keys.size())) return status::out_of_order;
    keys.insert(keys.end(), rows.data, rows.data + rows.shape[0] * geometry().index_keys.bytes());
    return geometry().index_keys.layout == index_key_layout::interleaved ? status::ok : status::unsupported;
  }

  status recall(sequence_handle handle, view<const chunk_id, 1> chunks, recall_report* report,
                stream_ref) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    const std::int64_t complete = shortest(*s) / geometry().tokens_per_chunk();
    std::vector<chunk_id> wanted;
    for (std::int64_t i = 0; i < chunks.shape[0]; ++i) {
      if (chunks(i) < 0 || chunks(i) >= complete) return status::out_of_range;
      wanted.push_back(chunks(i));
    }
    for (std::int64_t c = 0; c < std::int64_t(s->chunks.size()); ++c) {
      const bool always = c < s->options.sink_chunks || c >= complete - s->options.recent_chunks;
      if (always) wanted.push_back(chunk_id(c));
    }
    recall_report r;
    r.selected = chunks.shape[0];
    for (std::int64_t i = 0; i < chunks.shape[0]; ++i) r.hits += is_resident(handle, chunks(i));
    r.recalled = r.selected - r.hits;
    r.bytes = r.recalled * std::int64_t(layout_.chunk_bytes());
    if (report != nullptr) *report = r;
    set_resident(handle, wanted);
    return status::ok;
  }

  /// Nothing moves between the tiers there are not, so the exchange happens in finish_recall().
  status start_recall(sequence_handle handle, view<const chunk_id, 1> chunks, recall_report* report,
                      stream_ref) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    if (s->started) return status::out_of_order;
    s->asked.clear();
    for (std::int64_t i = 0; i < chunks.shape[0]; ++i) s->asked.push_back(chunks(i));
    s->started = true;
    if (report != nullptr) *report = {};
    return status::ok;
  }
  status poll_recall(sequence_handle handle) noexcept override {
    return find(handle) == nullptr ? refused(handle) : status::ok;
  }
  status finish_recall(sequence_handle handle, late_policy, recall_report* report,
                       stream_ref stream) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    if (!s->started) return status::out_of_order;
    s->started = false;
    const view<const chunk_id, 1> asked(s->asked.data(), s->asked.size());
    return recall(handle, asked, report, stream);
  }
  status cancel_recall(sequence_handle handle) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    s->started = false;
    return status::ok;
  }
  status resident(sequence_handle handle, std::int32_t layer, resident_set* out,
                  std::uint64_t = 0) const noexcept override {
    const sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    const auto& chunks = s->residents[std::size_t(layer)];
    *out = {chunks.data(), std::int64_t(chunks.size()), s->tokens[std::size_t(layer)], ++versions_};
    return status::ok;
  }

  status index_keys(sequence_handle handle, std::int32_t lane, index_key_pages* out) const noexcept override {
    const sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    const auto& keys = s->keys[std::size_t(lane)];
    *out = {keys.data(), std::int64_t(keys.size()) / geometry().index_keys.bytes()};
    return status::ok;
  }

  bool is_open(sequence_handle handle) const noexcept override { return find(handle) != nullptr; }

  status info(sequence_handle handle, sequence_info* out) const noexcept override {
    const sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    *out = sequence_info();
    out->options = s->options;
    out->tokens = shortest(*s);
    out->complete_chunks = out->tokens / geometry().tokens_per_chunk();
    out->resident_chunks = std::int64_t(s->residents[0].size());
    out->slot_bytes = std::size_t(out->resident_chunks) * layout_.chunk_bytes();
    return status::ok;
  }

  status read_chunk(sequence_handle handle, chunk_id chunk, view<std::byte, 1> out) const noexcept override {
    const sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    if (chunk < 0 || std::size_t(chunk) >= s->chunks.size()) return status::out_of_range;
    std::memcpy(out.data, s->chunks[std::size_t(chunk)].get(), layout_.chunk_bytes());
    return status::ok;
  }

  /// How chunks that are not resident can be had.
  enum class elsewhere { addresses, reads, nothing };
  elsewhere others = elsewhere::nothing;
  std::vector<chunk_id> unreadable;      ///< read_layer() refuses them as corrupt
  mutable std::int64_t layer_reads = 0;  ///< so far
  mutable std::vector<fault> noted;      ///< by calls over this reader
  void note(const fault& f) const noexcept override { noted.push_back(f); }

  const std::byte* layer_address(sequence_handle handle, chunk_id chunk,
                                 std::int32_t layer) const noexcept override {
    if (others != elsewhere::addresses) return nullptr;
    return find(handle)->chunks[std::size_t(chunk)].get() + layout_.key_offset(layer, 0);
  }
  status read_layer(sequence_handle handle, chunk_id chunk, std::int32_t layer,
                    view<std::byte, 1> out) const noexcept override {
    if (others != elsewhere::reads) return status::unsupported;
    if (std::count(unreadable.begin(), unreadable.end(), chunk) > 0) return status::corrupt_chunk;
    ++layer_reads;
    std::memcpy(out.data, find(handle)->chunks[std::size_t(chunk)].get() + layout_.key_offset(layer, 0),
                layout_.layer_bytes());
    return status::ok;
  }

  status append_chunk(sequence_handle handle, view<const std::byte, 1> bytes,
                      std::int64_t tokens) noexcept override {
    sequence* s = find(handle);
    if (s == nullptr) return refused(handle);
    s->chunks.push_back(new_block());
    std::memcpy(s->chunks.back().get(), bytes.data, layout_.chunk_bytes());
    for (auto& t : s->tokens) t += tokens;
    list(*s);
    return status::ok;
  }

  status begin_pass(batch, stream_ref) noexcept override { return status::unsupported; }
  status commit_pass(batch, bool, stream_ref) noexcept override { return status::unsupported; }
  store_counters counters() const noexcept override { return {}; }
  store_usage usage() const noexcept override { return {}; }
  fault last_fault() const noexcept override { return {}; }

  /// Makes exactly these chunks resident, in any order, until the next call of this or recall(). New chunks
  /// do not join.
  void set_resident(sequence_handle handle, std::vector<chunk_id> chunks) {
    sequence* s = find(handle);
    require(s != nullptr);
    std::sort(chunks.begin(), chunks.end());
    chunks.erase(std::unique(chunks.begin(), chunks.end()), chunks.end());
    s->all_resident = false;
    s->wanted = std::move(chunks);
    list(*s);
  }

  void set_all_resident(sequence_handle handle) {
    sequence* s = find(handle);
    require(s != nullptr);
    s->all_resident = true;
    list(*s);
  }

  bool is_resident(sequence_handle handle, chunk_id chunk) const {
    const sequence* s = find(handle);
    require(s != nullptr);
    return s->all_resident || std::binary_search(s->wanted.begin(), s->wanted.end(), chunk);
  }

  /// Moves every chunk of the sequence to a new address, in an order drawn from `seed`.
  void move_chunks(sequence_handle handle, std::uint64_t seed) {
    sequence* s = find(handle);
    require(s != nullptr);
    std::mt19937_64 random(seed);
    std::vector<std::size_t> order(s->chunks.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<block> moved(s->chunks.size());
    std::vector<block> gaps;
    for (const std::size_t i : order) {
      if (random() % 3 == 0) gaps.push_back(new_block());
      moved[i] = new_block();
      std::memcpy(moved[i].get(), s->chunks[i].get(), layout_.chunk_bytes());
      std::memset(s->chunks[i].get(), 0xff, layout_.chunk_bytes());  // NaN, for whoever still reads there
    }
    s->chunks = std::move(moved);
    list(*s);
  }

  /// One entry's K of one head, in the geometry's dtype.
  std::byte* key_row(sequence_handle handle, std::int64_t layer, std::int64_t head, std::int64_t entry) {
    return key_row(*find(handle), layer, head, entry);
  }

  std::byte* value_row(sequence_handle handle, std::int64_t layer, std::int64_t head, std::int64_t entry) {
    return value_row(*find(handle), layer, head, entry);
  }

 private:
  mutable std::uint64_t versions_ = 0;  ///< a new one at each look: sets are never known to be the same

  struct release {
    memory_resource memory;
    std::size_t bytes = 0;
    void operator()(std::byte* p) const { memory.deallocate(memory.context, p, bytes, 64); }
  };
  using block = std::unique_ptr<std::byte, release>;

  struct sequence {
    bool open = false;
    std::uint32_t generation = 0;
    sequence_options options;
    std::vector<block> chunks;
    std::vector<std::int64_t> tokens;  ///< per layer
    std::vector<std::vector<std::byte>> keys;
    bool all_resident = true;
    std::vector<chunk_id> wanted;                        ///< ascending, unless all are resident
    bool started = false;                                ///< a recall is under way
    std::vector<chunk_id> asked;                         ///< what it asked for
    std::vector<std::vector<resident_chunk>> residents;  ///< per layer: what resident() shows
  };

  static void require(bool condition) {
    if (!condition) throw error(status::unknown_sequence, "plain_store: no such sequence");
  }

  const sequence* find(sequence_handle handle) const noexcept {
    if (handle.index >= sequences_.size()) return nullptr;
    const sequence& s = sequences_[handle.index];
    return s.open && s.generation == handle.generation ? &s : nullptr;
  }
  sequence* find(sequence_handle handle) noexcept {
    return const_cast<sequence*>(std::as_const(*this).find(handle));
  }

  status refused(sequence_handle handle) const noexcept {
    return handle.index < sequences_.size() ? status::stale_sequence : status::unknown_sequence;
  }

  block new_block() const {
    const std::size_t bytes = layout_.chunk_bytes();
    void* p = memory_.allocate(memory_.context, bytes, 64);
    if (p == nullptr) throw std::bad_alloc();
    return block(static_cast<std::byte*>(p), release{memory_, bytes});
  }

  static std::int64_t shortest(const sequence& s) noexcept {
    return *std::min_element(s.tokens.begin(), s.tokens.end());
  }

  std::byte* key_row(sequence& s, std::int64_t layer, std::int64_t head, std::int64_t entry) {
    const kv_geometry& g = geometry();
    return s.chunks[std::size_t(entry / g.entries_per_chunk)].get() + layout_.key_offset(layer, head) +
           std::size_t(entry % g.entries_per_chunk) * std::size_t(g.key_dim) * size_of(g.type);
  }
  std::byte* value_row(sequence& s, std::int64_t layer, std::int64_t head, std::int64_t entry) {
    const kv_geometry& g = geometry();
    return s.chunks[std::size_t(entry / g.entries_per_chunk)].get() + layout_.value_offset(layer, head) +
           std::size_t(entry % g.entries_per_chunk) * std::size_t(g.value_dim) * size_of(g.type);
  }

  void copy_row(const const_tensor<3>& from, std::int64_t row, std::int64_t head, std::byte* to) const {
    const std::size_t width = size_of(geometry().type);
    const auto* start = static_cast<const std::byte*>(from.data);
    for (std::int64_t i = 0; i < from.shape[2]; ++i) {
      const std::int64_t at = row * from.stride[0] + head * from.stride[1] + i * from.stride[2];
      std::memcpy(to + std::size_t(i) * width, start + std::size_t(at) * width, width);
    }
  }

  /// Brings `residents` up to date.
  void list(sequence& s) const {
    for (std::size_t layer = 0; layer < s.residents.size(); ++layer) {
      auto& residents = s.residents[layer];
      residents.clear();
      const std::int64_t entries = geometry().entries_for(s.tokens[layer]);
      for (std::int64_t c = 0; c < std::int64_t(s.chunks.size()); ++c) {
        if (!s.all_resident && !std::binary_search(s.wanted.begin(), s.wanted.end(), chunk_id(c))) continue;
        const std::int64_t readable = std::clamp<std::int64_t>(entries - c * geometry().entries_per_chunk, 0,
                                                               geometry().entries_per_chunk);
        residents.push_back({chunk_id(c), std::int32_t(readable), s.chunks[std::size_t(c)].get()});
      }
    }
  }

  chunk_layout layout_;
  memory_resource memory_;
  std::vector<sequence> sequences_;
};

}  // namespace flashmemory_test
