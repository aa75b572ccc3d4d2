// SPDX-License-Identifier: MIT
// What the viewer reads, makes of it, and shows; and the program as a user meets it.
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>

#include "examples/trace_view/picture.hpp"
#include "examples/trace_view/timeline.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"

namespace view = trace_view;

namespace {

const std::string head = R"({"flashmemory_trace":1,"title":"t","tokens_per_chunk":8,"layers":2})";
const std::string of = R"(,"sequence":0,"generation":1)";

std::string chosen(std::int64_t position, std::int64_t complete, const std::string& more = "") {
  return R"({"event":"chosen")" + of + R"(,"reason":"interval","position":)" + std::to_string(position) +
         R"(,"complete_chunks":)" + std::to_string(complete) + R"(,"budget":2,"wanted":[0])" + more + "}";
}

std::string in_force(std::int64_t tokens, const std::string& resident) {
  return R"({"event":"in_force")" + of +
         R"(,"position":1,"staleness":0,"stage":"normal","recalled":1,"bytes":9,)" +
         R"("unreadable":0,"score_us":1,"recall_us":2,"tokens":)" + std::to_string(tokens) +
         R"(,"resident":[)" + resident + "]}";
}

std::string mass(std::int64_t position, const std::string& values) {
  return R"({"event":"mass")" + of + R"(,"position":)" + std::to_string(position) + R"(,"mass":[)" + values +
         "]}";
}

view::trace read(const std::vector<std::string>& lines, bool whole = true) {
  std::string text;
  for (std::size_t i = 0; i < lines.size(); ++i)
    text += lines[i] + (whole || i + 1 < lines.size() ? "\n" : "");
  std::istringstream in(text);
  return view::read_trace(in);
}

std::vector<std::pair<std::int64_t, std::int64_t>> runs(const view::span& s) {
  std::vector<std::pair<std::int64_t, std::int64_t>> out;
  for (const auto& r : s.resident) out.emplace_back(r.first, r.end);
  return out;
}

using pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;

}  // namespace

TEST_CASE("a set serves until the next one, with the chunks that are completed meanwhile", "[trace_view]") {
  const auto t = read({head, chosen(39, 5), in_force(40, "0,2,3"), chosen(55, 7), in_force(56, "0,6"),
                       R"({"event":"token")" + of + R"(,"position":70,"text":"x"})"});
  REQUIRE(t.sequences.size() == 1);
  const auto line = view::make_timeline(t.sequences[0], t.tokens_per_chunk);
  REQUIRE(line.spans.size() == 2);
  CHECK(line.spans[0].first == 40);
  CHECK(line.spans[0].end == 56);
  CHECK(runs(line.spans[0]) == pairs{{0, 1}, {2, 7}});
  CHECK(line.spans[1].end == 71);
  CHECK(runs(line.spans[1]) == pairs{{0, 1}, {6, 9}});
  CHECK(line.spans[1].text == "x");
  CHECK(line.chunks == 9);
  CHECK(line.mean_resident() == Approx((16 * 6.0 / 7 + 15 * 4.0 / 9) / 31));
}

TEST_CASE("attention is the mean of the queries that a set served; after a rollback the newest has it",
          "[trace_view]") {
  const auto t = read({head, chosen(39, 5), in_force(40, "0,1"), mass(40, "0.5,0.1"), mass(41, "0.1,0.3,0.5"),
                       mass(99, "1"), chosen(39, 5), in_force(40, "0,3"), mass(40, "0.25,null")});
  const auto line = view::make_timeline(t.sequences[0], t.tokens_per_chunk);
  REQUIRE(line.spans.size() == 2);
  CHECK(line.spans[0].measured == 0);
  CHECK(line.spans[1].measured == 4);
  CHECK(line.spans[1].mass[0] == Approx((0.5 + 0.1 + 1 + 0.25) / 4));
  CHECK(line.spans[1].mass[1] == Approx(0.1));
}

TEST_CASE("what was given up is counted and shows no set; sequences in one place are told apart",
          "[trace_view]") {
  const auto t =
      read({head, chosen(39, 5), R"({"event":"given_up")" + of + R"(,"position":39})", chosen(40, 5),
            in_force(41, "0"), R"({"event":"name","sequence":0,"generation":2,"text":"the next"})",
            R"({"event":"of a later version","sequence":0,"generation":2})"});
  REQUIRE(t.sequences.size() == 2);
  CHECK(t.sequences[0].given_up == 1);
  CHECK(t.sequences[0].refreshes.size() == 1);
  CHECK(t.sequences[1].name == "the next");
  CHECK(view::make_timeline(t.sequences[1], 8).spans.empty());
}

TEST_CASE("a last line that is cut is left out, any other is refused by its number and field",
          "[trace_view]") {
  CHECK(read({head, chosen(39, 5), in_force(40, "0"), R"({"event":"chos)"}, false).cut);
  const auto refused = [](const std::vector<std::string>& lines, const std::string& says) {
    CAPTURE(says);
    CHECK_THROWS_WITH(read(lines), Catch::Contains(says));
  };
  refused({}, "is empty");
  refused({"no"}, "line 1: is no JSON object");
  refused({R"({"a":1})"}, "line 1: flashmemory_trace: is missing");
  refused({R"({"flashmemory_trace":2,"title":"t","tokens_per_chunk":8,"layers":2})"}, "2 is not in 1 to 1");
  refused({head, "[1]"}, "line 2: is no JSON object");
  refused({head, in_force(40, "0")}, "line 2: event: nothing was chosen before");
  refused({head, chosen(39, 5), in_force(40, "2,1")}, "line 3: resident: is not ascending");
  refused({head, chosen(39, 5), in_force(40, "4194304")}, "line 3: resident: 4194304 is not in");
  refused({head, chosen(39, 5, R"(,"scores":[1,2])")}, "has 2 numbers for 5 chunks");
  refused({head, chosen(-1, 5)}, "position: -1 is not in");
  refused({head, mass(1, R"("x")")}, "mass: holds something that is no number");
  refused({head, R"({"event":"chunk","sequence":4294967296,"generation":0,"chunk":1,"text":""})"},
          "sequence");
}

TEST_CASE("a small trace does not make a large picture or timeline", "[trace_view]") {
  const auto t = read({head, chosen(39, 5), in_force((std::int64_t{1} << 40), "0,4194303"),
                       R"({"event":"token")" + of + R"(,"position":1099511627776,"text":"x"})"});
  const auto line = view::make_timeline(t.sequences[0], t.tokens_per_chunk);
  CHECK(line.chunks == view::most_chunks);
  CHECK(view::picture(t, t.sequences[0], line).size() < 8000);
}

TEST_CASE("random traces are drawn with as many cells as there are looks", "[trace_view]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::vector<std::string> lines = {head};
  std::int64_t tokens = 100;
  for (int i = 0; i < 20; ++i, tokens += 16) {
    lines.push_back(chosen(tokens - 1, tokens / 8));
    std::string ids, values;
    for (std::int64_t c = 0; c <= tokens / 8; ++c) {
      if (random() % 3 == 0) ids += (ids.empty() ? "" : ",") + std::to_string(c);
      values += (values.empty() ? "" : ",") + std::to_string(double(random() % 1000) / 1000);
    }
    lines.push_back(in_force(tokens, ids));
    lines.push_back(mass(tokens, values));
  }
  const auto t = read(lines);
  const auto line = view::make_timeline(t.sequences[0], t.tokens_per_chunk);
  REQUIRE(line.spans.size() == 20);
  const std::string drawn = view::picture(t, t.sequences[0], line);
  std::int64_t cells = 0, rects = 0;
  for (const auto& s : line.spans) cells += s.resident_chunks();
  for (std::size_t at = 0; (at = drawn.find("<rect x", at)) != std::string::npos; ++at) ++rects;
  CHECK(rects > cells / 2);
  CHECK(rects <= cells + 7);  // the frame, and the legend's six
  CHECK(drawn.find("nan") == std::string::npos);
}

#ifdef FLASHMEMORY_TRACE_VIEW
TEST_CASE("the program writes a page that holds the texts, and nothing where it cannot", "[trace_view]") {
  const flashmemory_test::temporary_folder folder;
  const auto put = [&](const std::string& name, const std::vector<std::string>& lines) {
    std::ofstream out(folder.file(name));
    for (const auto& line : lines) out << line << '\n';
    return folder.file(name);
  };
  const auto run = [&](const std::string& arguments) {
    const int ended = std::system(
        (std::string(FLASHMEMORY_TRACE_VIEW) + " " + arguments + " 2>" + folder.file("err")).c_str());
    return WIFEXITED(ended) ? WEXITSTATUS(ended) : 1000;
  };
  const auto text = [&](const std::string& name) {
    std::ifstream in(folder.file(name));
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string good =
      put("good", {head, chosen(39, 5), in_force(40, "0,2"),
                   R"({"event":"chunk")" + of + R"(,"chunk":2,"text":"</script><b>bold"})"});
  REQUIRE(run(good + " --html " + folder.file("page.html") + " --svg " + folder.file("p.svg")) == 0);
  const std::string page = text("page.html");
  CHECK_THAT(page, Catch::Contains("\\u003c/script>\\u003cb>bold") && Catch::Contains("</html>"));
  CHECK(page.find("</script><b>") == std::string::npos);
  CHECK(page.find("http") == std::string::npos);  // needs nothing from anywhere
  CHECK_THAT(text("p.svg"), Catch::StartsWith("<svg") && Catch::EndsWith("</svg>\n"));

  const auto fails = [&](const std::string& arguments, const std::string& says) {
    CHECK(run(arguments) == 2);
    CHECK_THAT(text("err"), Catch::Contains(says));
    CHECK(!std::ifstream(folder.file("none")));
  };
  const std::string to = " --html " + folder.file("none");
  fails(good, "nothing to do");
  fails(folder.file("absent") + to, "absent: cannot be opened");
  fails(folder.path() + to, "is a folder");
  fails(put("empty", {}) + to, "empty: is empty");
  fails(put("other", {"hello"}) + to, "other: line 1: is no JSON object");
  fails(put("nothing", {head}) + to, "has no refresh that came into force");
  fails(good + to + " --sequence 1", "has 1 sequences");
  fails(good + " --html " + folder.file("no/such"), "no/such");
  fails(good + " --html " + folder.file("same") + " --svg " + folder.file("same"), "the same file");
}
#endif
