// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <functional>
#include <map>
#include <vector>

/// An engine without a model: K, V and hidden states are made up from a sequence's tag, layer and token, so
/// that any of them can be made again.
namespace toy {

namespace fm = flashmemory;

inline const fm::stream_ref host = fm::stream_ref::host();
inline constexpr std::int32_t width = 24;  ///< of hidden states

inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// In (-1, 1).
inline float number(std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t d) {
  return float(std::int32_t(mix(a ^ mix(b ^ mix(c ^ mix(d)))) >> 40) - (1 << 23)) * 0x1p-23f;
}

inline fm::kv_geometry geometry(std::int32_t key_streams = 3) {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = 1;
  g.key_dim = 16;
  g.value_dim = 16;
  g.type = fm::dtype::f32;
  g.entries_per_chunk = 8;
  g.index_keys.tokens_per_key = 4;
  g.index_keys.lanes = key_streams;
  return g;
}

inline fm::store_options store_options(const fm::kv_geometry& g, std::int32_t max_sequences = 64) {
  fm::store_options o;
  o.geometry = g;
  o.fast_bytes = std::size_t{256} << 20;
  o.backing_bytes = std::size_t{256} << 20;
  o.max_sequences = max_sequences;
  return o;
}

inline fm::indexer_taps scripted_taps() {
  fm::indexer_taps t;
  t.name = "scripted";
  t.queries = {{1, fm::tap_kind::hidden, width}};
  t.index_keys = {{0, width, 4, 10}, {1, width, 4, 4}, {0, width, 4, 16}};
  t.log_odds = true;
  return t;
}

/// Scores what it is told to and makes keys that change with every bit of every row they are made from.
class scripted_indexer : public fm::indexer {
 public:
  scripted_indexer() : fm::indexer(scripted_taps()) {}

  // Tests say otherwise before a selector looks.
  std::vector<fm::query_tap>& queries = taps_.queries;
  std::vector<fm::index_key_tap>& keys = taps_.index_keys;
  std::function<float(const fm::score_request&, std::int64_t)> rule = [](const fm::score_request&,
                                                                         std::int64_t c) { return float(c); };
  fm::status answer = fm::status::ok;  ///< of score()
  bool check_keys = true;
  std::int64_t scored = 0;
  std::vector<std::int64_t> positions;  ///< of all calls of score(), if `record`
  bool record = false;
  mutable std::int64_t encoded = 0, blocks = 0, largest_block = 0;

  fm::status encode_index_keys(std::int32_t stream, fm::view<const float, 2> rows, fm::view<std::byte, 2> out,
                               fm::workspace, fm::thread_hook) const noexcept override {
    const fm::index_key_tap& tap = keys[std::size_t(stream)];
    if (rows.shape[0] != (out.shape[0] - 1) * tap.tokens_per_key + tap.window || rows.shape[1] != tap.width)
      return fm::status::bad_shape;
    encoded += out.shape[0];
    ++blocks;
    largest_block = std::max(largest_block, out.shape[0]);
    for (std::int64_t k = 0; k < out.shape[0]; ++k) {
      std::uint64_t sum = std::uint64_t(stream);
      float total = 0;
      for (std::int64_t r = 0; r < tap.window; ++r)
        for (std::int64_t i = 0; i < tap.width; ++i) {
          const float x = rows(k * tap.tokens_per_key + r, i);
          std::uint32_t bits;
          std::memcpy(&bits, &x, sizeof bits);
          sum = mix(sum ^ bits);
          total += x;
        }
      for (std::int64_t b = 0; b < out.shape[1] - 4; ++b) {
        sum = mix(sum);
        out(k, b) = std::byte(sum & 0x77);
      }
      const float scale = 1.0f + total;
      std::memcpy(&out(k, out.shape[1] - 4), &scale, sizeof scale);
    }
    return fm::status::ok;
  }

  fm::status score(const fm::score_request& request, fm::view<float, 1> scores) noexcept override {
    ++scored;
    if (record) positions.push_back(request.position);
    if (answer != fm::status::ok) return answer;
    const std::int64_t per_chunk = request.reader->geometry().index_keys_per_chunk();
    for (std::size_t s = 0; check_keys && s < keys.size(); ++s) {
      fm::index_key_pages pages;
      const fm::status code = request.reader->index_keys(request.sequence, std::int32_t(s), &pages);
      if (code != fm::status::ok) return code;
      if (pages.keys < request.chunks * per_chunk) return fm::status::index_keys_missing;
    }
    for (std::int64_t c = 0; c < request.chunks; ++c) scores(c) = rule(request, c);
    return fm::status::ok;
  }
};

/// Passes calls on and fails those it is told to.
class failing_store final : public fm::chunk_store {
 public:
  explicit failing_store(fm::chunk_store& inner) : inner_(inner) {}
  fm::status fail_recall = fm::status::ok;
  std::uint32_t only_sequence = ~0u;         ///< whose recalls fail; ~0 = all
  std::int64_t fail_append_keys_after = -1;  ///< calls that still succeed; -1 = all
  fm::status fail_info = fm::status::ok;
  fm::status fail_resident = fm::status::ok;
  std::map<fm::chunk_id, fm::status> fail_reads;  ///< of read_chunk()
  /// Copies of a started recall are there after that many calls of poll_recall(); finish_recall() that waits gets them
  /// at once, unless they are stuck.
  std::int64_t polls_until_landed = 0;
  bool stuck = false;
  fm::status fail_copies =
      fm::status::ok;  ///< what poll_recall() and finish_recall() say once they have landed
  std::map<std::uint32_t, std::int64_t> on_the_way;  ///< sequence -> polls left
  std::int64_t under_way() const {
    std::int64_t count = 0;
    for (const auto& [sequence, polls] : on_the_way) count += polls > 0;
    return count;
  }
  mutable fm::fault made;
  std::int64_t recalls = 0;
  mutable std::int64_t infos = 0;

  const fm::kv_geometry& geometry() const noexcept override { return inner_.geometry(); }
  fm::sequence_handle open(const fm::sequence_options& o) override { return inner_.open(o); }
  fm::sequence_handle fork(fm::sequence_handle p, const fm::sequence_options& o) override {
    return inner_.fork(p, o);
  }
  fm::status truncate(fm::sequence_handle s, std::int64_t t) noexcept override {
    return inner_.truncate(s, t);
  }
  fm::status close(fm::sequence_handle s) noexcept override { return inner_.close(s); }
  fm::status append(fm::batch i, std::int32_t l, fm::const_tensor<3> k, fm::const_tensor<3> v,
                    fm::stream_ref s) noexcept override {
    return inner_.append(i, l, k, v, s);
  }
  fm::status append_index_keys(fm::sequence_handle s, std::int32_t stream, std::int64_t first,
                               fm::view<const std::byte, 2> keys, fm::stream_ref r) noexcept override {
    if (fail_append_keys_after == 0) return fail(fm::status::io_error, s, -1);
    if (fail_append_keys_after > 0) --fail_append_keys_after;
    return inner_.append_index_keys(s, stream, first, keys, r);
  }
  fm::status recall(fm::sequence_handle s, fm::view<const fm::chunk_id, 1> chunks, fm::recall_report* report,
                    fm::stream_ref r) noexcept override {
    ++recalls;
    if (fail_recall != fm::status::ok && (only_sequence == ~0u || only_sequence == s.index))
      return fail(fail_recall, s, 3);
    return inner_.recall(s, chunks, report, r);
  }
  fm::status start_recall(fm::sequence_handle s, fm::view<const fm::chunk_id, 1> chunks,
                          fm::recall_report* report, fm::stream_ref r) noexcept override {
    ++recalls;
    if (fail_recall != fm::status::ok && (only_sequence == ~0u || only_sequence == s.index))
      return fail(fail_recall, s, 3);
    const fm::status code = inner_.start_recall(s, chunks, report, r);
    if (code == fm::status::ok) on_the_way[s.index] = polls_until_landed;
    return code;
  }
  fm::status poll_recall(fm::sequence_handle s) noexcept override {
    auto& polls = on_the_way[s.index];
    if (polls > 0 && inner_.poll_recall(s) == fm::status::ok) {
      if (!stuck) --polls;
      return fm::status::pending;
    }
    if (fail_copies != fm::status::ok) return fail(fail_copies, s, 5);
    return inner_.poll_recall(s);
  }
  fm::status finish_recall(fm::sequence_handle s, fm::late_policy late, fm::recall_report* report,
                           fm::stream_ref r) noexcept override {
    auto& polls = on_the_way[s.index];
    if (polls > 0 && late == fm::late_policy::keep) return fm::status::pending;
    if (polls > 0 && late == fm::late_policy::wait && stuck) return fail(fm::status::timed_out, s, -1);
    const bool give_up = polls > 0 && late == fm::late_policy::fail;
    polls = 0;
    if (give_up || fail_copies != fm::status::ok) {
      if (const fm::status code = inner_.cancel_recall(s); code != fm::status::ok) return code;
      return fail(give_up ? fm::status::timed_out : fail_copies, s, 5);
    }
    return inner_.finish_recall(s, late, report, r);
  }
  fm::status cancel_recall(fm::sequence_handle s) noexcept override { return inner_.cancel_recall(s); }
  fm::status resident(fm::sequence_handle s, std::int32_t l, fm::resident_set* out,
                      std::uint64_t known = 0) const noexcept override {
    if (fail_resident != fm::status::ok) return fail(fail_resident, s, 2);
    return inner_.resident(s, l, out, known);
  }
  fm::status index_keys(fm::sequence_handle s, std::int32_t i,
                        fm::index_key_pages* out) const noexcept override {
    return inner_.index_keys(s, i, out);
  }
  fm::status begin_pass(fm::batch items, fm::stream_ref r) noexcept override {
    return inner_.begin_pass(items, r);
  }
  fm::status commit_pass(fm::batch items, bool keys, fm::stream_ref r) noexcept override {
    return inner_.commit_pass(items, keys, r);
  }
  std::int64_t bad_chunks(fm::sequence_handle s, fm::view<fm::chunk_id, 1> out) const noexcept override {
    return inner_.bad_chunks(s, out);
  }
  void guard_rollback(fm::sequence_handle s, fm::rollback_guard guard) noexcept override {
    inner_.guard_rollback(s, guard);
  }
  bool is_open(fm::sequence_handle s) const noexcept override { return inner_.is_open(s); }
  fm::status info(fm::sequence_handle s, fm::sequence_info* out) const noexcept override {
    ++infos;
    if (fail_info != fm::status::ok) return fail(fail_info, s, -1);
    return inner_.info(s, out);
  }
  fm::status read_chunk(fm::sequence_handle s, fm::chunk_id c,
                        fm::view<std::byte, 1> out) const noexcept override {
    if (const auto at = fail_reads.find(c); at != fail_reads.end()) return fail(at->second, s, c);
    return inner_.read_chunk(s, c, out);
  }
  fm::status append_chunk(fm::sequence_handle s, fm::view<const std::byte, 1> b,
                          std::int64_t t) noexcept override {
    return inner_.append_chunk(s, b, t);
  }
  fm::store_counters counters() const noexcept override { return inner_.counters(); }
  fm::store_usage usage() const noexcept override { return inner_.usage(); }
  fm::fault last_fault() const noexcept override {
    return made.code != fm::status::ok ? made : inner_.last_fault();
  }

 private:
  fm::status fail(fm::status code, fm::sequence_handle s, std::int64_t chunk) const noexcept {
    made.code = code;
    made.sequence = s.index;
    made.chunk = chunk;
    made.what = "made up";
    return code;
  }
  fm::chunk_store& inner_;
};

inline std::int64_t tokens(const fm::chunk_store& store, fm::sequence_handle handle) {
  fm::sequence_info i;
  return store.info(handle, &i) == fm::status::ok ? i.tokens : -1;
}

/// A sequence as the engine sees it. `tag` decides its vectors; `branch` changes them from a token on.
struct sequence {
  fm::sequence_handle handle;
  std::uint64_t tag = 0;
  std::int64_t tokens = 0;
  std::vector<std::pair<std::int64_t, std::uint64_t>> branches;  ///< from which token on which tag holds
  std::uint64_t tag_at(std::int64_t token) const {
    std::uint64_t t = tag;
    for (const auto& b : branches)
      if (token >= b.first) t = b.second;
    return t;
  }
};

inline float hidden_value(const sequence& s, std::int32_t layer, std::int64_t token, std::int64_t i) {
  return number(s.tag_at(token), std::uint64_t(token), std::uint64_t(layer) + 100, std::uint64_t(i));
}

/// K and queries of the toy engine: element i of all heads of a token.
inline float key_value(const sequence& s, std::int32_t layer, std::int64_t token, std::int64_t i) {
  return number(s.tag_at(token), std::uint64_t(token), std::uint64_t(layer) + 200, std::uint64_t(i));
}
inline float query_value(const sequence& s, std::int32_t layer, std::int64_t token, std::int64_t i) {
  return number(s.tag_at(token), std::uint64_t(token), std::uint64_t(layer) + 400, std::uint64_t(i));
}

class engine {
 public:
  engine(fm::chunk_store& store, fm::selector& select) : store_(store), select_(select) {}

  bool observes = true;
  bool observe_first = true;  ///< within a layer, before append()
  bool queries = false;       ///< feeds observe_queries() as well
  std::int32_t query_width = 0;
  fm::item_phase phase = fm::item_phase::decode;  ///< of all items from now on
  float poison = 0;  ///< what the newest token's hidden state starts with instead, if not 0

  sequence open(const fm::sequence_options& o, std::uint64_t tag,
                const fm::selection_policy* policy = nullptr) {
    sequence s;
    s.handle = store_.open(o);
    s.tag = tag;
    select_.attach(s.handle, policy);
    return s;
  }

  /// A forward pass without the level-1 call.
  fm::status pass(const std::vector<sequence*>& batch, const std::vector<std::int64_t>& tokens) {
    make_items(batch, tokens);
    const fm::kv_geometry& g = store_.geometry();
    std::int64_t rows = 0;
    for (const std::int64_t n : tokens) rows += n;
    hidden_.resize(std::size_t(rows * width));
    k_.resize(std::size_t(rows * g.kv_heads * g.key_dim));
    v_.resize(std::size_t(rows * g.kv_heads * g.value_dim));
    q_.resize(std::size_t(rows * query_width));
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      std::size_t h = 0, k = 0, v = 0, q = 0;
      for (const sequence* s : batch) {
        const std::int64_t n = tokens[at(batch, s)];
        for (std::int64_t t = s->tokens; t < s->tokens + n; ++t) {
          const std::uint64_t tag = s->tag_at(t);
          const std::size_t first = h;
          for (std::int64_t i = 0; i < width; ++i) hidden_[h++] = hidden_value(*s, layer, t, i);
          if (poison != 0 && t == s->tokens + n - 1) hidden_[first] = poison;
          for (std::int64_t i = 0; i < g.kv_heads * g.key_dim; ++i) k_[k++] = key_value(*s, layer, t, i);
          for (std::int64_t i = 0; i < g.kv_heads * g.value_dim; ++i)
            v_[v++] = number(tag, std::uint64_t(t), std::uint64_t(layer) + 300, std::uint64_t(i));
          for (std::int64_t i = 0; i < query_width; ++i) q_[q++] = query_value(*s, layer, t, i);
        }
      }
      const fm::batch items(items_.data(), items_.size());
      const auto observe = [&] {
        if (!observes) return fm::status::ok;
        fm::status code =
            select_.observe(items, layer, fm::view<const float, 2>(hidden_.data(), rows, width), host);
        if (code != fm::status::ok) return code;
        code = select_.observe_keys(items, layer,
                                    fm::view<const float, 3>(k_.data(), rows, g.kv_heads, g.key_dim), host);
        if (code != fm::status::ok || !queries) return code;
        return select_.observe_queries(items, layer, fm::view<const float, 2>(q_.data(), rows, query_width),
                                       host);
      };
      if (observe_first)
        if (const fm::status code = observe(); code != fm::status::ok) return code;
      if (const fm::status code =
              store_.append(items, layer, fm::view<const float, 3>(k_.data(), rows, g.kv_heads, g.key_dim),
                            fm::view<const float, 3>(v_.data(), rows, g.kv_heads, g.value_dim), host);
          code != fm::status::ok)
        return code;
      if (!observe_first)
        if (const fm::status code = observe(); code != fm::status::ok) return code;
    }
    for (std::size_t i = 0; i < batch.size(); ++i) batch[i]->tokens += tokens[i];
    return fm::status::ok;
  }

  /// A whole step of an engine.
  fm::status step(const std::vector<sequence*>& batch, const std::vector<std::int64_t>& tokens) {
    if (const fm::status code = pass(batch, tokens); code != fm::status::ok) return code;
    return fm::select_chunks(select_, fm::batch(items_.data(), items_.size()), host);
  }
  fm::status step(sequence& s, std::int64_t tokens = 1) { return step({&s}, {tokens}); }

  /// What the last pass or step was given.
  fm::batch items() const { return fm::batch(items_.data(), items_.size()); }

 private:
  static std::size_t at(const std::vector<sequence*>& batch, const sequence* s) {
    return std::size_t(std::find(batch.begin(), batch.end(), s) - batch.begin());
  }
  void make_items(const std::vector<sequence*>& batch, const std::vector<std::int64_t>& tokens) {
    items_.clear();
    for (std::size_t i = 0; i < batch.size(); ++i)
      items_.push_back({batch[i]->handle, batch[i]->tokens, std::int32_t(tokens[i]), phase});
  }

  fm::chunk_store& store_;
  fm::selector& select_;
  std::vector<fm::batch_item> items_;
  std::vector<float> hidden_, k_, v_, q_;
};

inline std::vector<fm::chunk_id> resident_ids(const fm::chunk_store& store, fm::sequence_handle s) {
  fm::resident_set set;
  std::vector<fm::chunk_id> ids;
  if (store.resident(s, 0, &set) == fm::status::ok)
    for (std::int64_t i = 0; i < set.count; ++i) ids.push_back(set.chunks[i].id);
  return ids;
}

inline std::vector<std::byte> key_bytes(const fm::chunk_store& store, fm::sequence_handle s,
                                        std::int32_t stream) {
  fm::index_key_pages pages;
  if (store.index_keys(s, stream, &pages) != fm::status::ok || pages.keys == 0) return {};
  return {pages.data, pages.data + pages.keys * store.geometry().index_keys.bytes()};
}

}  // namespace toy
