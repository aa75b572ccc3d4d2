// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/controls.hpp>

#include "tests/catch.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::item_phase;
using fm::refresh_reason;
using fm::status;

namespace {

struct bench {
  fm::kv_geometry geometry = toy::geometry(0);
  fm::tiered_chunk_store store{toy::store_options(geometry, 8)};
  fm::recency_indexer recency;
  toy::scripted_indexer scripted;
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;
  toy::sequence s;

  explicit bench(bool in_prompts = false, bool stagger = false) {
    policy.interval = 64;
    policy.budget_fraction = 0.25;
    policy.select_in_prompts = in_prompts;
    fm::selector_options o;
    o.stagger = stagger;
    select = std::make_unique<fm::selector>(store, recency, policy, o);
    engine = std::make_unique<toy::engine>(store, *select);
    s = engine->open(fm::sequence_options_for(policy, geometry, 2048), 1);
  }
  fm::selection_report report() {
    fm::selection_report r;
    REQUIRE(select->report(s.handle, &r) == status::ok);
    return r;
  }
  status step(item_phase phase, std::int64_t tokens = 1) {
    engine->phase = phase;
    return engine->step(s, tokens);
  }
  status call(item_phase phase, std::int64_t position, std::int32_t tokens) {
    const fm::batch_item item{s.handle, position, tokens, phase};
    return fm::select_chunks(*select, fm::batch(&item, 1), toy::host);
  }
  void decode(std::int64_t tokens) {
    for (std::int64_t i = 0; i < tokens; ++i) REQUIRE(step(item_phase::decode) == status::ok);
  }
};

}  // namespace

TEST_CASE("the warm start comes after the last piece of a prompt, however short, and not before",
          "[selector]") {
  const std::int64_t last = GENERATE(1, 28, 63, 64, 65);
  CAPTURE(last);
  bench b;
  for (const std::int64_t piece : {64, 64, 200}) {
    REQUIRE(b.step(item_phase::prompt, piece) == status::ok);
    CHECK(b.report().refreshes == 0);
  }
  REQUIRE(b.step(item_phase::prompt_end, last) == status::ok);
  CHECK(b.report().refreshes == 1);
  CHECK(b.report().reason == refresh_reason::warm_start);
  CHECK(b.report().position == b.s.tokens - 1);
  b.decode(63);
  CHECK(b.report().refreshes == 1);
  b.decode(1);
  CHECK(b.report().refreshes == 2);
  CHECK(b.report().reason == refresh_reason::interval);
}

TEST_CASE("a follow-up prompt is due at its end, and the interval begins anew there", "[selector]") {
  const std::int64_t last = GENERATE(1, 28, 63, 64, 65);
  CAPTURE(last);
  bench b;
  REQUIRE(b.step(item_phase::prompt_end, 100) == status::ok);
  b.decode(40);
  REQUIRE(b.step(item_phase::prompt, 300) == status::ok);
  CHECK(b.report().refreshes == 1);
  REQUIRE(b.step(item_phase::prompt_end, last) == status::ok);
  CHECK(b.report().refreshes == 2);
  CHECK(b.report().reason == refresh_reason::prompt_end);
  b.decode(63);
  CHECK(b.report().refreshes == 2);
  b.decode(1);
  CHECK(b.report().refreshes == 3);
}

TEST_CASE("a prompt in pieces has its refreshes where one that comes at once has them", "[selector]") {
  const auto ends = [](const std::vector<std::int64_t>& pieces) {
    bench b(false, true);
    for (std::size_t i = 0; i + 1 < pieces.size(); ++i)
      REQUIRE(b.step(item_phase::prompt, pieces[i]) == status::ok);
    REQUIRE(b.step(item_phase::prompt_end, pieces.back()) == status::ok);
    std::vector<std::int64_t> at;
    for (std::int64_t before = b.report().refreshes; at.size() < 3; before = b.report().refreshes) {
      b.decode(1);
      if (b.report().refreshes != before) at.push_back(b.s.tokens);
    }
    return at;
  };
  CHECK(ends({300}) == ends({64, 64, 64, 64, 44}));
  CHECK(ends({300}) == ends({299, 1}));
}

TEST_CASE("with select_in_prompts every piece is selected for", "[selector]") {
  bench b(true);
  for (const std::int64_t piece : {100, 64, 7}) {
    const std::int64_t before = b.report().refreshes;
    REQUIRE(b.step(item_phase::prompt, piece) == status::ok);
    CHECK(b.report().refreshes == before + 1);
    CHECK(b.report().reason == refresh_reason::prompt);
    CHECK(b.report().position == b.s.tokens - 1);
  }
  REQUIRE(b.step(item_phase::prompt_end, 5) == status::ok);
  CHECK(b.report().refreshes == 4);
  CHECK(b.report().reason == refresh_reason::warm_start);
}

TEST_CASE("pieces out of order are refused without any change", "[selector]") {
  bench b;
  REQUIRE(b.step(item_phase::prompt, 40) == status::ok);
  REQUIRE(b.engine->pass({&b.s}, {1}) == status::ok);
  const auto steps = b.select->counters().steps;
  SECTION("decoding behind a prompt that has not ended") {
    CHECK(b.call(item_phase::decode, 40, 1) == status::out_of_order);
    CHECK(std::string(b.select->last_fault().what) == "phase: the prompt has not ended");
    CHECK(b.select->last_fault().sequence == b.s.handle.index);
    CHECK(b.report().refreshes == 0);
    CHECK(b.select->counters().steps == steps);
    CHECK(b.call(item_phase::prompt_end, 40, 1) == status::ok);
    CHECK(b.report().refreshes == 1);
  }
  SECTION("a piece that ends a prompt twice") {
    REQUIRE(b.call(item_phase::prompt_end, 40, 1) == status::ok);
    CHECK(b.call(item_phase::prompt_end, 40, 1) == status::out_of_order);
    CHECK(std::string(b.select->last_fault().what) == "phase: the prompt has ended with this token before");
    CHECK(b.report().refreshes == 1);
  }
  SECTION("a phase that there is not") {
    CHECK(b.call(item_phase(7), 40, 1) == status::bad_argument);
    CHECK(std::string(b.select->last_fault().what) == "phase");
  }
}

TEST_CASE("a prompt that was given up by truncate() may be followed by decoding, or begin again",
          "[selector]") {
  bench b;
  REQUIRE(b.step(item_phase::prompt_end, 100) == status::ok);
  b.decode(10);
  REQUIRE(b.step(item_phase::prompt, 50) == status::ok);
  REQUIRE(b.store.truncate(b.s.handle, 110) == status::ok);
  b.s.tokens = 110;
  SECTION("by decoding") {
    b.decode(5);
    CHECK(b.report().refreshes == 1);
  }
  SECTION("by the prompt") {
    REQUIRE(b.step(item_phase::prompt, 30) == status::ok);
    REQUIRE(b.step(item_phase::prompt_end, 1) == status::ok);
    CHECK(b.report().refreshes == 2);
    CHECK(b.report().position == 140);
  }
}

TEST_CASE("the end of a prompt whose selection failed may be said again", "[selector]") {
  fm::kv_geometry geometry = toy::geometry(0);
  fm::tiered_chunk_store inner(toy::store_options(geometry, 8));
  toy::failing_store store(inner);
  fm::recency_indexer index;
  fm::selection_policy policy;
  fm::selector select(store, index, policy);
  toy::engine engine(store, select);
  auto s = engine.open(fm::sequence_options_for(policy, geometry, 2048), 1);
  store.fail_recall = status::io_error;
  engine.phase = item_phase::prompt_end;
  CHECK(engine.step(s, 200) == status::io_error);
  store.fail_recall = status::ok;
  CHECK(fm::select_chunks(select, engine.items(), toy::host) == status::ok);
  fm::selection_report r;
  REQUIRE(select.report(s.handle, &r) == status::ok);
  CHECK(r.refreshes == 1);
  CHECK(fm::select_chunks(select, engine.items(), toy::host) == status::out_of_order);
}
