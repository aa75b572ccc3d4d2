// SPDX-License-Identifier: MIT
#include "html_report.hpp"
#include "residency_map.hpp"
#include "tests/catch.hpp"

namespace {

/// A prompt of 10 chunks of 4 tokens, 12 generated tokens, refreshed after the prompt and after 8 of them.
tinylm::run_record two_refreshes() {
  tinylm::run_record run;
  run.ids.assign(12, 7);
  run.step_seconds.assign(11, 1e-3);
  run.attention_seconds.assign(11, 5e-4);
  tinylm::refresh first, second;
  first.tokens = 40;
  first.complete_chunks = 10;
  first.resident = {0, 3, 9};
  second.tokens = 48;
  second.complete_chunks = 12;
  second.resident = {0, 5, 11};
  run.refreshes = {first, second};
  return run;
}

}  // namespace

TEST_CASE("a residency span holds what a refresh kept and what was completed since", "[tinylm][report]") {
  const auto spans = tinylm::residency_spans(two_refreshes(), 40, 4);
  REQUIRE(spans.size() == 2);
  CHECK(spans[0].first == 0);
  CHECK(spans[0].end == 8);
  CHECK(spans[0].chunks == std::vector<std::int64_t>{0, 3, 9, 10, 11});
  CHECK(spans[1].first == 8);
  CHECK(spans[1].end == 12);
  CHECK(spans[1].chunks == std::vector<std::int64_t>{0, 5, 11, 12});
}

TEST_CASE("an answer is covered if all of its chunks were resident for all of its tokens",
          "[tinylm][report]") {
  const auto spans = tinylm::residency_spans(two_refreshes(), 40, 4);
  const auto covered = [&](tinylm::evidence e) { return tinylm::covered_answers(spans, {e}, 4) == 1; };
  CHECK(covered({0, 8, 12, 16}));         // chunk 3 in the first span
  CHECK_FALSE(covered({0, 9, 12, 16}));   // one token too long
  CHECK_FALSE(covered({0, 8, 12, 17}));   // reaches into chunk 4
  CHECK(covered({8, 12, 20, 24}));        // chunk 5 in the second span
  CHECK_FALSE(covered({4, 12, 20, 24}));  // missing in the first
  CHECK(tinylm::covered_answers({}, {}, 4) == 0);
}

TEST_CASE("the report is one page that escapes what it shows", "[tinylm][report]") {
  tinylm::task_record task;
  task.task = "a<b>&\"c\"";
  task.length = 64;
  task.prompt_tokens = 40;
  task.answers = {"1234567"};
  task.need = {{0, 8, 12, 16}};
  const auto cells = tinylm::make_cells({"full", "lsa"}, {{0.5}});
  std::vector<tinylm::eval_result> results(2);
  for (std::size_t i = 0; i < 2; ++i) {
    results[i].task = &task;
    results[i].cell = &cells[i];
    results[i].run = two_refreshes();
    results[i].answer = {1, 1};
  }
  const auto page =
      tinylm::html_report({"title", {"fact"}, 4}, results, tinylm::summarise(results, cells), cells);
  CHECK(page.find("a<b>") == std::string::npos);
  CHECK(page.find("a&lt;b&gt;&amp;&quot;c&quot;") != std::string::npos);
  CHECK(page.find("1 of 1 had their chunks") != std::string::npos);
  for (const char* outside : {"http://", "https://", "src=", "<script", "url("})
    CHECK(page.find(outside) == std::string::npos);
  const auto count = [&](const std::string& what) {
    std::size_t n = 0;
    for (std::size_t at = page.find(what); at != std::string::npos; at = page.find(what, at + 1)) ++n;
    return n;
  };
  for (const char* element : {"svg", "table", "details", "figure", "h3"})
    CHECK(count(std::string("<") + element) == count(std::string("</") + element));
  CHECK(page.find("nan") == std::string::npos);
}

TEST_CASE("every threshold is compared with every hysteresis, and a label tells them apart") {
  tinylm::cell_limits limits;
  limits.budgets = {0.1, 0.2};
  limits.thresholds = {0.5, 0.75};
  limits.hystereses = {0, 1.5};
  std::vector<std::string> labels;
  for (const auto& cell : tinylm::make_cells({"lsa", "lsa-threshold"}, limits)) {
    labels.push_back(cell.label());
    if (cell.name == "lsa") {
      CHECK(cell.policy.hysteresis == 0);
      continue;
    }
    CHECK(cell.policy.mode == flashmemory::selection_mode::threshold);
    CHECK(cell.policy.threshold == flashmemory::log_odds(cell.threshold));
    CHECK(cell.policy.hysteresis == float(cell.hysteresis));
  }
  CHECK(labels == std::vector<std::string>{"lsa 10%", "lsa 20%", "lsa-threshold 0.5", "lsa-threshold 0.75",
                                           "lsa-threshold 0.5-1.5", "lsa-threshold 0.75-1.5"});
}
