// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>

#include "tests/catch.hpp"
#include "tests/conformance/backend.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;

namespace {

fm::store_options v4_store(std::int32_t entries_per_chunk) {
  fm::store_options options;
  fm::kv_geometry& g = options.geometry;
  g.layers = 2;
  g.kv_heads = 1;
  g.key_dim = fm::deepseek_v4::entry_dim;
  g.value_dim = fm::deepseek_v4::lightning_dim;
  g.format = fm::kv_format::deepseek_v4;
  g.entries_per_chunk = entries_per_chunk;
  g.tokens_per_entry = 4;
  options.fast_bytes = options.backing_bytes = 16 << 20;
  options.max_sequences = 8;
  return options;
}

/// Sequences of a V4 model and, of each layer, what was appended: entries [.., 512] and index keys [.., 128].
class v4_engine {
 public:
  struct sequence {
    fm::sequence_handle handle;
    std::int64_t tokens = 0;
    std::vector<std::vector<float>> entries, keys;
  };

  v4_engine(const conformance_backend& backend, const fm::store_options& options, std::uint32_t seed)
      : random(seed), backend_(backend), g_(options.geometry), store_(backend.make_store(options)) {}

  sequence open(const fm::sequence_options& options) {
    sequence s;
    s.handle = store_->open(options);
    s.entries.resize(std::size_t(g_.layers));
    s.keys.resize(std::size_t(g_.layers));
    return s;
  }

  void forward(const std::vector<sequence*>& batch, std::int32_t tokens) {
    std::vector<fm::batch_item> items;
    for (const sequence* s : batch) items.push_back({s->handle, s->tokens, tokens});
    std::normal_distribution<float> normal;
    for (std::int32_t layer = 0; layer < g_.layers; ++layer) {
      std::vector<float> k, v;
      for (sequence* s : batch) {
        const std::int64_t rows = g_.entries_for(s->tokens + tokens) - g_.entries_for(s->tokens);
        const auto add = [&](std::int64_t count, std::vector<float>& kept, std::vector<float>& sent) {
          for (std::int64_t i = 0; i < count; ++i) {
            sent.push_back(normal(random));
            kept.push_back(sent.back());
          }
        };
        add(rows * g_.key_dim, s->entries[std::size_t(layer)], k);
        add(rows * g_.value_dim, s->keys[std::size_t(layer)], v);
      }
      REQUIRE(backend_.append(*store_, fm::batch(items.data(), std::int64_t(items.size())), layer, k, v) ==
              fm::status::ok);
    }
    for (sequence* s : batch) s->tokens += tokens;
  }

  void truncate(sequence& s, std::int64_t tokens) {
    REQUIRE(store_->truncate(s.handle, tokens) == fm::status::ok);
    s.tokens = tokens;
    for (auto& layer : s.entries) layer.resize(std::size_t(g_.entries_for(tokens) * g_.key_dim));
    for (auto& layer : s.keys) layer.resize(std::size_t(g_.entries_for(tokens) * g_.value_dim));
  }

  void recall_some(const sequence& s) {
    const auto complete = fm::chunk_id(g_.entries_for(s.tokens) / g_.entries_per_chunk);
    std::vector<fm::chunk_id> wanted;
    for (fm::chunk_id c = 0; c < complete && wanted.size() < 2; ++c)
      if (random() % 4 == 0) wanted.push_back(c);
    fm::recall_report report;
    REQUIRE(store_->recall(s.handle, fm::view<const fm::chunk_id, 1>(wanted.data(), wanted.size()), &report,
                           backend_.stream()) == fm::status::ok);
    REQUIRE(report.selected == report.hits + report.recalled + report.refused);
  }

  /// Every chunk, from whichever tier has it, must be what the host's quantisers make of what was appended.
  void check(const sequence& s) const {
    const fm::chunk_layout layout(g_);
    std::vector<std::byte> found(layout.chunk_bytes());
    for (fm::chunk_id c = 0; c < g_.chunks_for(s.tokens); ++c) {
      CAPTURE(c, s.tokens);
      REQUIRE(store_->read_chunk(s.handle, c, fm::view<std::byte, 1>(found.data(), found.size())) ==
              fm::status::ok);
      REQUIRE(found == expected(s, c));
    }
  }

  std::vector<std::byte> expected(const sequence& s, std::int64_t chunk) const {
    const fm::chunk_layout layout(g_);
    const std::int32_t each = g_.entries_per_chunk;
    std::vector<std::byte> out(layout.chunk_bytes());
    for (std::int32_t layer = 0; layer < g_.layers; ++layer)
      for (std::int32_t e = 0; e < each && chunk * each + e < g_.entries_for(s.tokens); ++e) {
        std::byte* const page = out.data() + layout.key_offset(layer, 0);
        std::byte* const keys = out.data() + layout.value_offset(layer, 0);
        const auto entry = std::size_t(chunk * each + e);
        fm::deepseek_v4::quantise_entry(s.entries[std::size_t(layer)].data() + entry * 512,
                                        page + fm::deepseek_v4::row_offset(e),
                                        page + fm::deepseek_v4::scale_offset(each, e));
        std::byte key[132];
        fm::quantise_key(s.keys[std::size_t(layer)].data() + entry * 128, key, 1e-4f);
        std::memcpy(keys + e * 128, key, 128);
        std::memcpy(keys + each * 128 + e * 4, key + 128, 4);
      }
    return out;
  }

  fm::chunk_store& store() { return *store_; }
  std::mt19937 random;

 private:
  const conformance_backend& backend_;
  fm::kv_geometry g_;
  std::unique_ptr<fm::chunk_store> store_;
};

}  // namespace

TEST_CASE("every tier holds DeepSeek-V4 entries as the host's quantisers make them", "[conformance]") {
  const auto entries_per_chunk = GENERATE(1, 4, 64);
  for (const auto& backend : conformance_backends()) {
    const auto seed = flashmemory_test::fresh_seed();
    CAPTURE(backend->name(), seed, entries_per_chunk);
    if (!backend->make_store(v4_store(entries_per_chunk))) {
      WARN("skipped: " << backend->name());
      continue;
    }
    v4_engine engine(*backend, v4_store(entries_per_chunk), seed);
    const std::int32_t per_chunk = 4 * entries_per_chunk;
    fm::sequence_options options;
    options.max_tokens = 12 * per_chunk + 64;
    options.max_resident_chunks = 8 + 64 / per_chunk;
    auto a = engine.open(options), b = engine.open(options);
    engine.forward({&a}, 9 * per_chunk + 3);
    engine.forward({&b}, 2);
    engine.forward({&b}, 3 * per_chunk);
    for (int step = 0; step < 40; ++step) {
      engine.forward({&b, &a}, 1);
      if (step % 8 == 7) {
        engine.recall_some(a);
        engine.recall_some(b);
      }
    }
    engine.check(a);
    engine.check(b);
    auto child = a;
    child.handle = engine.store().fork(a.handle, options);
    engine.truncate(a, a.tokens - per_chunk - 5);
    engine.forward({&a}, per_chunk + 1);
    engine.check(a);
    engine.check(child);

    auto copy = engine.open(options);
    copy.entries = a.entries;
    copy.keys = a.keys;
    for (std::int64_t left = a.tokens, c = 0; left > 0; left -= per_chunk, ++c) {
      const auto bytes = engine.expected(a, c);
      REQUIRE(engine.store().append_chunk(copy.handle,
                                          fm::view<const std::byte, 1>(bytes.data(), bytes.size()),
                                          std::min<std::int64_t>(left, per_chunk)) == fm::status::ok);
    }
    copy.tokens = a.tokens;
    engine.forward({&copy, &b}, 1);
    engine.check(copy);
    engine.check(b);
    for (const auto& s : {a, b, child, copy}) REQUIRE(engine.store().close(s.handle) == fm::status::ok);
    REQUIRE(engine.store().usage().backing_bytes == 0);
  }
}
