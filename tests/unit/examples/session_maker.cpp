// SPDX-License-Identifier: MIT
#include "session_maker.hpp"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace tinylm;

namespace {

const std::string data = TINYLM_DATA;

const tokenizer& words() {
  static const tokenizer shared(data + "/tokenizer.json");
  return shared;
}

const haystack& text() {
  static const haystack shared(words(), data + "/prose.txt", data + "/words.txt", {0, 0.6});
  return shared;
}

std::string part(const session& s, std::int64_t begin, std::int64_t end) {
  REQUIRE(0 <= begin);
  REQUIRE(begin < end);
  REQUIRE(end <= static_cast<std::int64_t>(s.ids.size()));
  return words().decode(std::span<const token_id>(s.ids.data() + begin, s.ids.data() + end));
}

/// The key and the number of a sentence that hides one.
std::pair<std::string, std::string> stated(const std::string& sentence) {
  const std::string before = " The special magic number for ";
  REQUIRE(sentence.compare(0, before.size(), before) == 0);
  const auto is = sentence.find(" is ", before.size());
  REQUIRE(is != std::string::npos);
  REQUIRE(sentence.back() == '.');
  return {sentence.substr(before.size(), is - before.size()), sentence.substr(is + 4, 7)};
}

/// Keys that a question asks for; -1 where it asks for all numbers of one.
int keys_asked(const std::string& question) {
  if (question.find("What are all the special") != std::string::npos) return -1;
  return static_cast<int>(std::count(question.begin(), question.end(), '-'));
}

}  // namespace

TEST_CASE("a session asks about every needle once at most, and its answers are what was stated", "[tinylm]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const session_maker maker(text(), {}, seed);
  for (const std::int64_t length : {1024, 1999, 4096, 8192}) {
    CAPTURE(length);
    const session s = maker.make(length, 3);
    REQUIRE(static_cast<std::int64_t>(s.ids.size()) == length);
    REQUIRE(s.ids.front() == words().bos());
    REQUIRE((length < 1999 || !s.answers.empty()));
    if (s.answers.empty()) continue;  // prose up to the end of the shortest one
    std::set<std::string> numbers;
    for (const evidence& e : s.need) {
      const auto [key, number] = stated(part(s, e.prompt_begin, e.prompt_end));
      CHECK(numbers.insert(number).second);  // never asked again
      CHECK(e.prompt_end <= e.answer_begin + 1);
      // Rows [begin, end) compute the tokens one later.
      if (e.answer_end < length) {
        CHECK(part(s, e.answer_begin + 1, e.answer_end + 1).find(number) != std::string::npos);
      }
    }
    std::int64_t before = 0;
    for (const session::answer& a : s.answers) {
      CHECK(a.begin >= before);
      CHECK(a.end > a.begin);
      CHECK(a.end <= length);
      CHECK(part(s, std::max<std::int64_t>(1, a.begin - 3), a.begin + 1).find(":") != std::string::npos);
      before = a.end;
    }
    // From 0.3 to 0.6 of a session; needles are longer or shorter than planned for, and before the first answer
    // stand some prose and its question.
    const double share = static_cast<double>(length - s.answers.front().begin) / static_cast<double>(length);
    CHECK(share > 0.25 - 360.0 / static_cast<double>(length));
    CHECK(share < 0.75);
  }
}

TEST_CASE("a session depends on seed and index, and on nothing else", "[tinylm]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const session_maker maker(text(), {}, seed), same(text(), {}, seed), other(text(), {}, seed + 1);
  CHECK(maker.make(2048, 5).ids == same.make(2048, 5).ids);
  CHECK(maker.make(2048, 5).ids != maker.make(2048, 6).ids);
  CHECK(maker.make(2048, 5).ids != other.make(2048, 5).ids);
}

TEST_CASE("kinds of question can be left out of sessions", "[tinylm]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  session_options options;
  options.asks = {1};
  options.multivalue = 0;
  const session_maker alone(text(), options, seed);
  const session_maker all(text(), {}, seed);
  const auto count = [](const session_maker& maker) {
    std::map<int, int> questions;
    for (std::int64_t i = 0; i < 40; ++i) {
      const session s = maker.make(8192, i);
      const std::string whole = part(s, 1, static_cast<std::int64_t>(s.ids.size()));
      for (auto at = whole.find("\nQuestion: "); at != std::string::npos;
           at = whole.find("\nQuestion: ", at + 1)) {
        const auto end = whole.find("?\nAnswer:", at);
        if (end != std::string::npos) ++questions[keys_asked(whole.substr(at, end - at))];
      }
    }
    return questions;
  };
  const auto ones = count(alone);
  CHECK(ones.size() == 1);
  CHECK(ones.count(1) == 1);
  const auto mixed = count(all);
  CHECK(mixed.count(-1) == 1);
  CHECK(mixed.count(16) == 1);
  CHECK(mixed.count(2) == 1);
}

TEST_CASE("sessions that cannot be made are refused", "[tinylm]") {
  const session_maker maker(text(), {}, 1);
  CHECK_THROWS_AS(maker.make(512, 0), std::runtime_error);
  CHECK_THROWS_AS(maker.make(std::int64_t{1} << 24, 0), std::runtime_error);
  session_options options;
  options.asks.clear();
  CHECK_THROWS_AS(session_maker(text(), options, 1), std::invalid_argument);
  options.asks = {0};
  CHECK_THROWS_AS(session_maker(text(), options, 1), std::invalid_argument);
  options.asks = {1};
  options.multivalue = 0.9;
  options.context_free = 0.2;
  CHECK_THROWS_AS(session_maker(text(), options, 1), std::invalid_argument);
}
