// SPDX-License-Identifier: MIT
// The C interface is the C++ library: the same bytes and the same sets for the same calls.
#include <flashmemory/flashmemory.hpp>
#include <random>

#include "tests/c/c_engine.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
using namespace c_testing;

TEST_CASE("attention, resident sets and reports through C are those of C++", "[c]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  world w;

  fm::store_options so;
  so.geometry.layers = 2;
  so.geometry.kv_heads = 2;
  so.geometry.key_dim = so.geometry.value_dim = 16;
  so.geometry.type = fm::dtype::f32;
  so.geometry.entries_per_chunk = 8;
  so.fast_bytes = so.backing_bytes = 8 << 20;
  so.max_sequences = 4;
  fm::tiered_chunk_store store(so);
  fm::recency_indexer index;
  fm::selection_policy policy;
  policy.interval = 8;
  policy.budget_fraction = 0.3;
  fm::selector_options options;
  options.stagger = false;
  fm::selector select(store, index, policy, options);
  const auto sequence = store.open(fm::sequence_options_for(policy, so.geometry, 400));
  select.attach(sequence);
  std::vector<std::byte> scratch(fm::attend_workspace_bytes(so.geometry, 4, 64, 64, {64, 1, true}));
  fm::attend_options attend;
  attend.scratch = {scratch.data(), scratch.size()};

  while (w.tokens < 200) {
    const bool prompt = w.tokens < 100;
    const std::int32_t count = prompt ? 1 + std::int32_t(random() % 40) : 1 + std::int32_t(random() % 3);
    const std::int32_t phase = !prompt ? FM_DECODE : w.tokens + count < 100 ? FM_PROMPT : FM_PROMPT_END;
    const std::int64_t position = w.tokens;
    host_tensor mine({count, 4, 16}), theirs({count, 4, 16});
    const fm::batch_item item{sequence, position, count, fm::item_phase(phase)};
    const fm::batch items(&item, 1);
    attend.reach = prompt ? fm::attend_reach::everything : fm::attend_reach::resident;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      host_tensor q({count, 4, 16}, float(position % 7)), k({count, 2, 16}, float(layer)), v({count, 2, 16});
      const auto tensor = [&](host_tensor& t, std::int64_t heads) {
        return fm::const_tensor<3>(t.values.data(), fm::dtype::f32, count, heads, 16);
      };
      REQUIRE(store.append(items, layer, tensor(k, 2), tensor(v, 2), fm::stream_ref::host()) ==
              fm::status::ok);
      REQUIRE(fm::sparse_attend(store, items, layer, tensor(q, 4),
                                fm::tensor<3>(theirs.values.data(), fm::dtype::f32, count, 4, 16), attend,
                                fm::stream_ref::host()) == fm::status::ok);
    }
    REQUIRE(fm::select_chunks(select, items, fm::stream_ref::host()) == fm::status::ok);
    REQUIRE(w.pass(count, &mine, phase) == FM_OK);
    REQUIRE(mine.values == theirs.values);

    fm::resident_set set;
    REQUIRE(store.resident(sequence, 0, &set) == fm::status::ok);
    std::vector<std::int32_t> ids(64), expected;
    for (std::int64_t i = 0; i < set.count; ++i) expected.push_back(set.chunks[i].id);
    std::int64_t n = 0;
    REQUIRE(fm_sequence_resident(w.store, w.sequence, ids.data(), 64, &n) == FM_OK);
    ids.resize(std::size_t(n));
    REQUIRE(ids == expected);
  }
  fm::selection_report r;
  REQUIRE(select.report(sequence, &r) == fm::status::ok);
  fm_selection_report c{};
  c.struct_size = sizeof(c);
  REQUIRE(fm_report(w.select, w.sequence, &c) == FM_OK);
  CHECK(c.refreshes == r.refreshes);
  CHECK(c.position == r.position);
  CHECK(c.reason == int(r.reason));
  CHECK(c.chosen_chunks == r.plan.chunks);
  CHECK(c.recalled == r.recall.recalled);
  CHECK(c.bytes == r.recall.bytes);
  fm_store_usage u{};
  u.struct_size = sizeof(u);
  REQUIRE(fm_store_get_usage(w.store, &u) == FM_OK);
  CHECK(u.fast_bytes == store.usage().fast_bytes);
  CHECK(u.bytes_recalled == store.counters().bytes_recalled);
}

TEST_CASE("defaults of C are those of C++", "[c]") {
  const fm::selection_policy d;
  fm_policy p;
  REQUIRE(fm_init_policy(&p, sizeof(p)) == FM_OK);
  CHECK(p.mode == int(d.mode));
  CHECK(p.interval == d.interval);
  CHECK(p.sink_chunks == d.sink_chunks);
  CHECK(p.recent_chunks == d.recent_chunks);
  CHECK(p.budget_fraction == d.budget_fraction);
  CHECK(p.max_chunks == d.max_chunks);
  CHECK(p.fallback_max_dropped == d.fallback.max_dropped);
  CHECK(p.fallback_widen_factor == d.fallback.widen_factor);
  CHECK(p.fallback_patience == d.fallback.patience);
  CHECK(p.fallback_recover_after == d.fallback.recover_after);
  const fm::selector_options s;
  fm_selector_options o;
  REQUIRE(fm_init_selector_options(&o, sizeof(o)) == FM_OK);
  CHECK(o.max_sequences == s.max_sequences);
  CHECK(o.max_rollback_tokens == s.max_rollback_tokens);
  CHECK(o.max_staleness == s.max_staleness);
  CHECK(o.late == int(s.late));
  CHECK(o.deadline_ms == s.deadline.count());
  CHECK((o.stagger != 0) == s.stagger);
  const fm::pooled_keys_config pool;
  fm_pooled_keys_options po;
  REQUIRE(fm_init_pooled_keys_options(&po, sizeof(po)) == FM_OK);
  CHECK(po.tokens_per_key == pool.tokens_per_key);
  CHECK(po.type == int(pool.type));
  CHECK(po.query_tokens == pool.query_tokens);
  const fm::store_options st;
  fm_store_options so;
  REQUIRE(fm_init_store_options(&so, sizeof(so)) == FM_OK);
  CHECK(so.entries_per_chunk == st.geometry.entries_per_chunk);
  CHECK(so.type == int(st.geometry.type));
  CHECK(so.max_sequences == st.max_sequences);
  CHECK(so.index_keys.dim == st.geometry.index_keys.dim);
  CHECK(so.index_keys.tokens_per_key == st.geometry.index_keys.tokens_per_key);
}
