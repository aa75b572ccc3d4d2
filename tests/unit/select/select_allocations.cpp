// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>

#include "tests/catch.hpp"
#include "tests/support/counted_allocations.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

std::unique_ptr<fm::indexer> make_indexer(const std::string& kind, const fm::kv_geometry& g) {
  if (kind == "dual_encoder") return std::make_unique<fm::dual_encoder_indexer>(toy::small_dual_encoder(1));
  if (kind == "recency") return std::make_unique<fm::recency_indexer>();
  if (kind == "random") return std::make_unique<fm::random_indexer>(5);
  if (kind == "pooled_keys") {
    fm::pooled_keys_config config = fm::pooled_keys_of(g, 2, {0, 1});
    config.type = fm::index_key_type::int8;
    return std::make_unique<fm::pooled_keys_indexer>(config);
  }
  if (kind == "quest") return std::make_unique<fm::quest_indexer>(g, 2, 8, 128);
  auto oracle = std::make_unique<fm::oracle_indexer>(8);
  const std::vector<float> mass(64, 0.5f);
  for (std::uint32_t s = 0; s < 4; ++s)
    for (std::int64_t t = 0; t < 300; t += 3) oracle->record(s, t, fm::view<const float, 1>(mass.data(), 64));
  return oracle;
}

}  // namespace

TEST_CASE("step calls allocate nothing, whether a refresh is due or not", "[selector][allocation]") {
  const std::string kind = GENERATE("dual_encoder", "recency", "random", "quest", "oracle", "pooled_keys");
  const auto mode =
      GENERATE(fm::selection_mode::budget, fm::selection_mode::threshold, fm::selection_mode::everything);
  CAPTURE(kind, int(mode));
  auto g = toy::geometry();
  const auto index = make_indexer(kind, g);
  if (kind == "pooled_keys") g.index_keys = index->taps().reads;
  fm::tiered_chunk_store store(toy::store_options(g));
  fm::selection_policy p;
  p.mode = mode;
  p.interval = 8;
  p.hysteresis = 0.25f;
  p.hold = GENERATE(0.0f, 0.5f);
  p.fallback.max_dropped = 0.5f;
  fm::selector_options o;
  o.threads = fm::serial_threads();
  fm::selector select(store, *index, p, o);
  std::vector<fm::sequence_handle> handles;
  std::vector<fm::batch_item> items;
  for (int i = 0; i < 3; ++i) {
    handles.push_back(store.open(fm::sequence_options_for(p, g, 800)));
    select.attach(handles.back());
    items.push_back({handles.back(), 0, 150});
  }
  const std::int64_t most = 3 * 150;
  const std::vector<float> hidden(std::size_t(most * toy::width), 0.25f), kv(std::size_t(most * 16), 0.5f),
      queries(std::size_t(most * 32), 0.75f);

  const auto before = allocations.load();
  bool all_ok = true;
  std::int64_t calls = 0;
  for (int step = 0; step < 60; ++step) {
    const fm::batch batch(items.data(), items.size());
    std::int64_t rows = 0;
    for (const auto& i : items) rows += i.num_tokens;
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const fm::view<const float, 3> k(kv.data(), rows, 1, 16);
      all_ok &= select.observe(batch, layer, fm::view<const float, 2>(hidden.data(), rows, toy::width),
                               toy::host) == status::ok;
      all_ok &= select.observe_queries(batch, layer, fm::view<const float, 2>(queries.data(), rows, 32),
                                       toy::host) == status::ok;
      all_ok &= select.observe_keys(batch, layer, k, toy::host) == status::ok;
      all_ok &= store.append(batch, layer, k, k, toy::host) == status::ok;
    }
    all_ok &= fm::select_chunks(select, batch, toy::host) == status::ok;
    all_ok &= select.report_attention_mass(handles[0], 0.5f) == status::ok;
    if (step == 30) all_ok &= select.request_refresh(handles[1]) == status::ok;
    for (auto& i : items) {
      i.position += i.num_tokens;
      i.num_tokens = 1 + step % 2;
    }
    ++calls;
  }
  const auto after = allocations.load();
  CHECK(after == before);
  CHECK(all_ok);
  CHECK(calls == 60);
  CHECK(select.counters().refreshes > 20);
}
