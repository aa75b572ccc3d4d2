// SPDX-License-Identifier: MIT
// The tinylm program as a user meets it.
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/catch.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

struct workplace {
  int run(const std::string& arguments) const {
    const std::string command =
        std::string(FLASHMEMORY_TINYLM) + " " + arguments + " >" + at("out") + " 2>" + at("err");
    const int ended = std::system(command.c_str());
    return WIFEXITED(ended) ? WEXITSTATUS(ended) : 1000;  // a signal
  }
  std::string at(const std::string& name) const { return folder.file(name); }
  std::string text(const std::string& name) const {
    std::ifstream file(at(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void make_tasks(const std::string& name, int per_task) const {
    REQUIRE(run("tasks --out " + at(name) + " --lengths 512 --tasks niah_single --per-task " +
                std::to_string(per_task)) == 0);
  }
  flashmemory_test::temporary_folder folder;
};

/// What an evaluation says but for times and the processor.
nlohmann::json answers(const std::string& text) {
  nlohmann::json all = nlohmann::json::parse(text), out = nlohmann::json::array();
  for (const auto& p : all.at("prompts"))
    out.push_back({p.at("id"), p.at("policy"), p.at("text"), p.at("found"), p.at("kept_fraction"),
                   p.at("steps"), p.at("fast_bytes_peak"), p.at("refreshes").size()});
  out.push_back(all.at("store").at("recalled_bytes"));
  out.push_back(all.at("prefill").at("tokens"));
  out.push_back(all.at("summaries").size());
  return out;
}

}  // namespace

TEST_CASE("a stopped evaluation goes on after its last prompt and ends as one that was not", "[tinylm]") {
  const workplace w;
  w.make_tasks("tasks", 3);
  const std::string eval = "eval --tasks " + w.at("tasks") + " --policy lsa,full --threads 2 --json ";
  REQUIRE(w.run(eval + w.at("whole") + " --html " + w.at("page")) == 0);
  CHECK_THAT(w.text("page"), Catch::Contains("<html"));
  CHECK(!std::filesystem::exists(w.at("whole.partial")));

  // What a run leaves that is ended once its first prompt stands in the file.
  const std::string script =
      "bash -c '" + std::string(FLASHMEMORY_TINYLM) + " " + eval + w.at("stopped") +
      " >/dev/null 2>&1 & p=$!; until [ $(cat " + w.at("stopped.partial") +
      " 2>/dev/null | wc -l) -ge 2 ]; do kill -0 $p || exit 99; done; kill -KILL $p; wait $p; exit 0'";
  REQUIRE(std::system(script.c_str()) == 0);
  REQUIRE(std::filesystem::exists(w.at("stopped.partial")));
  CHECK(!std::filesystem::exists(w.at("stopped")));

  SECTION("with the same command") {
    std::ofstream(w.at("stopped.partial"), std::ios::app) << "{\"id\": \"half a li";
    REQUIRE(w.run(eval + w.at("stopped")) == 0);
    CHECK_THAT(w.text("err"), Catch::Contains("going on after"));
    CHECK(answers(w.text("stopped")) == answers(w.text("whole")));
    CHECK(!std::filesystem::exists(w.at("stopped.partial")));
  }
  SECTION("but not as another evaluation") {
    CHECK(w.run(eval + w.at("stopped") + " --kv-budget 0.2") != 0);
    CHECK_THAT(w.text("err"), Catch::Contains("stopped.partial") && Catch::Contains("another evaluation"));
    w.make_tasks("tasks", 4);
    CHECK(w.run(eval + w.at("stopped")) != 0);
    CHECK_THAT(w.text("err"), Catch::Contains("another evaluation"));
  }
}

TEST_CASE("tinylm refuses what cannot work before it starts, by the name of the option", "[tinylm]") {
  const workplace w;
  w.make_tasks("tasks", 1);
  {
    nlohmann::json task = nlohmann::json::parse(w.text("tasks"));
    task["max_new_tokens"] = 40000;
    std::ofstream(w.at("long")) << task.dump() << '\n';
  }
  const std::string ask = "ask --tokens 1024 --needles 1 --policy lsa";
  const std::string eval = "eval --tasks " + w.at("tasks") + " --policy lsa";
  const std::pair<std::string, const char*> wrong[] = {
      {ask + " --threads 100000", "--threads"},
      {ask + " --threads -1", "--threads"},
      {ask + " --recent 2147483647", "--recent"},
      {ask + " --kv-budget nan", "--kv-budget"},
      {ask + " --kv-budget 13.5", "13.5 % is 0.135"},
      {ask + " --max-new-tokens 250 --question '" + std::string(1000, 'q') + "'", "--question"},
      {"ask --tokens 1000000", "--tokens"},
      {eval + " --json " + w.at("no/such/folder"), "no/such/folder"},
      {eval + " --html " + w.at("no/such/folder"), "no/such/folder"},
      {eval + " --json " + w.at("same") + " --html " + w.at("same"), "--html"},
      {eval + " --hysteresis nan", "--hysteresis"},
      {eval + " --threshold 65", "--threshold"},
      {eval + " --interval 2147483647", "--interval"},
      {eval + " --policy lse", "lse"},
      {"eval --policy lsa --tasks " + w.at("long"), "positions"},
      {"tasks --lengths 512 --out " + w.at("no/such/folder"), "no/such/folder"},
      {"tasks --lengths 512 --per-task 99999999999 --out " + w.at("none"), "--per-task"},
      {"record --lengths 512 --min-mass nan --out " + w.at("none"), "--min-mass"},
      {"record --lengths 512 --multivalue 50 --out " + w.at("none"), "--multivalue"},
  };
  for (const auto& [command, named] : wrong) {
    CAPTURE(command);
    const int code = w.run(command);
    CHECK(code != 0);
    CHECK(code < 128);
    CHECK_THAT(w.text("err") + w.text("out"), Catch::Contains(named));
  }
  CHECK(!std::filesystem::exists(w.at("none")));
  CHECK(!std::filesystem::exists(w.at("same")));
}

TEST_CASE("a thread pool that does not get its threads says how many there are and ends the others",
          "[tinylm]") {
  const workplace w;
  // Far fewer address space than a thousand stacks need.
  const std::string script = "bash -c 'ulimit -v 3000000; " + std::string(FLASHMEMORY_TINYLM) +
                             " ask --tokens 1024 --needles 1 --policy lsa --threads 1024 >" + w.at("out") +
                             " 2>" + w.at("err") + "'";
  const int ended = std::system(script.c_str());
  REQUIRE(WIFEXITED(ended));
  CHECK(WEXITSTATUS(ended) != 0);
  CHECK(WEXITSTATUS(ended) < 128);
  CHECK_THAT(w.text("err"), Catch::Contains("--threads 1024: only ") || Catch::Contains("out of memory"));
}
