// SPDX-License-Identifier: MIT
#include <flashmemory/select/trace.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/toy_engine.hpp"

namespace fm = flashmemory;
using fm::status;
using nlohmann::json;

namespace {

/// What a sink was given, line by line, and when it starts to refuse.
struct kept_lines {
  std::vector<json> lines;
  std::int64_t accepts = 1 << 30;

  fm::byte_sink sink() {
    return {this, [](void* self, const void* data, std::size_t bytes) {
              auto& to = *static_cast<kept_lines*>(self);
              if (to.accepts-- <= 0) return false;
              const std::string text(static_cast<const char*>(data), bytes);
              if (text.back() != '\n' || text.find('\n') + 1 != text.size()) return false;
              to.lines.push_back(json::parse(text));
              return true;
            }};
  }
};

struct bench {
  toy::scripted_indexer index;
  fm::kv_geometry geometry = toy::geometry();
  fm::tiered_chunk_store inner{[&] {
    auto o = toy::store_options(geometry, 8);
    o.transition_chunks = 100;
    return o;
  }()};
  toy::failing_store store{inner};
  fm::selection_policy policy;
  fm::selector_options options;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit bench(fm::apply_mode apply) {
    policy.interval = 16;
    policy.budget_fraction = 0;
    policy.max_chunks = 6;
    options.apply = apply;
    options.late = fm::late_policy::keep;
    // Another one for every sequence, position and chunk.
    index.rule = [](const fm::score_request& r, std::int64_t c) {
      return toy::number(r.sequence.index, std::uint64_t(r.position), std::uint64_t(c), 7);
    };
  }
  void build(const fm::refresh_event_hook& hook) {
    options.events = hook;
    select = std::make_unique<fm::selector>(store, index, policy, options);
    engine = std::make_unique<toy::engine>(store, *select);
  }
  toy::sequence open(std::uint64_t tag) {
    return engine->open(fm::sequence_options_for(policy, geometry, 2048, options.max_staleness), tag);
  }
};

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

}  // namespace

TEST_CASE("a trace has every refresh: the scores of its own sequence, what was wanted, what came into force",
          "[selector][trace]") {
  const auto seed = flashmemory_test::fresh_seed();
  const auto apply = GENERATE(fm::apply_mode::at_once, fm::apply_mode::overlapped);
  CAPTURE(seed, int(apply));
  std::mt19937 random(seed);
  kept_lines kept;
  bench b(apply);
  {
    fm::selection_trace trace(kept.sink(), b.inner, "a \"test\"");
    b.build(trace.hook());
    b.store.polls_until_landed = apply == fm::apply_mode::at_once ? 0 : 2;
    std::vector<toy::sequence> s;
    for (std::uint64_t i = 0; i < 4; ++i) s.push_back(b.open(i));
    for (int step = 0; step < 120; ++step) {
      std::vector<toy::sequence*> batch;
      std::vector<std::int64_t> tokens;
      for (auto& one : s) {
        if (random() % 5 == 0) continue;
        batch.push_back(&one);
        tokens.push_back(one.tokens == 0 ? 150 + std::int64_t(random() % 60) : 1);
      }
      const std::size_t before = kept.lines.size();
      REQUIRE(b.engine->step(batch, tokens) == status::ok);
      for (std::size_t i = before; i < kept.lines.size(); ++i) {
        const json& line = kept.lines[i];
        if (line["event"] != "in_force") continue;
        const auto at = std::find_if(s.begin(), s.end(),
                                     [&](const auto& one) { return one.handle.index == line["sequence"]; });
        REQUIRE(at != s.end());
        REQUIRE(line["generation"] == at->handle.generation);
        REQUIRE(line["resident"] == json(toy::resident_ids(b.inner, at->handle)));
        REQUIRE(line["tokens"] == at->tokens);
      }
    }
    b.select.reset();  // gives up what is under way
    CHECK_FALSE(trace.failed());
    CHECK(trace.lines() == std::int64_t(kept.lines.size()));
  }
  REQUIRE(kept.lines[0]["flashmemory_trace"] == 1);
  CHECK(kept.lines[0]["title"] == "a \"test\"");
  CHECK(kept.lines[0]["tokens_per_chunk"] == b.geometry.tokens_per_chunk());
  std::map<std::int64_t, json> open;  // sequence -> what was chosen for it
  std::int64_t in_force = 0, chosen = 0;
  for (std::size_t i = 1; i < kept.lines.size(); ++i) {
    const json& line = kept.lines[i];
    const std::int64_t sequence = line["sequence"];
    if (line["event"] == "chosen") {
      ++chosen;
      REQUIRE(open.count(sequence) == 0);
      open[sequence] = line;

      REQUIRE(line["scores"].size() == line["complete_chunks"]);
      for (std::size_t c = 0; c < line["scores"].size(); ++c) {
        const float made = toy::number(std::uint64_t(sequence), line["position"], c, 7);
        REQUIRE(line["scores"][c].get<float>() == Approx(made).epsilon(1e-3).margin(1e-6));
      }
      REQUIRE(line["wanted"].size() >= 6);
      continue;
    }
    REQUIRE(open.count(sequence) == 1);
    REQUIRE(open[sequence]["position"] == line["position"]);
    if (line["event"] == "in_force") {
      ++in_force;
      for (const auto& id : open[sequence]["wanted"])
        REQUIRE(std::count(line["resident"].begin(), line["resident"].end(), id) == 1);
    }
    open.erase(sequence);
  }
  CHECK(open.empty());
  CHECK(in_force > 20);
  CHECK(chosen >= in_force);
}

TEST_CASE("a refresh that was chosen and fails is told as given up", "[selector][trace]") {
  kept_lines kept;
  bench b(fm::apply_mode::at_once);
  fm::selection_trace trace(kept.sink(), b.inner, "");
  b.build(trace.hook());
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 200) == status::ok);
  b.store.fail_recall = status::io_error;
  REQUIRE(b.select->request_refresh(s.handle) == status::ok);
  CHECK(b.engine->step(s) == status::io_error);
  REQUIRE(kept.lines.size() == 5);
  CHECK(kept.lines[3]["event"] == "chosen");
  CHECK(kept.lines[3]["reason"] == "requested");
  CHECK(kept.lines[4]["event"] == "given_up");
  CHECK(kept.lines[4]["position"] == 200);
}

TEST_CASE("the policy `everything` is traced without scores, and scores that are no numbers as null",
          "[selector][trace]") {
  kept_lines kept;
  bench b(fm::apply_mode::at_once);
  fm::selection_trace trace(kept.sink(), b.inner, "");
  b.index.rule = [](const fm::score_request&, std::int64_t c) {
    return c == 3 ? std::numeric_limits<float>::quiet_NaN() : float(c);
  };
  b.build(trace.hook());
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 200) == status::ok);
  CHECK(kept.lines[1]["scores"][3].is_null());
  fm::selection_policy all = b.policy;
  all.mode = fm::selection_mode::everything;
  auto e = b.engine->open(fm::sequence_options_for(all, b.geometry, 2048), 2, &all);
  REQUIRE(b.engine->step(e, 200) == status::ok);
  CHECK(kept.lines[3]["event"] == "chosen");
  CHECK(kept.lines[3].count("scores") == 0);
}

TEST_CASE("what an engine adds is on a line of its own, text mended", "[selector][trace]") {
  kept_lines kept;
  bench b(fm::apply_mode::at_once);
  fm::selection_trace trace(kept.sink(), b.inner, "");
  b.build(trace.hook());
  auto s = b.open(1);
  trace.chunk_text(s.handle, 4, "line\n\"two\" \x01 \xe2\x82");
  trace.token_text(s.handle, 17, "\xf0\x9f\x98\x80");
  const std::vector<float> mass = {0.5f, 0, 0.123456f, std::numeric_limits<float>::infinity()};
  trace.attention_mass(s.handle, 17, fm::view<const float, 1>(mass.data(), mass.size()));
  trace.sequence_name(s.handle, "request 7");
  REQUIRE(kept.lines.size() == 5);
  CHECK(kept.lines[4]["event"] == "name");
  CHECK(kept.lines[4]["text"] == "request 7");
  CHECK(kept.lines[1]["chunk"] == 4);
  CHECK(kept.lines[1]["text"] == "line\n\"two\" \x01 \xef\xbf\xbd");
  CHECK(kept.lines[2]["text"] == "\xf0\x9f\x98\x80");
  CHECK(kept.lines[3]["mass"].size() == 4);
  CHECK(kept.lines[3]["mass"][2].get<double>() == Approx(0.1235));
  CHECK(kept.lines[3]["mass"][3].is_null());
}

TEST_CASE("a sink that is full ends the trace, not the run", "[selector][trace]") {
  kept_lines kept;
  kept.accepts = 2;
  bench b(fm::apply_mode::at_once);
  fm::selection_trace trace(kept.sink(), b.inner, "");
  b.build(trace.hook());
  auto s = b.open(1);
  REQUIRE(b.engine->step(s, 200) == status::ok);
  CHECK(trace.failed());
  CHECK(trace.lines() == 2);
  REQUIRE(b.engine->step(s, 40) == status::ok);
  CHECK(kept.lines.size() == 2);
  kept.accepts = 0;
  CHECK_THROWS_AS(fm::selection_trace(kept.sink(), b.inner, ""), fm::io_failure);
}

TEST_CASE("a trace's file grows line by line, replaces a trace and nothing else", "[selector][trace]") {
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("run.jsonl");
  bench b(fm::apply_mode::at_once);
  b.build({});
  auto s = b.open(1);
  {
    fm::selection_trace trace(path, b.inner, "one");
    trace.token_text(s.handle, 1, "x");
    const std::string now = content(path);
    CHECK(std::count(now.begin(), now.end(), '\n') == 2);
  }
  { fm::selection_trace trace(path, b.inner, "two"); }
  CHECK(json::parse(content(path))["title"] == "two");
  CHECK((std::filesystem::status(path).permissions() & std::filesystem::perms(077)) ==
        std::filesystem::perms::none);

  std::ofstream(folder.file("mine.txt")) << "{\"flashmemory\": what I wrote}";
  CHECK_THROWS_WITH(fm::selection_trace(folder.file("mine.txt"), b.inner, ""),
                    Catch::Matchers::Contains("mine.txt") && Catch::Matchers::Contains("not a trace"));
  CHECK(content(folder.file("mine.txt")) == "{\"flashmemory\": what I wrote}");
  CHECK_THROWS_AS(fm::selection_trace(folder.file("no/such"), b.inner, ""), fm::io_failure);
  CHECK_THROWS_AS(fm::selection_trace(folder.path(), b.inner, ""), fm::io_failure);
  fm::selection_trace nowhere("/dev/null", b.inner, "");
  CHECK_FALSE(nowhere.failed());
  CHECK_THROWS_AS(fm::selection_trace("/dev/full", b.inner, ""), fm::io_failure);
}
