// SPDX-License-Identifier: MIT
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store inner{[&] {
    auto o = toy::store_options(geometry, 80);
    o.transition_chunks = 200;  // room for the new chunks of several sequences at a time
    return o;
  }()};
  toy::failing_store store{inner};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(fm::apply_mode apply = fm::apply_mode::overlapped, std::int32_t max_staleness = 4,
                 fm::late_policy late = fm::late_policy::keep) {
    policy.interval = 16;
    policy.budget_fraction = 0;
    policy.max_chunks = 5;
    options.max_sequences = 80;
    options.apply = apply;
    options.max_staleness = max_staleness;
    options.late = late;
    // The two chunks that are wanted besides sink and recent move on with the position.
    index.rule = [](const fm::score_request& r, std::int64_t c) {
      return c == r.position / 16 % 7 + 2 || c == r.position / 16 % 5 + 8 ? 5.0f : -float(c);
    };
  }
  void build() {
    select = std::make_unique<fm::selector>(store, index, policy, options);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag, std::int64_t tokens = 2048) {
    const auto late = std::min(options.max_staleness, policy.interval);
    return engine->open(fm::sequence_options_for(policy, geometry, tokens, late), tag);
  }
  fm::selection_report report(const toy::sequence& s) const {
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    return r;
  }
  std::vector<fm::chunk_id> resident(const toy::sequence& s) const {
    return toy::resident_ids(inner, s.handle);
  }
};

}  // namespace

TEST_CASE("overlapped on copies that land at once is at once, set by set", "[selector][overlap]") {
  bench a(fm::apply_mode::at_once), b(fm::apply_mode::overlapped);
  a.build();
  b.build();
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::vector<toy::sequence> x, y;
  for (std::uint64_t i = 0; i < 6; ++i) {
    x.push_back(a.open(i));
    y.push_back(b.open(i));
  }
  for (int step = 0; step < 150; ++step) {
    std::vector<toy::sequence*> first, second;
    std::vector<std::int64_t> tokens;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (random() % 4 == 0) continue;
      first.push_back(&x[i]);
      second.push_back(&y[i]);
      tokens.push_back(x[i].tokens == 0 ? 100 + std::int64_t(random() % 60) : 1 + std::int64_t(random() % 3));
    }
    REQUIRE(a.engine->step(first, tokens) == status::ok);
    REQUIRE(b.engine->step(second, tokens) == status::ok);
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(a.resident(x[i]) == b.resident(y[i]));
  }
  CHECK(a.select->counters().refreshes == b.select->counters().refreshes);
  CHECK(a.select->counters().refreshes > 40);
  CHECK(b.select->counters().staleness == 0);
  CHECK(b.inner.counters().faults == 0);
}

TEST_CASE("the old set stays until the copies are there, and the report says how old the new one is",
          "[selector][overlap]") {
  const std::int64_t delay = GENERATE(1, 2, 3, 4);
  CAPTURE(delay);
  bench b;
  b.build();
  auto s = b.open(1);
  b.store.polls_until_landed = delay;
  REQUIRE(b.engine->step(s, 163) == status::ok);  // the warm start
  for (int step = 0; step < 90; ++step) {
    const auto before = b.resident(s);
    const auto refreshes = b.report(s).refreshes;
    const bool was_refreshing = b.select->refreshing(s.handle);
    REQUIRE(b.engine->step(s) == status::ok);
    if (b.report(s).refreshes != refreshes) {
      // It polls when it starts and once in every step after that.
      REQUIRE(was_refreshing);
      REQUIRE(b.report(s).staleness == delay);
      REQUIRE(b.report(s).position == s.tokens - 1 - delay);
      const auto at = b.report(s).position / 16;
      const auto now = b.resident(s);
      for (const auto wanted : {at % 7 + 2, at % 5 + 8})
        REQUIRE(std::count(now.begin(), now.end(), fm::chunk_id(wanted)) == 1);
    } else {
      for (const auto id : before) {
        const auto now = b.resident(s);
        REQUIRE(std::count(now.begin(), now.end(), id) == 1);
      }
    }
  }
  const auto c = b.select->counters();
  CHECK(c.refreshes >= 5);
  CHECK(c.staleness == c.refreshes * delay);
  CHECK(c.max_staleness == delay);
  CHECK(c.late == 0);
  CHECK(c.refreshes_failed == 0);
}

TEST_CASE("sequences that wait for their turn to recall are served by their own scores",
          "[selector][overlap]") {
  bench b;
  b.index.rule = [](const fm::score_request& r, std::int64_t c) {
    return c == 3 + 2 * std::int64_t(r.sequence.index) ? 5.0f : -float(c);
  };
  b.options.max_staleness = 15;
  b.build();
  b.store.polls_until_landed = 2;
  std::vector<toy::sequence> s;
  for (std::uint64_t i = 0; i < 4; ++i) s.push_back(b.open(i));
  std::vector<toy::sequence*> all;
  for (auto& one : s) all.push_back(&one);
  REQUIRE(b.engine->step(all, {163, 163, 163, 163}) == status::ok);
  // Another one joins meanwhile, for whom tables grow.
  const bool grows = GENERATE(false, true);
  if (grows) b.open(9, 4096);
  for (int step = 0; step < 12; ++step) REQUIRE(b.engine->step(all, {1, 1, 1, 1}) == status::ok);
  CHECK(b.select->counters().refreshes >= 4);
  for (const auto& one : s) {
    const auto now = b.resident(one);
    for (std::int64_t other = 0; other < 4; ++other)
      CHECK(std::count(now.begin(), now.end(), fm::chunk_id(3 + 2 * other)) == (other == one.handle.index));
  }
}

TEST_CASE("chunks completed while a refresh is under way stay resident", "[selector][overlap]") {
  bench b;
  b.options.max_staleness = 100;
  b.policy.interval = 40;
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 160) == status::ok);
  b.store.polls_until_landed = 30;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  for (int step = 0; step < 30; ++step) REQUIRE(b.engine->step(s) == status::ok);
  REQUIRE(b.select->refreshing(s.handle));
  REQUIRE(b.engine->step(s) == status::ok);
  REQUIRE(!b.select->refreshing(s.handle));
  CHECK(b.report(s).position == 160);
  CHECK(b.report(s).complete_chunks == 20);
  const auto now = b.resident(s);
  for (fm::chunk_id c = 20; c < 24; ++c) CHECK(std::count(now.begin(), now.end(), c) == 1);
}

TEST_CASE("a refresh that is later than max_staleness meets the late policy", "[selector][overlap]") {
  const auto late = GENERATE(fm::late_policy::keep, fm::late_policy::wait, fm::late_policy::fail);
  CAPTURE(int(late));
  bench b(fm::apply_mode::overlapped, 3, late);
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 163) == status::ok);
  b.store.polls_until_landed = 7;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  const auto before = b.report(s).refreshes;
  std::int64_t steps = 0;
  status last = status::ok;
  for (; steps < 12 && (steps == 0 || b.select->refreshing(s.handle)); ++steps) last = b.engine->step(s);
  const auto c = b.select->counters();
  CHECK(c.late == 1);
  switch (late) {
    case fm::late_policy::keep:
      CHECK(last == status::ok);
      CHECK(b.report(s).staleness == 7);
      break;
    case fm::late_policy::wait:
      CHECK(last == status::ok);
      CHECK(b.report(s).staleness == 4);
      break;
    case fm::late_policy::fail:
      CHECK(last == status::timed_out);
      CHECK(b.select->last_fault().code == status::timed_out);
      CHECK(c.refreshes_failed == 1);
      CHECK(b.report(s).refreshes == before);
      CHECK(b.inner.counters().recalls_cancelled == 1);
      // It is tried again one interval later, as after any other failure.
      b.store.polls_until_landed = 0;
      for (int i = 0; i < 16; ++i) REQUIRE(b.engine->step(s) == status::ok);
      CHECK(b.report(s).refreshes == before + 1);
      break;
  }
}

TEST_CASE("with late_policy::keep a late refresh is waited for when the quota is full, and not before",
          "[selector][overlap]") {
  bench b(fm::apply_mode::overlapped, 3, fm::late_policy::keep);
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 163) == status::ok);
  b.store.polls_until_landed = 1 << 20;  // never, unless they are waited for
  fm::sequence_info info;
  std::int64_t fullest = 0;
  for (int step = 0; step < 400; ++step) {
    CAPTURE(step);
    REQUIRE(b.engine->step(s) == status::ok);
    REQUIRE(b.inner.info(s.handle, &info) == status::ok);
    fullest = std::max(fullest, info.resident_chunks);
  }
  CHECK(fullest == info.options.max_resident_chunks);
  const auto c = b.select->counters();
  CHECK(c.late > 2);
  CHECK(c.refreshes > 2);
  CHECK(c.refreshes_failed == 0);
  CHECK(c.max_staleness > b.policy.interval);
}

TEST_CASE("a wait that ends at the deadline is told, and the refresh goes on", "[selector][overlap]") {
  bench b(fm::apply_mode::overlapped, 2, fm::late_policy::wait);
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 163) == status::ok);
  b.store.polls_until_landed = 1;
  b.store.stuck = true;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  for (int i = 0; i < 3; ++i) REQUIRE(b.engine->step(s) == status::ok);
  REQUIRE(b.engine->step(s) == status::timed_out);
  CHECK(b.select->refreshing(s.handle));
  b.store.stuck = false;
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(!b.select->refreshing(s.handle));
  CHECK(b.report(s).staleness == 4);
}

TEST_CASE("a copy that fails leaves the old set and the stage, and the next refresh works",
          "[selector][overlap]") {
  bench b;
  b.build();
  auto s = b.open(1), other = b.open(2);
  REQUIRE(b.engine->step({&s, &other}, {163, 163}) == status::ok);
  const auto before = b.resident(s);
  b.store.polls_until_landed = 2;
  b.store.fail_copies = status::io_error;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  REQUIRE(b.engine->step({&s, &other}, {1, 1}) == status::ok);
  REQUIRE(b.engine->step({&s, &other}, {1, 1}) == status::ok);
  REQUIRE(b.engine->step({&s, &other}, {1, 1}) == status::io_error);
  CHECK(b.select->last_fault().code == status::io_error);
  CHECK(b.select->last_fault().sequence == s.handle.index);
  CHECK(b.resident(s) == before);
  CHECK(b.select->counters().refreshes_failed == 1);
  b.store.fail_copies = status::ok;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  for (int i = 0; i < 3; ++i) REQUIRE(b.engine->step({&s, &other}, {1, 1}) == status::ok);
  CHECK(b.report(s).staleness == 2);
}

TEST_CASE("recalls under way are no more than concurrent_recalls, and none is refused or forgotten",
          "[selector][overlap]") {
  const std::int32_t most = GENERATE(1, 2, 5);
  CAPTURE(most);
  bench b;
  b.options.concurrent_recalls = most;
  b.options.stagger = false;
  b.options.max_staleness = 1000;
  b.policy.interval = 40;  // longer than all of them take one after another
  b.build();
  std::vector<toy::sequence> sequences;
  for (std::uint64_t i = 0; i < 7; ++i) sequences.push_back(b.open(i));
  std::vector<toy::sequence*> batch;
  for (auto& s : sequences) batch.push_back(&s);
  b.store.polls_until_landed = 2;
  REQUIRE(b.engine->step(batch, std::vector<std::int64_t>(7, 150)) == status::ok);
  std::int64_t largest = 0;
  for (int step = 0; step < 100; ++step) {
    largest = std::max(largest, b.store.under_way());
    REQUIRE(b.store.under_way() <= most);
    REQUIRE(b.engine->step(batch, std::vector<std::int64_t>(7, 1)) == status::ok);
  }
  CHECK(largest == most);
  for (auto& s : sequences) {
    CHECK(b.report(s).refreshes >= 3);
    CHECK(b.report(s).recall.refused == 0);
  }
}

TEST_CASE("rollbacks, closing and detaching end a refresh that is under way", "[selector][overlap]") {
  bench b;
  b.options.max_staleness = 1000;
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 163) == status::ok);
  b.store.polls_until_landed = 5;
  const auto fly = [&](toy::sequence& which) {
    REQUIRE(b.select->request_refresh(which.handle) == status::ok);
    REQUIRE(b.engine->step(which) == status::ok);
    REQUIRE(b.select->refreshing(which.handle));
  };
  SECTION("a rollback by an interval: it was for another continuation") {
    fly(s);
    REQUIRE(b.store.truncate(s.handle, 140) == status::ok);
    s.tokens = 140;
    REQUIRE(b.engine->step(s) == status::ok);
    CHECK(b.select->counters().abandoned == 1);
    CHECK(b.select->refreshing(s.handle));  // a new one
    for (int i = 0; i < 5; ++i) REQUIRE(b.engine->step(s) == status::ok);
    CHECK(b.report(s).position == 140);
  }
  SECTION("a short rollback leaves it") {
    fly(s);
    REQUIRE(b.store.truncate(s.handle, 162) == status::ok);
    s.tokens = 162;
    for (int i = 0; i < 6; ++i) REQUIRE(b.engine->step(s) == status::ok);
    CHECK(b.select->counters().abandoned == 0);
    CHECK(b.report(s).position == 163);
  }
  SECTION("a rollback into what it has asked for makes it due again at once") {
    b.policy.interval = 64;
    b.build();
    s = b.open(2);
    b.store.polls_until_landed = 0;
    REQUIRE(b.engine->step(s, 163) == status::ok);
    b.store.polls_until_landed = 5;
    fly(s);
    REQUIRE(b.store.truncate(s.handle, 120) == status::ok);
    s.tokens = 120;
    for (int i = 0; i < 20 && b.report(s).refreshes < 2; ++i) REQUIRE(b.engine->step(s) == status::ok);
    CHECK(b.report(s).refreshes == 2);
    CHECK(b.report(s).complete_chunks == 15);
  }
  SECTION("detach") {
    fly(s);
    b.select->detach(s.handle);
    CHECK(b.inner.counters().recalls_cancelled == 1);
    CHECK(!b.select->refreshing(s.handle));
    auto other = b.open(2);  // takes the place
    for (int i = 0; i < 8; ++i) REQUIRE(b.engine->step(other, 20) == status::ok);
    CHECK(b.report(other).refreshes >= 1);
  }
  SECTION("close without detach") {
    auto other = b.open(2);
    fly(s);
    REQUIRE(b.store.close(s.handle) == status::ok);
    for (int i = 0; i < 3; ++i) REQUIRE(b.engine->step(other, 20) == status::ok);
    CHECK(b.select->counters().abandoned == 1);
    CHECK(b.select->counters().refreshes_failed == 0);
  }
}

TEST_CASE("a state saved while a refresh is under way asks for it anew", "[selector][overlap]") {
  bench b;
  b.build();
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 163) == status::ok);
  b.store.polls_until_landed = 5;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  REQUIRE(b.engine->step(s) == status::ok);
  REQUIRE(b.select->refreshing(s.handle));
  const auto state = b.select->save_state(s.handle);
  b.select->detach(s.handle);
  b.select->load_state(s.handle, state.data(), state.size());
  b.store.polls_until_landed = 0;
  const auto before = b.report(s).refreshes;
  REQUIRE(b.engine->step(s) == status::ok);
  CHECK(b.report(s).refreshes == before + 1);
  CHECK(b.report(s).position == s.tokens - 1);
}

TEST_CASE("options of the overlapped mode that cannot work are refused", "[selector][overlap]") {
  bench b;
  const auto refused = [&](const char* named) {
    try {
      b.build();
    } catch (const fm::argument_error& e) {
      return std::string(e.what()).find(named) != std::string::npos;
    }
    return false;
  };
  SECTION("max_staleness") {
    b.options.max_staleness = -1;
    CHECK(refused("max_staleness"));
  }
  SECTION("concurrent_recalls") {
    b.options.concurrent_recalls = 0;
    CHECK(refused("concurrent_recalls"));
  }
  SECTION("deadline") {
    b.options.deadline = std::chrono::milliseconds(0);
    CHECK(refused("deadline"));
  }
  SECTION("late") {
    b.options.late = static_cast<fm::late_policy>(9);
    CHECK(refused("late"));
  }
  SECTION("apply") {
    b.options.apply = static_cast<fm::apply_mode>(9);
    CHECK(refused("apply"));
  }
}
