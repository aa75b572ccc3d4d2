// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "src/core/convert.hpp"
#include "tests/catch.hpp"
#include "tests/conformance/backend.hpp"
#include "tests/reference/attention.hpp"

/// A random model beside the library: it invents hidden states, queries, K and V for sequences, feeds them to
/// a store and a selector as an engine would, and remembers everything in plain vectors.
class shadow_engine {
 public:
  struct sequence {
    flashmemory::sequence_handle handle;
    std::vector<std::vector<float>> k,
        v;  ///< [layers], as rounded by the store's dtype: [tokens * kv_heads * dim]
    std::int64_t tokens = 0;
  };

  static constexpr std::int32_t hidden_size = 16;

  shadow_engine(const conformance_backend& backend, const flashmemory::store_options& options,
                flashmemory::dual_encoder_indexer& index, const flashmemory::selection_policy& policy,
                std::int32_t query_heads, std::uint32_t seed,
                const flashmemory::selector_options& select_options = {})
      : backend_(backend),
        geometry_(options.geometry),
        policy_(policy),
        query_heads_(query_heads),
        random_(seed),
        store_(backend.make_store(options)),
        selector_(backend.make_selector(*store_, index, policy, select_options)) {}

  /// Of the attention calls from now on.
  void set_reach(flashmemory::attend_reach reach) { reach_ = reach; }

  flashmemory::chunk_store& store() { return *store_; }
  flashmemory::selector& selector() { return *selector_; }
  std::mt19937& random() { return random_; }

  sequence open(std::int64_t max_tokens) {
    sequence s;
    s.handle = store_->open(flashmemory::sequence_options_for(policy_, geometry_, max_tokens));
    selector_->attach(s.handle);
    s.k.resize(std::size_t(geometry_.layers));
    s.v.resize(std::size_t(geometry_.layers));
    return s;
  }

  sequence fork(const sequence& parent, std::int64_t max_tokens) {
    sequence child = parent;
    child.handle =
        store_->fork(parent.handle, flashmemory::sequence_options_for(policy_, geometry_, max_tokens));
    selector_->attach_fork(parent.handle, child.handle);
    return child;
  }

  void close(sequence& s) {
    selector_->detach(s.handle);
    REQUIRE(store_->close(s.handle) == flashmemory::status::ok);
  }

  void truncate(sequence& s, std::int64_t tokens) {
    REQUIRE(store_->truncate(s.handle, tokens) == flashmemory::status::ok);
    for (std::size_t l = 0; l < s.k.size(); ++l) {
      s.k[l].resize(std::size_t(tokens * geometry_.kv_heads * geometry_.key_dim));
      s.v[l].resize(std::size_t(tokens * geometry_.kv_heads * geometry_.value_dim));
    }
    s.tokens = tokens;
  }

  /// One forward pass of `counts[i]` tokens for each sequence, attention checked against the reference where
  /// `check`. A null sequence is an empty item: its rows are NaNs that nobody may read, and its outputs must be zero. Returns the attention outputs of all layers, one after another.
  std::vector<float> forward(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
                             bool check) {
    std::vector<flashmemory::batch_item> items;
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      items.push_back(sequences[i] == nullptr
                          ? flashmemory::batch_item{{}, 0, counts[i]}
                          : flashmemory::batch_item{sequences[i]->handle, sequences[i]->tokens, counts[i]});
      rows += counts[i];
    }
    const flashmemory::batch batch(items.data(), std::int64_t(items.size()));
    std::vector<float> outputs;
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      auto hidden = noise(rows * hidden_size);
      auto q = noise(rows * query_heads_ * geometry_.key_dim);
      for (float& x : q) x = rounded(x);  // a backend may want queries in the store's dtype
      auto k = noise(rows * geometry_.kv_heads * geometry_.key_dim);
      auto v = noise(rows * geometry_.kv_heads * geometry_.value_dim);
      for (auto* tensor : {&hidden, &q, &k, &v}) spoil_empty(sequences, counts, rows, *tensor);
      REQUIRE(backend_.observe(*selector_, batch, layer, hidden) == flashmemory::status::ok);
      REQUIRE(backend_.append(*store_, batch, layer, k, v) == flashmemory::status::ok);
      remember(sequences, counts, layer, k, v);
      if (*std::max_element(counts.begin(), counts.end()) > backend_.most_tokens()) continue;
      std::vector<float> out, lse;
      flashmemory::attend_options options;
      options.reach = reach_;
      REQUIRE(backend_.attend(*store_, batch, layer, query_heads_, q, out, lse, options) ==
              flashmemory::status::ok);
      outputs.insert(outputs.end(), out.begin(), out.end());
      check_empty(sequences, counts, rows, out);
      if (check) compare(sequences, counts, layer, q, out);
    }
    for (std::size_t i = 0; i < sequences.size(); ++i)
      if (sequences[i] != nullptr) sequences[i]->tokens += counts[i];
    REQUIRE(flashmemory::select_chunks(*selector_, batch, backend_.stream()) == flashmemory::status::ok);
    for (sequence* s : sequences)
      if (s != nullptr) check_forced(*s);
    return outputs;
  }

  /// Ids of the resident chunks, read through the store.
  std::vector<flashmemory::chunk_id> resident(const sequence& s) const {
    flashmemory::resident_set set;
    REQUIRE(store_->resident(s.handle, 0, &set) == flashmemory::status::ok);
    std::vector<flashmemory::chunk_id> ids;
    for (std::int64_t c = 0; c < set.count; ++c) ids.push_back(set.chunks[c].id);
    return ids;
  }

  /// Every sealed chunk must come back byte for byte from whichever tier has it.
  void check_contents(const sequence& s) const {
    const flashmemory::chunk_layout layout(geometry_);
    std::vector<std::byte> bytes(layout.chunk_bytes());
    flashmemory::sequence_info info;
    REQUIRE(store_->info(s.handle, &info) == flashmemory::status::ok);
    REQUIRE(info.tokens == s.tokens);
    const auto per_chunk = geometry_.tokens_per_chunk();
    for (flashmemory::chunk_id c = 0; c < info.complete_chunks; ++c) {
      REQUIRE(store_->read_chunk(s.handle, c, flashmemory::view<std::byte, 1>(bytes.data(), bytes.size())) ==
              flashmemory::status::ok);
      for (std::int32_t l = 0; l < geometry_.layers; ++l)
        for (std::int32_t h = 0; h < geometry_.kv_heads; ++h)
          for (std::int64_t e = 0; e < per_chunk; ++e)
            for (std::int32_t d = 0; d < geometry_.key_dim; ++d) {
              const float stored = flashmemory::detail::load_float(bytes.data() + layout.key_offset(l, h),
                                                                   geometry_.type, e * geometry_.key_dim + d);
              const float wanted =
                  s.k[std::size_t(l)]
                     [std::size_t((((c * per_chunk + e) * geometry_.kv_heads) + h) * geometry_.key_dim + d)];
              if (stored != wanted) {
                CAPTURE(c, l, h, e, d);
                REQUIRE(stored == wanted);
              }
            }
    }
  }

  std::vector<float> noise(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(std::size_t(count), 0.0f);
    for (float& x : values) x = normal(random_);
    return values;
  }

 private:
  /// Calls `f` with each element of the rows of empty items.
  template <class F>
  static void in_empty_rows(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
                            std::int64_t rows, std::vector<float>& tensor, const F& f) {
    const std::size_t width = rows == 0 ? 0 : tensor.size() / std::size_t(rows);
    std::size_t row = 0;
    for (std::size_t i = 0; i < sequences.size(); row += std::size_t(counts[i]), ++i)
      for (std::size_t x = row * width; sequences[i] == nullptr && x < (row + std::size_t(counts[i])) * width;
           ++x)
        f(tensor[x]);
  }
  static void spoil_empty(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
                          std::int64_t rows, std::vector<float>& tensor) {
    in_empty_rows(sequences, counts, rows, tensor, [](float& x) { x = std::nanf(""); });
  }
  static void check_empty(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
                          std::int64_t rows, std::vector<float>& out) {
    in_empty_rows(sequences, counts, rows, out, [](float& x) { REQUIRE(x == 0.0f); });
  }

  void remember(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
                std::int32_t layer, const std::vector<float>& k, const std::vector<float>& v) {
    std::size_t row = 0;
    const std::size_t key_row = std::size_t(geometry_.kv_heads * geometry_.key_dim);
    const std::size_t value_row = std::size_t(geometry_.kv_heads * geometry_.value_dim);
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i] == nullptr) {
        row += std::size_t(counts[i]);
        continue;
      }
      for (std::size_t x = row * key_row; x < (row + std::size_t(counts[i])) * key_row; ++x)
        sequences[i]->k[std::size_t(layer)].push_back(rounded(k[x]));
      for (std::size_t x = row * value_row; x < (row + std::size_t(counts[i])) * value_row; ++x)
        sequences[i]->v[std::size_t(layer)].push_back(rounded(v[x]));
      row += std::size_t(counts[i]);
    }
  }

  void compare(const std::vector<sequence*>& sequences, const std::vector<std::int32_t>& counts,
               std::int32_t layer, const std::vector<float>& q, const std::vector<float>& out) {
    std::size_t row = 0;
    const std::int32_t group = query_heads_ / geometry_.kv_heads;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i] == nullptr) {
        row += std::size_t(counts[i]);
        continue;
      }
      auto ids = resident(*sequences[i]);
      const std::int64_t each = geometry_.tokens_per_chunk();
      const std::int64_t first_own =
          reach_ == flashmemory::attend_reach::everything ? 0 : sequences[i]->tokens / each;
      if (counts[i] > flashmemory::most_decode_tokens || first_own == 0) {
        ids.erase(std::lower_bound(ids.begin(), ids.end(), first_own), ids.end());
        for (std::int64_t id = first_own; id < geometry_.chunks_for(sequences[i]->tokens + counts[i]); ++id)
          ids.push_back(flashmemory::chunk_id(id));
      }
      for (std::int32_t t = 0; t < counts[i]; ++t, ++row) {
        const std::int64_t position = sequences[i]->tokens + t;
        std::vector<std::int64_t> visible;
        for (const auto id : ids)
          for (std::int64_t e = id * geometry_.tokens_per_chunk();
               e < (id + 1) * geometry_.tokens_per_chunk(); ++e)
            if (e <= position) visible.push_back(e);
        for (std::int32_t head = 0; head < query_heads_; ++head) {
          const auto expected =
              attend_in_double(*sequences[i], layer, head / group, visible,
                               q.data() + (row * std::size_t(query_heads_) + std::size_t(head)) *
                                              std::size_t(geometry_.key_dim));
          for (std::int32_t d = 0; d < geometry_.value_dim; ++d) {
            const float actual =
                out[(row * std::size_t(query_heads_) + std::size_t(head)) * std::size_t(geometry_.value_dim) +
                    std::size_t(d)];
            if (!(std::abs(actual - expected[std::size_t(d)]) <= 2e-5)) {
              CAPTURE(layer, i, t, head, d, position, visible.size());
              REQUIRE(actual == Approx(expected[std::size_t(d)]).margin(2e-5));
            }
          }
        }
      }
    }
  }

  std::vector<double> attend_in_double(const sequence& s, std::int32_t layer, std::int32_t kv_head,
                                       const std::vector<std::int64_t>& visible, const float* q) const {
    const auto row = [&](const std::vector<float>& data, std::int64_t entry, std::int32_t dim) {
      const float* first = data.data() + (entry * geometry_.kv_heads + kv_head) * dim;
      return std::vector<double>(first, first + dim);
    };
    std::vector<flashmemory_test::reference::entry> entries;
    for (const auto e : visible)
      entries.push_back({row(s.k[std::size_t(layer)], e, geometry_.key_dim),
                         row(s.v[std::size_t(layer)], e, geometry_.value_dim)});
    return flashmemory_test::reference::attention(std::vector<double>(q, q + geometry_.key_dim), entries,
                                                  geometry_.value_dim,
                                                  1 / std::sqrt(double(geometry_.key_dim)), 0, std::nullopt)
        .out;
  }

  float rounded(float value) const {
    std::uint32_t element = 0;
    flashmemory::detail::store_float(&element, geometry_.type, 0, value);
    return flashmemory::detail::load_float(&element, geometry_.type, 0);
  }

  void check_forced(const sequence& s) const {
    const auto ids = resident(s);
    const std::set<flashmemory::chunk_id> set(ids.begin(), ids.end());
    REQUIRE(std::is_sorted(ids.begin(), ids.end()));
    REQUIRE(set.size() == ids.size());
    const auto chunks = geometry_.chunks_for(s.tokens);
    const auto complete = s.tokens / geometry_.tokens_per_chunk();
    for (std::int64_t c = 0; c < chunks; ++c) {
      const bool forced = c < policy_.sink_chunks || c >= complete - policy_.recent_chunks;
      if (forced && set.count(flashmemory::chunk_id(c)) == 0) {
        CAPTURE(c, chunks, complete);
        FAIL("a sink, recent or open chunk is not resident");
      }
    }
  }

  const conformance_backend& backend_;
  flashmemory::kv_geometry geometry_;
  flashmemory::selection_policy policy_;
  std::int32_t query_heads_;
  flashmemory::attend_reach reach_ = flashmemory::attend_reach::resident;
  std::mt19937 random_;
  std::unique_ptr<flashmemory::chunk_store> store_;
  std::unique_ptr<flashmemory::selector> selector_;
};
