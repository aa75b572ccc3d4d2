// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <cstring>
#include <flashmemory/indexer/controls.hpp>
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/small_dual_encoder.hpp"

namespace fm = flashmemory;
using fm::status;

namespace {

struct bench {
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store store{toy::store_options(geometry)};
  fm::dual_encoder_indexer index{toy::small_dual_encoder(3)};
  fm::selection_policy policy;
  fm::selector_options options;
  bench() {
    policy.interval = 8;
    policy.hysteresis = 0.5f;
    policy.fallback.max_dropped = 0.25f;
    options.max_rollback_tokens = 12;
  }
  fm::sequence_options sequence() const { return fm::sequence_options_for(policy, geometry, 800); }
};

/// Whether a chunk was still in the fast tier may differ: forks share slots.
bool same(const fm::selection_report& a, const fm::selection_report& b) {
  return a.reason == b.reason && a.position == b.position && a.complete_chunks == b.complete_chunks &&
         a.budget == b.budget && a.plan.chunks == b.plan.chunks && a.plan.above == b.plan.above &&
         a.plan.above_dropped == b.plan.above_dropped && a.recall.selected == b.recall.selected &&
         a.recall.refused == b.recall.refused && a.stage == b.stage && a.refreshes == b.refreshes;
}

}  // namespace

TEST_CASE("a sequence goes on from a saved state as if nothing had happened", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  const std::int64_t prompt = GENERATE(1, 6, 150);
  const int steps = GENERATE(0, 5, 13);
  CAPTURE(prompt, steps);
  fm::selection_policy own = b.policy;
  own.interval = 5;
  const bool with_own = GENERATE(false, true);
  auto s = engine.open(b.sequence(), 8, with_own ? &own : nullptr);
  REQUIRE(engine.step(s, prompt) == status::ok);
  for (int i = 0; i < steps; ++i) REQUIRE(engine.step(s) == status::ok);

  const std::vector<std::byte> state = select.save_state(s.handle);
  auto twin = s;
  twin.handle = b.store.fork(s.handle, b.sequence());
  fm::selector other(b.store, b.index, b.policy, b.options);
  toy::engine again(b.store, other);
  other.load_state(twin.handle, state.data(), state.size(), with_own ? &own : nullptr);
  CHECK(other.save_state(twin.handle) == state);
  for (int i = 0; i < 40; ++i) {
    REQUIRE(engine.step(s) == status::ok);
    REQUIRE(again.step(twin) == status::ok);
    fm::selection_report x, y;
    REQUIRE(select.report(s.handle, &x) == status::ok);
    REQUIRE(other.report(twin.handle, &y) == status::ok);
    REQUIRE(same(x, y));
    REQUIRE(toy::resident_ids(b.store, s.handle) == toy::resident_ids(b.store, twin.handle));
    for (std::int32_t stream = 0; stream < 3; ++stream)
      REQUIRE(toy::key_bytes(b.store, s.handle, stream) == toy::key_bytes(b.store, twin.handle, stream));
  }
}

TEST_CASE("a state with any byte changed, cut short or with more behind it is refused", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8);
  REQUIRE(engine.step(s, 3) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(s.handle);
  const auto refuses = [&](const std::vector<std::byte>& bytes, std::size_t size) {
    REQUIRE_THROWS_AS(select.load_state(s.handle, bytes.data(), size), fm::format_error);
    fm::selection_report r;
    REQUIRE(select.report(s.handle, &r) == status::unknown_sequence);
  };
  for (std::size_t i = 0; i < state.size(); ++i) {
    CAPTURE(i);
    auto damaged = state;
    damaged[i] ^= std::byte{0x40};
    refuses(damaged, damaged.size());
  }
  for (std::size_t size = 0; size < state.size(); ++size) refuses(state, size);
  auto longer = state;
  longer.push_back({});
  refuses(longer, longer.size());
  CHECK_THROWS_AS(select.load_state(s.handle, nullptr, 0), fm::format_error);
  CHECK_NOTHROW(select.load_state(s.handle, state.data(), state.size()));
  CHECK_THROWS_AS(select.load_state(s.handle, state.data(), state.size()), fm::argument_error);
}

TEST_CASE("a state that was made up with a right checksum is still checked field by field",
          "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8);
  REQUIRE(engine.step(s, 30) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(s.handle);
  int accepted = 0;
  for (std::size_t i = 0; i + 8 < state.size(); ++i)
    for (const int value : {0x00, 0x7f, 0x80, 0xff}) {
      auto forged = state;
      forged[i] = std::byte(value);
      const std::uint64_t sum = XXH3_64bits(forged.data(), forged.size() - 8);
      std::memcpy(forged.data() + forged.size() - 8, &sum, 8);
      try {
        select.load_state(s.handle, forged.data(), forged.size());
        select.detach(s.handle);
        ++accepted;
      } catch (const fm::format_error&) {
      }
      fm::selection_report r;
      REQUIRE(select.report(s.handle, &r) == status::unknown_sequence);
    }
  CHECK(accepted > 0);  // rows and reports may hold anything
}

TEST_CASE("a state does not fit another selector or another sequence", "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8), t = engine.open(b.sequence(), 9);
  REQUIRE(engine.step({&s, &t}, {50, 20}) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(t.handle);
  CHECK_THROWS_AS(select.load_state(t.handle, state.data(), state.size()), fm::format_error);
  CHECK_THROWS_AS(select.load_state({}, state.data(), state.size()), fm::error);
  select.detach(s.handle);

  SECTION("another indexer") {
    auto config = toy::small_dual_encoder(3);
    config.retrievers[0].query_layer = 0;
    config.retrievers[1].query_layer = 0;
    fm::dual_encoder_indexer index(config);
    fm::selector other(b.store, index, b.policy, b.options);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
  SECTION("another sink") {
    b.policy.sink_chunks = 2;
    fm::selector other(b.store, b.index, b.policy, b.options);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
  SECTION("a rollback since within reach is fine, one beyond it is not") {
    fm::selector other(b.store, b.index, b.policy, b.options);
    REQUIRE(b.store.truncate(s.handle, 38) == status::ok);
    CHECK_NOTHROW(other.load_state(s.handle, state.data(), state.size()));
    other.detach(s.handle);
    REQUIRE(b.store.truncate(s.handle, 37) == status::ok);
    CHECK_THROWS_AS(other.load_state(s.handle, state.data(), state.size()), fm::format_error);
  }
}

TEST_CASE("a state brings no policy: the selector's, or what the engine gives, is in force",
          "[selector][state]") {
  bench b;
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  fm::selection_policy own = b.policy;
  own.interval = 500;  // a sequence that is next due far away
  auto s = engine.open(b.sequence(), 8, &own);
  REQUIRE(engine.step(s, 60) == status::ok);
  const std::vector<std::byte> state = select.save_state(s.handle);
  select.detach(s.handle);
  const bool given = GENERATE(false, true);
  fm::selection_policy now = b.policy;
  now.interval = 3;
  select.load_state(s.handle, state.data(), state.size(), given ? &now : nullptr);
  const int interval = given ? 3 : b.policy.interval;
  fm::selection_report before, after;
  REQUIRE(select.report(s.handle, &before) == status::ok);
  for (int i = 0; i < interval; ++i) REQUIRE(engine.step(s) == status::ok);
  REQUIRE(select.report(s.handle, &after) == status::ok);
  CHECK(after.refreshes == before.refreshes + 1);
  for (int i = 0; i < 4 * interval; ++i) REQUIRE(engine.step(s) == status::ok);
  REQUIRE(select.report(s.handle, &after) == status::ok);
  CHECK(after.refreshes == before.refreshes + 5);
}

TEST_CASE("a state goes from one rollback depth to another, with the rows that both have room for",
          "[selector][state]") {
  bench b;
  const int depth = GENERATE(0, 3, 12, 40, 300);
  CAPTURE(depth);
  fm::selector select(b.store, b.index, b.policy, b.options);
  toy::engine engine(b.store, select);
  auto s = engine.open(b.sequence(), 8);
  REQUIRE(engine.step(s, 150) == status::ok);
  auto twin = s;
  twin.handle = b.store.fork(s.handle, b.sequence());
  const std::vector<std::byte> state = select.save_state(s.handle);
  b.options.max_rollback_tokens = depth;
  fm::selector other(b.store, b.index, b.policy, b.options);
  toy::engine again(b.store, other);
  other.load_state(twin.handle, state.data(), state.size());
  const std::int64_t back = std::min(depth, 12);
  REQUIRE(b.store.truncate(s.handle, 150 - back) == status::ok);
  REQUIRE(b.store.truncate(twin.handle, 150 - back) == status::ok);
  s.tokens = twin.tokens = 150 - back;
  for (int i = 0; i < 30; ++i) {
    REQUIRE(engine.step(s) == status::ok);
    REQUIRE(again.step(twin) == status::ok);
    for (std::int32_t stream = 0; stream < 3; ++stream)
      REQUIRE(toy::key_bytes(b.store, s.handle, stream) == toy::key_bytes(b.store, twin.handle, stream));
  }
}

TEST_CASE("counts that nobody can have reached are refused before they are used", "[selector][state]") {
  bench b;
  fm::recency_indexer index;  // no sources: the state is its cadence
  b.policy.fallback.patience = std::numeric_limits<std::int32_t>::max();
  b.policy.fallback.min_attention_mass = 1;
  fm::selector select(b.store, index, b.policy, b.options);
  const auto s = b.store.open(b.sequence());
  select.attach(s);
  const std::vector<std::byte> state = select.save_state(s);
  select.detach(s);
  // Magic to length, two counts of sources, two flags; then three counts of tokens, stage, calls, calm, mass, report.
  constexpr std::size_t tokens_at = 24 + 2 * 8 + 2, calls_at = tokens_at + 3 * 8 + 4,
                        report_at = calls_at + 12;
  const auto loads = [&](std::size_t at, auto value) {
    auto forged = state;
    std::memcpy(forged.data() + at, &value, sizeof value);
    const std::uint64_t sum = XXH3_64bits(forged.data(), forged.size() - 8);
    std::memcpy(forged.data() + forged.size() - 8, &sum, 8);
    try {
      select.load_state(s, forged.data(), forged.size());
      return true;
    } catch (const fm::format_error&) {
      return false;
    }
  };
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK(!loads(tokens_at + 8 * i, most));
    CHECK(!loads(tokens_at + 8 * i, std::int64_t{-1}));
  }
  for (std::size_t i = 0; i < 14; ++i) {
    CAPTURE(i);
    CHECK(!loads(report_at + 8 + 8 * i, most));
  }
  CHECK(!loads(report_at, std::int32_t{99}));
  // As many calls as there can be: the next one does not pass the end of the numbers.
  REQUIRE(loads(calls_at, std::numeric_limits<std::int32_t>::max()));
  toy::sequence q;
  q.handle = s;
  toy::engine engine(b.store, select);
  REQUIRE(select.report_attention_mass(s, 0.5f) == status::ok);
  for (int i = 0; i < 40; ++i) {
    REQUIRE(select.request_refresh(s) == status::ok);
    REQUIRE(engine.step(q) == status::ok);
    REQUIRE(select.report_attention_mass(s, 0.5f) == status::ok);
  }
}
