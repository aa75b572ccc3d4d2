// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store inner{toy::store_options(geometry)};
  toy::failing_store store{inner};
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  bench() {
    policy.interval = 4;
    policy.hysteresis = 0.5f;
    fm::selector_options o;
    o.stagger = false;
    select = std::make_unique<fm::selector>(store, index, policy, o);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag) {
    auto o = fm::sequence_options_for(policy, geometry, 800);
    o.max_resident_chunks = 40;
    return engine->open(o, tag);
  }
  std::int64_t refreshes(const toy::sequence& s) {
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    return r.refreshes;
  }
};

}  // namespace

TEST_CASE(
    "a failed refresh leaves the old set, is counted, and is tried again after another interval, or soon if "
    "it may "
    "pass",
    "[fault]") {
  bench b;
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 161) == status::ok);
  b.index.rule = [](const fm::score_request&, std::int64_t c) { return -float(c); };
  status expected = status::ok;
  SECTION("recall") { b.store.fail_recall = expected = GENERATE(status::io_error, status::corrupt_chunk); }
  SECTION("score") { b.index.answer = expected = status::index_keys_missing; }
  SECTION("info") { b.store.fail_info = expected = status::stale_sequence; }
  SECTION("resident") { b.store.fail_resident = expected = status::stale_slot; }
  for (int i = 0; i < 3; ++i) REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.engine->step(s) == expected);
  const auto fault = b.select->last_fault();
  CHECK(fault.code == expected);
  CHECK(fault.sequence == s.handle.index);
  if (expected == status::io_error || expected == status::corrupt_chunk) CHECK(fault.chunk == 3);
  CHECK(toy::resident_ids(b.inner, s.handle) == std::vector<fm::chunk_id>{0, 18, 19, 20});
  CHECK(b.select->counters().refreshes_failed == 1);
  CHECK(b.select->counters().refreshes == 1);
  CHECK(b.refreshes(s) == 1);
  const bool may_pass = expected == status::io_error || expected == status::corrupt_chunk;
  for (int i = 0; i < 3; ++i) CHECK(b.engine->step(s) == (may_pass && i != 1 ? expected : status::ok));
  CHECK(b.select->counters().refreshes_failed == (may_pass ? 3 : 1));
  CHECK(b.select->counters().retries == (may_pass ? 2 : 0));
  b.store.fail_recall = b.store.fail_info = b.store.fail_resident = b.index.answer = status::ok;
  for (int i = 0; i < (may_pass ? 4 : 1); ++i) {
    CHECK(b.refreshes(s) == 1);
    REQUIRE(b.engine->step(s) == status::ok);
  }
  CHECK(b.refreshes(s) == 2);
  CHECK(b.select->counters().refreshes == 2);
}

TEST_CASE("request_refresh tries a failed refresh again at once", "[fault]") {
  bench b;
  auto s = b.open(1);
  b.store.fail_recall = status::stale_slot;
  CHECK(b.engine->step(s, 161) == status::stale_slot);
  CHECK(b.refreshes(s) == 0);
  b.store.fail_recall = status::ok;
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.refreshes(s) == 0);
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.refreshes(s) == 1);
  fm::selection_report r;
  REQUIRE(b.select->report(s.handle, &r) == status::ok);
  CHECK(r.reason == fm::refresh_reason::warm_start);
}

TEST_CASE("one sequence's failure does not keep others from refreshing; the first error is returned",
          "[fault]") {
  bench b;
  auto x = b.open(1), y = b.open(2), z = b.open(3);
  b.store.fail_recall = status::io_error;
  b.store.only_sequence = y.handle.index;
  CHECK(b.engine->step({&x, &y, &z}, {50, 60, 70}) == status::io_error);
  CHECK(b.select->last_fault().sequence == y.handle.index);
  CHECK(b.refreshes(x) == 1);
  CHECK(b.refreshes(y) == 0);
  CHECK(b.refreshes(z) == 1);
  CHECK(b.select->counters().refreshes == 2);
  CHECK(b.select->counters().refreshes_failed == 1);
}

TEST_CASE("observe may be repeated after append_index_keys failed, and then all keys are right", "[fault]") {
  const int good = GENERATE(0, 1, 2, 5);
  CAPTURE(good);
  bench b;
  auto s = b.open(1), twin = b.open(1);
  REQUIRE(b.engine->pass({&twin}, {600}) == status::ok);
  std::vector<float> hidden[2];
  for (std::int32_t layer = 0; layer < 2; ++layer)
    for (std::int64_t t = 0; t < 600; ++t)
      for (std::int64_t i = 0; i < toy::width; ++i)
        hidden[layer].push_back(toy::hidden_value(s, layer, t, i));
  const fm::batch_item item{s.handle, 0, 600};
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    const fm::view<const float, 2> rows(hidden[layer].data(), 600, toy::width);
    // Layer 0 feeds two streams of three blocks each, layer 1 one.
    const bool fails = good < (layer == 0 ? 6 : 3);
    b.store.fail_append_keys_after = good;
    CHECK((b.select->observe(fm::batch(&item, 1), layer, rows, toy::host) == status::io_error) == fails);
    if (!fails) continue;
    CHECK(b.select->last_fault().code == status::io_error);
    CHECK_THROWS_AS(b.select->save_state(s.handle), fm::error);
    b.store.fail_append_keys_after = -1;
    REQUIRE(b.select->observe(fm::batch(&item, 1), layer, rows, toy::host) == status::ok);
  }
  for (std::int32_t stream = 0; stream < 3; ++stream) {
    REQUIRE(toy::key_bytes(b.inner, s.handle, stream).size() == std::size_t(150 * 132));
    CHECK(toy::key_bytes(b.inner, s.handle, stream) == toy::key_bytes(b.inner, twin.handle, stream));
  }
}
