// SPDX-License-Identifier: MIT
#include <cctype>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "tasks.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace tinylm;

namespace {

const std::string data = TINYLM_DATA;

const tokenizer& words() {
  static const tokenizer shared(data + "/tokenizer.json");
  return shared;
}

task_maker maker_for(std::uint64_t seed) { return {words(), data + "/prose.txt", data + "/words.txt", seed}; }

const task_maker& any_maker() {
  static const std::uint64_t seed = flashmemory_test::fresh_seed();
  static const task_maker shared = maker_for(seed);
  UNSCOPED_INFO("seed of the maker " << seed);
  return shared;
}

std::vector<token_id> prompt_ids(const made_task& task) {
  std::vector<token_id> ids{words().bos()};
  const auto text = words().encode(task.record.prompt);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

std::string part(const std::vector<token_id>& ids, std::int64_t begin, std::int64_t end) {
  REQUIRE(begin >= 0);
  REQUIRE(begin < end);
  REQUIRE(end <= static_cast<std::int64_t>(ids.size()));
  return words().decode(std::span<const token_id>(ids.data() + begin, ids.data() + end));
}

std::size_t count_of(const std::string& text, const std::string& what) {
  std::size_t count = 0;
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

const std::string statement_begin = " The special magic number for ";

/// What the prompt states: number -> key.
std::map<std::string, std::string> stated(const std::string& prompt) {
  std::map<std::string, std::string> all;
  for (auto at = prompt.find(statement_begin); at != std::string::npos;
       at = prompt.find(statement_begin, at + 1)) {
    const auto key = at + statement_begin.size();
    const auto is = prompt.find(" is ", key);
    REQUIRE(is != std::string::npos);
    REQUIRE(prompt.substr(is + 11, 1) == ".");
    REQUIRE(all.emplace(prompt.substr(is + 4, 7), prompt.substr(key, is - key)).second);
  }
  return all;
}

struct expected {
  std::size_t statements;
  std::size_t keys;
  std::size_t answers;
};

expected expected_of(task_kind kind, std::int64_t prompt_tokens) {
  const auto many = static_cast<std::size_t>(std::max<std::int64_t>(8, prompt_tokens / 256));
  const std::size_t some = std::max<std::size_t>(4, many / 2);
  switch (kind) {
    case task_kind::niah_single:
      return {1, 1, 1};
    case task_kind::niah_multiquery:
      return {some, some, 4};
    case task_kind::niah_multivalue:
      return {some + 4, some + 1, 4};
    case task_kind::list16:
      return {std::max<std::size_t>(16, many), std::max<std::size_t>(16, many), 16};
    default:
      return {many, many, 1};
  }
}

void check_sound(const made_task& task, task_kind kind) {
  CAPTURE(task.record.id, task.record.prompt_tokens);
  const auto ids = prompt_ids(task);
  const std::string& prompt = task.record.prompt;
  REQUIRE(static_cast<std::int64_t>(ids.size()) == task.record.prompt_tokens);
  REQUIRE(task.record.task == to_string(kind));

  const auto numbers = stated(prompt);
  const expected wanted = expected_of(kind, task.record.prompt_tokens);
  std::set<std::string> keys;
  for (const auto& [number, key] : numbers) keys.insert(key);
  REQUIRE(numbers.size() == wanted.statements);
  REQUIRE(keys.size() == wanted.keys);
  REQUIRE(task.record.answers.size() == wanted.answers);
  REQUIRE(task.record.need.size() == wanted.answers);

  const auto gold = words().encode(task.gold);
  REQUIRE(static_cast<std::int64_t>(gold.size()) <= task.record.max_new_tokens);
  const auto question_at = prompt.rfind("\nQuestion: ");
  REQUIRE(question_at != std::string::npos);
  const std::string question = prompt.substr(question_at);
  REQUIRE(question.substr(question.size() - 9) == "?\nAnswer:");

  std::string gold_wanted;
  std::int64_t answered = 0;
  for (std::size_t i = 0; i < wanted.answers; ++i) {
    const std::string& answer = task.record.answers[i];
    const evidence& e = task.record.need[i];
    CAPTURE(i, answer);
    REQUIRE(answer.size() == 7);
    REQUIRE(count_of(prompt, answer) == 1);
    const std::string key = numbers.at(answer);
    REQUIRE(count_of(question, " " + key) == 1);
    REQUIRE(part(ids, e.prompt_begin, e.prompt_end) == statement_begin + key + " is " + answer + ".");
    REQUIRE(e.answer_begin == answered);
    REQUIRE(count_of(part(gold, e.answer_begin, e.answer_end), answer) == 1);
    answered = e.answer_end;
    const bool goes_on = kind == task_kind::niah_multivalue && i > 0;
    if (i > 0) gold_wanted += ",";
    gold_wanted += goes_on ? " " + answer : " " + key + " is " + answer;
    if (goes_on) REQUIRE(e.prompt_begin > task.record.need[i - 1].prompt_begin);
  }
  REQUIRE(task.gold == gold_wanted + ".\n");
}

class temporary_file {
 public:
  explicit temporary_file(const std::string& content) { std::ofstream(path(), std::ios::binary) << content; }
  std::string path() const { return folder_.file("text"); }

 private:
  flashmemory_test::temporary_folder folder_;
};

/// Not quite periodic: a period may have no two sentence ends that are as far apart as a task wants.
std::string many_sentences(int count, const std::string& sentence) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += sentence;
    for (int j = 0; j < i % 7; ++j) text += " well";
  }
  return text;
}

using Catch::Matchers::Contains;

}  // namespace

TEST_CASE("a task asks for numbers that its prompt states once, where need says") {
  for (const task_kind kind : all_task_kinds()) {
    for (const std::int64_t length : {1024, 4096, 16384}) {
      for (const std::int64_t index : {0, 1, 2}) {
        const made_task task = any_maker().make(kind, length, index);
        CHECK(task.record.prompt_tokens == length - 256);
        CHECK(task.record.length == length);
        check_sound(task, kind);
      }
    }
  }
}

TEST_CASE("odd lengths are below the length and no multiples of 64, and every kind stays sound") {
  for (const task_kind kind : all_task_kinds()) {
    std::set<std::int64_t> seen;
    for (std::int64_t index = 0; index < 8; ++index) {
      const made_task task = any_maker().make(kind, 4096, index, true);
      CHECK(task.record.prompt_tokens % 64 != 0);
      CHECK(task.record.prompt_tokens < 3840);
      CHECK(task.record.prompt_tokens > 2880);
      CHECK(task.record.length == 4096);
      check_sound(task, kind);
      seen.insert(task.record.prompt_tokens);
    }
    CHECK(seen.size() > 1);
  }
}

TEST_CASE("a context-free task needs nothing before the last sentence, and holds other needles") {
  for (std::int64_t index = 0; index < 4; ++index) {
    const made_task task = any_maker().make(task_kind::context_free, 4096, index);
    const std::string& prompt = task.record.prompt;
    const auto last = prompt.rfind(statement_begin);
    CHECK(prompt.find('\n', last) == prompt.rfind("\nQuestion"));
    CHECK(prompt.substr(last, prompt.rfind("\nQuestion") - last).find(task.record.answers[0]) !=
          std::string::npos);
    CHECK(task.record.prompt_tokens - task.record.need[0].prompt_begin < 64);
    CHECK(stated(prompt).size() == 15);
  }
}

TEST_CASE("the same seed makes the same bytes, whatever was made before") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const task_maker one = maker_for(seed), two = maker_for(seed);
  for (const task_kind kind : all_task_kinds()) one.make(kind, 2048, 7, true);
  for (const bool odd : {false, true}) {
    for (const task_kind kind : all_task_kinds()) {
      CHECK(to_json_line(one.make(kind, 2048, 0, odd)) == to_json_line(two.make(kind, 2048, 0, odd)));
    }
  }
}

TEST_CASE("tasks over two parts of the text have no line in common") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const task_maker first(words(), data + "/prose.txt", data + "/words.txt", seed, text_part_from("0:0.6"));
  const task_maker second(words(), data + "/prose.txt", data + "/words.txt", seed, text_part_from("0.6:1"));
  std::ifstream file(data + "/prose.txt");
  std::stringstream text;
  text << file.rdbuf();
  const std::string prose = text.str();
  for (std::int64_t i = 0; i < 8; ++i) {
    for (const auto* maker : {&first, &second}) {
      const std::string prompt = maker->make(task_kind::niah_single, 2048, i).record.prompt;
      // The text before the needle and the text behind it, some words of each.
      const auto needle = prompt.find(statement_begin);
      for (const std::size_t at : {std::size_t{0}, needle / 2}) {
        if (needle < 200) continue;
        const std::string words_of_it = prompt.substr(at, 90);
        const auto found = prose.find(words_of_it);
        REQUIRE(found != std::string::npos);
        if (prose.find(words_of_it, found + 1) != std::string::npos) continue;
        // Fractions count tokens, not bytes: close to the border is left out.
        const double where = static_cast<double>(found) / static_cast<double>(prose.size());
        if (maker == &first)
          CHECK(where < 0.65);
        else
          CHECK(where > 0.55);
      }
    }
  }
  for (const char* bad :
       {"", "0", "0:", ":1", "0.5:0.5", "0.6:0.4", "-0.1:1", "0:1.1", "a:b", "0:1x", "nan:1"})
    CHECK_THROWS_AS(text_part_from(bad), std::invalid_argument);
  CHECK(text_part_from("0.25:0.75").begin == 0.25);
}

TEST_CASE("another seed, index or length makes another prompt") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const task_maker one = maker_for(seed), two = maker_for(seed + 1),
                   far = maker_for(seed + (std::uint64_t{1} << 32));
  for (const task_kind kind : all_task_kinds()) {
    const std::string prompt = one.make(kind, 2048, 0).record.prompt;
    CHECK(prompt != two.make(kind, 2048, 0).record.prompt);
    CHECK(prompt != far.make(kind, 2048, 0).record.prompt);
    CHECK(prompt != one.make(kind, 2048, 1).record.prompt);
    CHECK(prompt != one.make(kind, 2112, 0).record.prompt);
  }
}

TEST_CASE("a seed's tasks are those of every platform and version") {
  const made_task task = maker_for(1).make(task_kind::niah_single, 1024, 0);
  CHECK(task.gold == " plain-sparrow is 1780291.\n");
  CHECK(task.record.need[0].prompt_begin == 450);
}

TEST_CASE("a written line reads back as the task") {
  const made_task task = any_maker().make(task_kind::niah_multiquery, 2048, 3);
  const std::string line = to_json_line(task);
  const temporary_file file(line + "\n");
  const auto read = read_tasks(file.path());
  REQUIRE(read.size() == 1);
  CHECK(read[0].id == "niah_multiquery_2k_3");
  CHECK(read[0].task == task.record.task);
  CHECK(read[0].length == 2048);
  CHECK(read[0].prompt_tokens == 1792);
  CHECK(read[0].max_new_tokens == 60);
  CHECK(read[0].answers == task.record.answers);
  CHECK(read[0].prompt == task.record.prompt);
  const auto json = nlohmann::json::parse(line);
  CHECK(json.at("gold") == task.gold);
  REQUIRE(json.at("need").size() == 4);
  CHECK(json.at("need")[1] ==
        nlohmann::json({task.record.need[1].answer_begin, task.record.need[1].answer_end,
                        task.record.need[1].prompt_begin, task.record.need[1].prompt_end}));
}

TEST_CASE("names of kinds go both ways and others are refused") {
  for (const task_kind kind : all_task_kinds()) CHECK(task_kind_from(to_string(kind)) == kind);
  CHECK_THROWS_AS(task_kind_from("niah"), std::invalid_argument);
  CHECK_THROWS_AS(task_kind_from(""), std::invalid_argument);
}

TEST_CASE("a length that has no room is refused by name") {
  const task_maker& maker = any_maker();
  for (const std::int64_t length :
       {std::int64_t{-1}, std::int64_t{0}, std::int64_t{256}, std::int64_t{511}}) {
    CAPTURE(length);
    CHECK_THROWS_WITH(maker.make(task_kind::niah_single, length, 0), Contains("too short"));
  }
  CHECK_NOTHROW(maker.make(task_kind::niah_single, 512, 0));
  CHECK_THROWS_WITH(maker.make(task_kind::list16, 512, 0), Contains("too short for list16"));
  CHECK_THROWS_WITH(maker.make(task_kind::niah_single, 1 << 24, 0), Contains("prose.txt: no passage"));
}

TEST_CASE("tasks can be made over any text of sentences") {
  SECTION("quotes, digits, newlines, double spaces and characters of several bytes") {
    const temporary_file text(many_sentences(300,
                                             "\"No!\" said she, twice.  Chapter 12 (of 40).\nVoil\xc3\xa0 "
                                             "1234567 caf\xc3\xa9s. 3 more? \"Yes.\" And so on;\r\n"));
    const task_maker maker(words(), text.path(), data + "/words.txt", 5);
    for (const task_kind kind : all_task_kinds()) {
      check_sound(maker.make(kind, 2048, 0), kind);
      const made_task odd = maker.make(kind, 2048, 1, true);
      check_sound(odd, kind);
      CHECK(nlohmann::json::parse(to_json_line(odd)).at("prompt") == odd.record.prompt);
    }
  }
  SECTION("a text whose only sentence ends early is cut at a word") {
    const temporary_file text("So it began. And then" + many_sentences(2000, " it went on"));
    const task_maker maker(words(), text.path(), data + "/words.txt", 5);
    for (const task_kind kind : all_task_kinds()) check_sound(maker.make(kind, 1024, 0), kind);
  }
  SECTION("keys that the text holds are not drawn") {
    std::vector<std::string> adjectives, nouns;
    std::ifstream list(data + "/words.txt");
    for (std::string kind, word; list >> kind >> word;) {
      auto& half = kind == "noun" ? nouns : adjectives;
      if (half.size() < 16) half.push_back(word);
    }
    std::string word_list, sentences;
    for (const auto& adjective : adjectives) word_list += "adjective " + adjective + "\n";
    for (const auto& noun : nouns) word_list += "noun " + noun + "\n";
    for (const auto& adjective : adjectives) {
      if (adjective == adjectives.back()) break;  // the sixteen keys that are left
      for (const auto& noun : nouns) sentences += " The " + adjective + "-" + noun + " sleeps.";
    }
    const temporary_file text("Once. " + many_sentences(20, sentences)), half_words(word_list);
    const task_maker maker(words(), text.path(), half_words.path(), 5);
    const made_task task = maker.make(task_kind::list16, 4096, 0);
    check_sound(task, task_kind::list16);
    for (const auto& [number, key] : stated(task.record.prompt)) {
      CHECK(key.rfind(adjectives.back() + "-", 0) == 0);
    }
    CHECK_THROWS_WITH(maker.make(task_kind::niah_multikey, 8192, 0), Contains("no 31 keys are left"));
  }
}

TEST_CASE("files that do not fit are refused by name") {
  const std::string list = data + "/words.txt", prose = data + "/prose.txt";
  const auto make = [](const std::string& text, const std::string& word_list) {
    return task_maker(words(), text, word_list, 1);
  };
  CHECK_THROWS_WITH(make("/no/such/text", list), Contains("/no/such/text: cannot be opened"));
  CHECK_THROWS_WITH(make(prose, "/no/such/list"), Contains("/no/such/list: cannot be opened"));
  const temporary_file empty(""), no_sentences("word word word"), bad_kind("verb run\n"),
      bad_word("adjective supercalifragilistic\n");
  CHECK_THROWS_WITH(make(empty.path(), list), Contains(empty.path() + ": holds no sentences"));
  CHECK_THROWS_WITH(make(no_sentences.path(), list), Contains("holds no sentences"));
  CHECK_THROWS_WITH(make(prose, empty.path()), Contains("fewer than 16"));
  CHECK_THROWS_WITH(make(prose, bad_kind.path()), Contains("verb is neither"));
  CHECK_THROWS_WITH(make(prose, bad_word.path()), Contains("more than one token"));
  const temporary_file latin1(many_sentences(500, " A caf\xe9 is here. It is so."));
  const task_maker maker = make(latin1.path(), list);
  CHECK_THROWS_WITH(to_json_line(maker.make(task_kind::niah_single, 1024, 0)), Contains("not UTF-8"));
}

TEST_CASE("the shipped text is ASCII without verse numbers, and small") {
  std::ifstream file(data + "/prose.txt", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  CHECK(text.size() > 1'000'000);
  CHECK(text.size() < 1'200'000);
  std::size_t strange = 0;
  for (const char c : text) {
    const auto b = static_cast<unsigned char>(c);
    if (b >= 128 || (b < 32 && b != '\n') || std::isdigit(b)) ++strange;
  }
  CHECK(strange == 0);
}
