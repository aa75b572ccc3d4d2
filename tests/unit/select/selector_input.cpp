// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/controls.hpp>
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  bench() {
    policy.interval = 8;
    options.max_sequences = 4;
    select = std::make_unique<fm::selector>(store, index, policy, options);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag) {
    return engine->open(fm::sequence_options_for(policy, geometry, 800), tag);
  }
};

}  // namespace

TEST_CASE("a selector that cannot work is refused", "[selector]") {
  bench b;
  const auto refuses = [&] {
    CHECK_THROWS_AS(fm::selector(b.store, b.index, b.policy, b.options), fm::argument_error);
  };
  SECTION("policy") { b.policy.interval = 0, refuses(); }
  SECTION("max_sequences") { b.options.max_sequences = 0, refuses(); }
  SECTION("max_rollback_tokens") { b.options.max_rollback_tokens = -1, refuses(); }
  SECTION("memory") { b.options.memory = {}, refuses(); }
  SECTION("index-key lanes") { b.index.keys.push_back({0, toy::width, 4, 4}), refuses(); }
  SECTION("tokens per key") { b.index.keys[0].tokens_per_key = 2, refuses(); }
  SECTION("window") { b.index.keys[0].window = 3, refuses(); }
  SECTION("key layer") { b.index.keys[0].layer = 2, refuses(); }
  SECTION("query layer") { b.index.queries[0].layer = 2, refuses(); }
  SECTION("negative layer") { b.index.queries[0].layer = -1, refuses(); }
  SECTION("width") { b.index.queries[0].width = 0, refuses(); }
  SECTION("widths that disagree") { b.index.queries[0].width = 25, refuses(); }
  SECTION("key widths that disagree") { b.index.keys[2].width = 25, refuses(); }
  SECTION("no memory") {
    b.options.memory.allocate = [](void*, std::size_t, std::size_t) -> void* { return nullptr; };
    CHECK_THROWS_AS(fm::selector(b.store, b.index, b.policy, b.options), fm::admission_error);
  }
}

TEST_CASE("attaching what cannot be served is refused and leaves nothing behind", "[selector]") {
  bench b;
  auto s = b.open(1);
  CHECK_THROWS_AS(b.select->attach(s.handle), fm::argument_error);
  CHECK_THROWS_AS(b.select->attach(fm::sequence_handle{}), fm::error);
  CHECK_THROWS_AS(b.select->attach(fm::sequence_handle{1000000000, 1}), fm::error);

  const auto other = b.store.open(fm::sequence_options_for(b.policy, b.geometry, 800));
  fm::selection_policy p = b.policy;
  p.sink_chunks = 2;
  CHECK_THROWS_AS(b.select->attach(other, &p), fm::argument_error);
  p = b.policy;
  p.recent_chunks = 1;
  CHECK_THROWS_AS(b.select->attach(other, &p), fm::argument_error);
  p = b.policy;
  p.threshold = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(b.select->attach(other, &p), fm::argument_error);
  fm::selection_report r;
  CHECK(b.select->report(other, &r) == status::unknown_sequence);
  CHECK_NOTHROW(b.select->attach(other));
  CHECK(b.select->report(other, &r) == status::ok);
}

TEST_CASE("max_sequences is a limit; closed and detached sequences make room", "[selector]") {
  bench b;
  std::vector<toy::sequence> s;
  for (int i = 0; i < 4; ++i) s.push_back(b.open(std::uint64_t(i)));
  const auto fifth = b.store.open(fm::sequence_options_for(b.policy, b.geometry, 800));
  CHECK_THROWS_AS(b.select->attach(fifth), fm::admission_error);
  SECTION("detached") { b.select->detach(s[1].handle); }
  SECTION("closed") { REQUIRE(b.store.close(s[2].handle) == status::ok); }
  CHECK_NOTHROW(b.select->attach(fifth));
  CHECK_THROWS_AS(b.open(9), fm::admission_error);
}

TEST_CASE("handles of closed and unknown sequences are told apart", "[selector]") {
  bench b;
  auto s = b.open(1);
  const auto old = s.handle;
  REQUIRE(b.store.close(old) == status::ok);
  const auto fresh = b.store.open(fm::sequence_options_for(b.policy, b.geometry, 800));
  REQUIRE(fresh.index == old.index);
  fm::selection_report r;
  CHECK(b.select->report(fresh, &r) == status::unknown_sequence);
  b.select->attach(fresh);
  CHECK(b.select->report(fresh, &r) == status::ok);
  CHECK(b.select->report(old, &r) == status::stale_sequence);
  CHECK(b.select->last_fault().sequence == old.index);
  CHECK(b.select->request_refresh(old) == status::stale_sequence);
  CHECK(b.select->report_attention_mass(old, 0.5f) == status::stale_sequence);
  CHECK(b.select->request_refresh({7, 1}) == status::unknown_sequence);
  CHECK(b.select->report_attention_mass({7, 1}, 0.5f) == status::unknown_sequence);
  CHECK(b.select->report(fresh, nullptr) == status::null_data);
  CHECK_THROWS_AS(b.select->save_state(old), fm::error);
  CHECK_THROWS_AS(b.select->attach_fork(old, fresh), fm::error);
  b.select->detach(old);
  CHECK(b.select->report(fresh, &r) == status::ok);
}

TEST_CASE("bad items are found before anything is done", "[selector]") {
  bench b;
  auto x = b.open(1), y = b.open(2);
  REQUIRE(b.engine->step({&x, &y}, {20, 20}) == status::ok);
  REQUIRE(b.select->request_refresh(x.handle) == status::ok);
  const auto steps = b.select->counters().steps;
  const auto refreshes = b.select->counters().refreshes;
  std::vector<fm::batch_item> items = {{x.handle, 20, 1}, {y.handle, 20, 1}};
  status expected = status::ok;
  SECTION("unknown") { items[1].sequence = {50, 1}, expected = status::unknown_sequence; }
  SECTION("stale") { --items[1].sequence.generation, expected = status::stale_sequence; }
  SECTION("twice") { items[1] = items[0], expected = status::bad_argument; }
  SECTION("negative position") { items[1].position = -1, expected = status::bad_argument; }
  SECTION("no tokens") { items[1].num_tokens = 0, expected = status::bad_argument; }
  SECTION("too long") { items[1].num_tokens = 781, expected = status::sequence_full; }
  SECTION("far too long") {
    items[1].position = std::numeric_limits<std::int64_t>::max(), expected = status::sequence_full;
  }
  SECTION("detached") { b.select->detach(y.handle), expected = status::unknown_sequence; }
  const fm::batch batch(items.data(), items.size());
  CHECK(fm::select_chunks(*b.select, batch, toy::host) == expected);
  CHECK(b.select->last_fault().code == expected);
  CHECK(b.select->counters().steps == steps);
  CHECK(b.select->counters().refreshes == refreshes);
  std::vector<float> hidden(std::size_t(1000 * toy::width));
  std::int64_t rows = 0;
  for (const auto& i : items) rows += i.num_tokens;
  CHECK(b.select->observe(batch, 0, fm::view<const float, 2>(hidden.data(), rows, toy::width), toy::host) ==
        expected);
  fm::index_key_pages pages;
  REQUIRE(b.store.index_keys(x.handle, 0, &pages) == status::ok);
  CHECK(pages.keys == 5);
  CHECK(fm::select_chunks(*b.select, fm::batch(nullptr, 2), toy::host) == status::null_data);
  CHECK(fm::select_chunks(*b.select, fm::batch(nullptr, 0), toy::host) == status::ok);
}

TEST_CASE("hidden states of the wrong shape or type are refused and change nothing", "[selector]") {
  bench b;
  auto s = b.open(1);
  const fm::batch_item item{s.handle, 0, 8};
  const fm::batch batch(&item, 1);
  const std::vector<float> hidden(1000, 1.0f);
  fm::const_tensor<2> rows(fm::view<const float, 2>(hidden.data(), 8, toy::width));
  status expected = status::ok;
  SECTION("rows") { rows.shape[0] = 7, expected = status::bad_shape; }
  SECTION("width") { rows.shape[1] = toy::width - 1, expected = status::bad_shape; }
  SECTION("dtype") { rows.type = static_cast<fm::dtype>(9), expected = status::bad_dtype; }
  SECTION("null") { rows.data = nullptr, expected = status::null_data; }
  CHECK(b.select->observe(batch, 1, rows, toy::host) == expected);
  CHECK(b.select->last_fault().layer == 1);
  fm::index_key_pages pages;
  REQUIRE(b.store.index_keys(s.handle, 1, &pages) == status::ok);
  CHECK(pages.keys == 0);
}

TEST_CASE("layers without a tap are ignored, whatever comes", "[selector]") {
  bench b;
  const fm::batch_item item{{}, 0, 8};
  CHECK(b.select->observe(fm::batch(&item, 1), 5, {}, toy::host) == status::ok);
  CHECK(b.select->observe_queries(fm::batch(&item, 1), 0, {}, toy::host) == status::ok);
}

TEST_CASE("a refresh without the newest token's hidden state reports hidden_missing with the layer",
          "[selector]") {
  bench b;
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 41) == status::ok);
  const auto before = toy::resident_ids(b.store, s.handle);
  b.engine->observes = false;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  CHECK(b.engine->step(s) == status::hidden_missing);
  const fm::fault f = b.select->last_fault();
  CHECK(f.code == status::hidden_missing);
  CHECK(f.sequence == s.handle.index);
  CHECK(f.layer == 1);
  CHECK(f.expected == 41);
  CHECK(f.actual == 40);
  CHECK(toy::resident_ids(b.store, s.handle) == before);
  CHECK(b.select->counters().refreshes_failed == 1);
}

TEST_CASE("a refresh whose keys are missing reports index_keys_missing", "[selector]") {
  bench b;
  b.index.keys.clear();
  toy::scripted_indexer wants;
  wants.keys = {{0, toy::width, 4, 4}};
  // An indexer that reads keys which the engine should have appended.
  struct reader final : toy::scripted_indexer {
    fm::status score(const fm::score_request& r, fm::view<float, 1> s) noexcept override {
      fm::index_key_pages pages;
      if (r.reader->index_keys(r.sequence, 0, &pages) != status::ok || pages.keys < r.chunks * 2)
        return status::index_keys_missing;
      return toy::scripted_indexer::score(r, s);
    }
  } index;
  index.keys.clear();
  fm::selector select(b.store, index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(fm::sequence_options_for(b.policy, b.geometry, 800), 2);
  CHECK(engine.step(s, 40) == status::index_keys_missing);
  CHECK(select.last_fault().sequence == s.handle.index);
}

TEST_CASE("a refresh at another length than the store's is out of order", "[selector]") {
  bench b;
  auto s = b.open(1);
  REQUIRE(b.engine->pass({&s}, {40}) == status::ok);
  const fm::batch_item item{s.handle, 40, 1};
  CHECK(fm::select_chunks(*b.select, fm::batch(&item, 1), toy::host) == status::out_of_order);
  CHECK(b.select->last_fault().expected == 40);
  CHECK(b.select->last_fault().actual == 41);
}

TEST_CASE("after speculative tokens were rejected the newest kept token's hidden state is used",
          "[selector]") {
  bench b;
  struct seeing final : toy::scripted_indexer {
    std::vector<float> seen;
    fm::status score(const fm::score_request& r, fm::view<float, 1> s) noexcept override {
      seen.assign(r.queries[0], r.queries[0] + toy::width);
      return toy::scripted_indexer::score(r, s);
    }
  } index;
  fm::selector select(b.store, index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(fm::sequence_options_for(b.policy, b.geometry, 800), 2);
  REQUIRE(engine.step(s, 40) == status::ok);
  REQUIRE(engine.pass({&s}, {8}) == status::ok);
  const int kept = GENERATE(1, 4, 7, 8);
  CAPTURE(kept);
  REQUIRE(b.store.truncate(s.handle, 40 + kept) == status::ok);
  REQUIRE(select.request_refresh(s.handle) == status::ok);
  const fm::batch_item item{s.handle, 40, kept};
  REQUIRE(fm::select_chunks(select, fm::batch(&item, 1), toy::host) == status::ok);
  for (std::int64_t i = 0; i < toy::width; ++i)
    REQUIRE(index.seen[std::size_t(i)] == toy::hidden_value(s, 1, 40 + kept - 1, i));
}

TEST_CASE("NaN scores rank last and are counted", "[selector]") {
  bench b;
  b.index.rule = [](const fm::score_request&, std::int64_t c) {
    return c % 2 ? std::numeric_limits<float>::quiet_NaN() : -float(c);
  };
  fm::selection_policy p = b.policy;
  p.budget_fraction = 0;
  p.max_chunks = 6;
  fm::selector select(b.store, b.index, p, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(fm::sequence_options_for(p, b.geometry, 800), 2);
  REQUIRE(engine.step(s, 160) == status::ok);
  CHECK(toy::resident_ids(b.store, s.handle) == std::vector<fm::chunk_id>{0, 2, 4, 6, 18, 19});
  fm::selection_report r;
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.plan.nan_scores == 9);
  CHECK(select.counters().nan_scores == 9);
}
