// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/small_dual_encoder.hpp"
#include "tests/support/store_testing.hpp"

namespace fm = flashmemory;
using fm::status;
using store_testing::failing_backing;

namespace {

using ids = std::vector<fm::chunk_id>;

/// A selector over a store whose medium fails on demand. Old chunks are wanted most.
struct bench {
  failing_backing::switches control;
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  std::unique_ptr<fm::tiered_chunk_store> inner;
  std::unique_ptr<toy::failing_store> store;
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(fm::apply_mode mode = fm::apply_mode::at_once, std::int32_t interval = 16) {
    control.verify = true;
    fm::store_options o = toy::store_options(geometry);
    o.fast_bytes = o.backing_bytes = std::size_t{16} << 20;
    inner = std::make_unique<fm::tiered_chunk_store>(o, store_testing::failing_ram(o, &control));
    store = std::make_unique<toy::failing_store>(*inner);
    index.rule = [](const fm::score_request&, std::int64_t c) { return c == 5 ? 1e6f : -float(c); };
    policy.interval = interval;
    policy.budget_fraction = 0.2;
    options.stagger = false;
    options.apply = mode;
    make();
  }
  void make() {
    select = std::make_unique<fm::selector>(*store, index, policy, options);
    engine = std::make_unique<toy::engine>(*store, *select);
  }
  fm::sequence_options wanted() const { return fm::sequence_options_for(policy, geometry, 1200, 16); }
  fm::selection_report report(const toy::sequence& s) const {
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    return r;
  }
  bool resident(const toy::sequence& s, fm::chunk_id c) const {
    const auto now = toy::resident_ids(*inner, s.handle);
    return std::count(now.begin(), now.end(), c) == 1;
  }
};

}  // namespace

TEST_CASE("a corrupt chunk ends no refresh, is planned no more, and decoding goes on", "[fault]") {
  const auto mode = GENERATE(fm::apply_mode::at_once, fm::apply_mode::overlapped);
  bench b(mode);
  auto s = b.engine->open(b.wanted(), 1);
  b.control.flip_read = 0;  // of the first chunk that is recalled, which is number 5: twice
  b.control.failing_reads = 2;
  REQUIRE(b.engine->step(s, 401) == status::ok);
  CHECK(b.report(s).recall.unreadable == 1);
  CHECK(b.report(s).recall.first_unreadable == 5);
  CHECK(b.report(s).recall.bad == 1);
  CHECK_FALSE(b.resident(s, 5));
  CHECK(b.resident(s, 1));
  const std::int64_t reads = b.control.reads;
  for (int t = 0; t < 600; ++t) {
    REQUIRE(b.engine->step(s) == status::ok);
    REQUIRE_FALSE(b.resident(s, 5));
  }
  CHECK(b.control.reads >= reads);
  CHECK(b.report(s).recall.unreadable == 0);  // it was not even asked for
  const fm::selector_counters c = b.select->counters();
  CHECK(c.unreadable == 1);
  CHECK(c.refreshes_failed == 0);
  CHECK(c.refreshes == 1 + 600 / 16);
  CHECK(c.retries == 0);  // nothing that may pass
  CHECK(b.report(s).plan.chunks == fm::budget_chunks(b.policy, b.geometry, b.report(s).complete_chunks));
}

TEST_CASE("a policy that keeps everything leaves bad chunks out as well", "[fault]") {
  bench b;
  fm::selection_policy all = b.policy;
  all.mode = fm::selection_mode::everything;
  toy::sequence s;
  s.tag = 3;
  auto o = b.wanted();
  o.max_resident_chunks = 100;
  s.handle = b.inner->open(o);
  b.select->attach(s.handle, &all);
  b.control.flip_read = 0;
  b.control.failing_reads = 2;
  REQUIRE(b.engine->step(s, 401) == status::ok);
  CHECK(b.report(s).recall.unreadable == 1);
  for (int t = 0; t < 40; ++t) REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).recall.unreadable == 0);
  CHECK(b.report(s).plan.chunks == b.report(s).complete_chunks - 1);
}

TEST_CASE("what may pass is tried again after 1, 2, 4 and more tokens, and then at the usual pace",
          "[fault]") {
  bench b;
  auto s = b.engine->open(b.wanted(), 1);
  b.store->fail_recall = GENERATE(status::io_error, status::timed_out, status::cuda_error);
  CHECK(b.engine->step(s, 401) == b.store->fail_recall);
  std::vector<std::int64_t> tries;
  for (std::int64_t t = 1; t <= 64; ++t)
    if (b.engine->step(s) != status::ok) tries.push_back(t);
  CHECK(tries == std::vector<std::int64_t>{1, 3, 7, 15, 31, 47, 63});  // the interval is 16
  CHECK(b.select->counters().retries == 7);
  b.store->fail_recall = status::ok;
  for (int t = 0; t < 16; ++t) REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 1);
  CHECK(b.report(s).position == 401 + 79 - 1);
  for (int t = 0; t < 14; ++t) REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 1);
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 2);
}

TEST_CASE("chunks that the medium refuses are asked for again soon, and come when it gives them", "[fault]") {
  const auto mode = GENERATE(fm::apply_mode::at_once, fm::apply_mode::overlapped);
  bench b(mode);
  auto s = b.engine->open(b.wanted(), 1);
  b.control.fail_read = 0;
  b.control.failing_reads = 1000000;
  REQUIRE(b.engine->step(s, 401) == status::ok);
  CHECK(b.report(s).recall.unreadable > 1);
  CHECK(b.report(s).recall.bad == 0);
  b.control.fail_read = -1;
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 2);
  CHECK(b.report(s).recall.unreadable == 0);
  CHECK(b.resident(s, 5));
  CHECK(b.select->counters().retries == 1);
  for (int t = 0; t < 15; ++t) REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 2);
}

TEST_CASE("decoding goes on though every refresh fails", "[fault]") {
  const auto mode = GENERATE(fm::apply_mode::at_once, fm::apply_mode::overlapped);
  bench b(mode);
  auto s = b.engine->open(b.wanted(), 1);
  REQUIRE(b.engine->step(s, 401) == status::ok);
  const auto kept = toy::resident_ids(*b.inner, s.handle);
  b.store->fail_recall = status::io_error;
  for (int t = 0; t < 700; ++t) {
    const status code = b.engine->step(s);
    REQUIRE((code == status::ok || code == status::io_error));
  }
  CHECK(s.tokens == 1101);
  CHECK(b.select->counters().refreshes == 1);
  for (const fm::chunk_id c : kept)
    if (c < 48) CHECK(b.resident(s, c));  // what was selected
}

TEST_CASE("a selector that dies gives up what it started, and one that finds a recall cancels it",
          "[fault]") {
  bench b(fm::apply_mode::overlapped);
  auto s = b.engine->open(b.wanted(), 1);
  b.store->polls_until_landed = 100;
  REQUIRE(b.engine->step(s, 401) == status::ok);
  REQUIRE(b.select->refreshing(s.handle));
  fm::sequence_info i;
  REQUIRE(b.inner->info(s.handle, &i) == status::ok);
  CHECK(i.pending_chunks > 0);
  b.select.reset();
  REQUIRE(b.inner->info(s.handle, &i) == status::ok);
  CHECK(i.pending_chunks == 0);
  CHECK(b.inner->counters().recalls_cancelled == 1);

  b.index.queries.clear();  // it has not seen the prompt
  b.index.keys.clear();
  b.index.check_keys = false;
  b.store->polls_until_landed = 0;
  b.make();
  b.engine->observes = false;
  b.select->attach(s.handle);
  const fm::chunk_id foreign[] = {7, 9};
  REQUIRE(b.inner->start_recall(s.handle, fm::view<const fm::chunk_id, 1>(foreign, 2), nullptr, toy::host) ==
          status::ok);
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == 1);
  CHECK(b.select->counters().refreshes_failed == 0);
  CHECK(b.inner->counters().recalls_cancelled == 2);
  CHECK(b.resident(s, 5));
}

TEST_CASE("a closed sequence is named at once by every call, and nothing else changes", "[fault]") {
  bench b;
  auto s = b.engine->open(b.wanted(), 1), other = b.engine->open(b.wanted(), 2);
  REQUIRE(b.engine->step({&s, &other}, {100, 100}) == status::ok);
  REQUIRE(b.inner->close(s.handle) == status::ok);
  fm::selection_report r;
  CHECK(b.select->report(s.handle, &r) == status::stale_sequence);
  CHECK(b.select->last_fault().sequence == s.handle.index);
  CHECK(b.select->request_refresh(s.handle) == status::stale_sequence);
  CHECK(b.select->report_attention_mass(s.handle, 0.5f) == status::stale_sequence);
  const fm::selector_counters before = b.select->counters();
  const fm::batch_item items[] = {{other.handle, 99, 1}, {s.handle, 99, 1}};
  CHECK(fm::select_chunks(*b.select, fm::batch(items, 2), toy::host) == status::stale_sequence);
  CHECK(b.select->last_fault().sequence == s.handle.index);
  CHECK(b.select->counters().steps == before.steps);
  CHECK(b.select->counters().refreshes_failed == before.refreshes_failed);
  REQUIRE(b.engine->step(other) == status::ok);
}

TEST_CASE("a fork of a sequence that was rolled back to its start is served like any other", "[fault]") {
  bench b;
  auto s = b.engine->open(b.wanted(), 1);
  REQUIRE(b.engine->step(s, 300) == status::ok);
  REQUIRE(b.inner->truncate(s.handle, 0) == status::ok);
  s.tokens = 0;
  toy::sequence child = s;
  child.handle = b.inner->fork(s.handle, b.wanted());
  REQUIRE_NOTHROW(b.select->attach_fork(s.handle, child.handle));
  REQUIRE(b.engine->step({&s, &child}, {250, 120}) == status::ok);
  for (int t = 0; t < 40; ++t) REQUIRE(b.engine->step({&s, &child}, {1, 1}) == status::ok);
  CHECK(b.resident(s, 5));
  CHECK(b.resident(child, 5));
}
