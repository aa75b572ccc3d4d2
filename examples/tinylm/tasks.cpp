// SPDX-License-Identifier: MIT
#include "tasks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <stdexcept>

namespace tinylm {
namespace {

constexpr std::array kinds{task_kind::niah_single,     task_kind::niah_multikey, task_kind::niah_multiquery,
                           task_kind::niah_multivalue, task_kind::list16,        task_kind::context_free};
constexpr std::array<std::string_view, 6> kind_names{"niah_single",     "niah_multikey", "niah_multiquery",
                                                     "niah_multivalue", "list16",        "context_free"};

/// How many needles a prompt of that many tokens holds and how many of them are asked for.
struct plan {
  std::size_t needles;
  std::size_t asked;
  std::int64_t max_new_tokens;
};

plan plan_for(task_kind kind, std::size_t prompt_tokens) {
  const std::size_t many = std::max<std::size_t>(8, prompt_tokens / 256);
  const std::size_t some = std::max<std::size_t>(4, many / 2);
  switch (kind) {
    case task_kind::niah_single:
      return {1, 1, 60};
    case task_kind::niah_multikey:
    case task_kind::context_free:
      return {many, 1, 60};
    case task_kind::niah_multiquery:
      return {some, 4, 60};
    case task_kind::niah_multivalue:
      return {some + 4, 4, 60};
    case task_kind::list16:
      return {std::max<std::size_t>(16, many), 16, 216};
  }
  throw std::invalid_argument("not a kind of task");
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw std::runtime_error(fmt::format("{}: cannot be read", path));
  return text;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void append(std::vector<token_id>& to, const std::vector<token_id>& ids) {
  to.insert(to.end(), ids.begin(), ids.end());
}

/// "a", "a and b", "a, b and c".
std::string list_text(const std::vector<std::string>& items) {
  std::string text;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) text += i + 1 == items.size() ? " and " : ", ";
    text += items[i];
  }
  return text;
}

}  // namespace

std::span<const task_kind> all_task_kinds() noexcept { return kinds; }

std::string_view to_string(task_kind kind) noexcept { return kind_names[static_cast<std::size_t>(kind)]; }

task_kind task_kind_from(std::string_view name) {
  for (const task_kind kind : kinds) {
    if (to_string(kind) == name) return kind;
  }
  throw std::invalid_argument(fmt::format("{}: no such kind of task", name));
}

text_part text_part_from(const std::string& text) {
  text_part part;
  const auto colon = text.find(':');
  std::size_t first = 0, second = 0;
  try {
    part.begin = std::stod(text.substr(0, colon), &first);
    part.end = std::stod(text.substr(colon == std::string::npos ? text.size() : colon + 1), &second);
  } catch (const std::logic_error&) {
    second = std::string::npos;
  }
  if (first != colon || second != text.size() - colon - 1 ||
      !(part.begin >= 0 && part.begin < part.end && part.end <= 1))
    throw std::invalid_argument(fmt::format("{}: a part of a text is A:B with 0 <= A < B <= 1", text));
  return part;
}

std::string to_json_line(const made_task& task) {
  nlohmann::ordered_json json;
  json["id"] = task.record.id;
  json["task"] = task.record.task;
  json["length"] = task.record.length;
  json["prompt_tokens"] = task.record.prompt_tokens;
  json["max_new_tokens"] = task.record.max_new_tokens;
  json["answers"] = task.record.answers;
  json["gold"] = task.gold;
  json["need"] = nlohmann::ordered_json::array();
  for (const evidence& e : task.need) {
    json["need"].push_back({e.answer_begin, e.answer_end, e.prompt_begin, e.prompt_end});
  }
  json["prompt"] = task.record.prompt;
  try {
    return json.dump();
  } catch (const nlohmann::json::type_error&) {
    throw std::runtime_error(fmt::format("{}: the text is not UTF-8", task.record.id));
  }
}

/// The standard fixes what engines give, not what distributions make of it; these are the same everywhere.
class task_maker::draw {
 public:
  draw(std::uint64_t seed, task_kind kind, std::int64_t length, std::int64_t index) {
    const auto low = [](auto v) { return static_cast<std::uint32_t>(v); };
    const auto high = [](auto v) { return static_cast<std::uint32_t>(static_cast<std::uint64_t>(v) >> 32); };
    std::seed_seq mixed{low(seed), high(seed), low(kind), low(length), high(length), low(index), high(index)};
    engine_.seed(mixed);
  }

  std::size_t below(std::size_t count) { return static_cast<std::size_t>(engine_() % count); }

  template <class T>
  const T& one_of(const std::vector<T>& items) {
    return items[below(items.size())];
  }

  /// `count` different numbers below `total` in random order.
  std::vector<std::size_t> sample(std::size_t total, std::size_t count) {
    std::vector<std::size_t> all(total);
    for (std::size_t i = 0; i < total; ++i) all[i] = i;
    for (std::size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(total - i)]);
    all.resize(count);
    return all;
  }

 private:
  std::mt19937_64 engine_;
};

struct task_maker::statement {
  std::string key;
  std::string value;
  std::size_t position = 0;  ///< in the document

  std::string sentence() const { return fmt::format(" The special magic number for {} is {}.", key, value); }
};

task_maker::task_maker(const tokenizer& words, const std::string& text_path, const std::string& words_path,
                       std::uint64_t seed, const text_part& part)
    : words_(words), text_path_(text_path), seed_(seed) {
  read_words(words_path);
  text_ = words_.encode(read_file(text_path));
  const auto at = [&](double fraction) {
    return text_.begin() + static_cast<std::ptrdiff_t>(fraction * static_cast<double>(text_.size()));
  };
  text_ = std::vector<token_id>(at(part.begin), at(part.end));
  for (std::size_t i = 1; i < text_.size(); ++i) {
    if (is_sentence_end(i)) sentence_ends_.push_back(i);
  }
  if (sentence_ends_.empty()) throw std::runtime_error(fmt::format("{}: holds no sentences", text_path));
}

void task_maker::read_words(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  std::string kind, word;
  while (file >> kind >> word) {
    if (kind != "adjective" && kind != "noun") {
      throw std::runtime_error(fmt::format("{}: {} is neither adjective nor noun", path, kind));
    }
    const bool adjective = kind == "adjective";
    // A key follows a space, its noun a hyphen: what must be one token differs by the space.
    if (words_.encode(adjective ? " " + word : word).size() != 1) {
      throw std::runtime_error(fmt::format("{}: {} is more than one token of this model", path, word));
    }
    (adjective ? adjectives_ : nouns_).push_back(word);
  }
  // Enough that drawing different keys, none of them in the text, ends.
  if (adjectives_.size() < 16 || nouns_.size() < 16) {
    throw std::runtime_error(fmt::format("{}: fewer than 16 adjectives or nouns", path));
  }
}

/// Behind a full stop, and before a space: a token that begins with one begins a word of the tokenizer, so
/// text spliced in between two tokens here is cut into the same tokens again.
bool task_maker::is_sentence_end(std::size_t at) const {
  const std::string& before = words_.piece(text_[at - 1]);
  const std::string& after = words_.piece(text_[at]);
  if (after.empty() || after.front() != ' ') return false;
  const auto mark = before.find_last_not_of("\"')");
  return mark != std::string::npos && std::string_view(".!?").find(before[mark]) != std::string_view::npos;
}

/// From a sentence's start to a sentence's end if such a passage of that many tokens exists, else to a
/// word's.
task_maker::passage task_maker::choose_passage(draw& random, std::size_t tokens) const {
  const std::size_t count = sentence_ends_.size();
  const std::size_t first = random.below(count);
  for (const bool whole : {true, false}) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t begin = sentence_ends_[(first + i) % count];
      const std::size_t end = begin + tokens;
      if (end >= text_.size()) continue;
      if (whole ? is_sentence_end(end) : words_.piece(text_[end]).front() == ' ') return {begin, end};
    }
  }
  throw std::runtime_error(
      fmt::format("{}: no passage of {} tokens; the text has {}", text_path_, tokens, text_.size()));
}

/// Neither keys nor numbers occur in the text or twice.
std::vector<task_maker::statement> task_maker::choose_statements(draw& random, std::size_t count,
                                                                 const std::string& text) const {
  std::set<std::string> taken;
  const auto fresh = [&](auto&& make) {
    for (int attempt = 0; attempt < 100000; ++attempt) {
      std::string made = make();
      if (!contains(text, made) && taken.insert(made).second) return made;
    }
    throw std::runtime_error(fmt::format("{}: no {} keys are left that it does not hold", text_path_, count));
  };
  std::vector<statement> statements(count);
  for (statement& s : statements) {
    s.key = fresh([&] { return random.one_of(adjectives_) + "-" + random.one_of(nouns_); });
    s.value = fresh([&] { return fmt::format("{:07}", random.below(10'000'000)); });
  }
  return statements;
}

/// The passage with the statements, in their order, at random sentence ends.
std::vector<token_id> task_maker::splice(draw& random, passage where, std::vector<statement>& statements,
                                         bool last_at_end) const {
  const auto low = std::lower_bound(sentence_ends_.begin(), sentence_ends_.end(), where.begin);
  const auto high = std::lower_bound(low, sentence_ends_.end(), where.end);
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < statements.size(); ++i) {
    places.push_back(
        *(low + static_cast<std::ptrdiff_t>(random.below(static_cast<std::size_t>(high - low)))));
  }
  if (last_at_end) places.back() = where.end;
  std::sort(places.begin(), places.end());

  std::vector<token_id> ids{words_.bos()};
  std::size_t at = where.begin;
  for (std::size_t i = 0; i < statements.size(); ++i) {
    for (; at < places[i]; ++at) ids.push_back(text_[at]);
    statements[i].position = ids.size();
    append(ids, words_.encode(statements[i].sentence()));
  }
  for (; at < where.end; ++at) ids.push_back(text_[at]);
  return ids;
}

made_task task_maker::make(task_kind kind, std::int64_t length, std::int64_t index, bool odd) const {
  draw random(seed_, kind, length, index);
  made_task task;
  task.record.task = to_string(kind);
  task.record.id = length % 1024 == 0 ? fmt::format("{}_{}k_{}", task.record.task, length / 1024, index)
                                      : fmt::format("{}_{}_{}", task.record.task, length, index);
  task.record.length = length;

  std::int64_t wanted = length - answer_room;
  if (wanted < answer_room) throw std::runtime_error(fmt::format("{}: the length is too short", length));
  if (odd) {
    const std::int64_t most = wanted;
    do {
      wanted = most - static_cast<std::int64_t>(random.below(static_cast<std::size_t>(most / 4)));
    } while (wanted % 64 == 0);
  }
  const auto prompt_tokens = static_cast<std::size_t>(wanted);
  const plan counts = plan_for(kind, prompt_tokens);
  task.record.prompt_tokens = wanted;
  task.record.max_new_tokens = counts.max_new_tokens;

  // All keys and all numbers have as many tokens, so any will do to see how much is left for the text.
  const auto question_for = [&](const std::vector<std::string>& keys) {
    const char* form = kind == task_kind::niah_multivalue ? "What are all the special magic numbers for"
                       : keys.size() == 1                 ? "What is the special magic number for"
                                                          : "What are the special magic numbers for";
    return fmt::format("\nQuestion: {} {}?\nAnswer:", form, list_text(keys));
  };
  const std::string any_key = adjectives_.front() + "-" + nouns_.front();
  const std::size_t distinct_keys = kind == task_kind::niah_multivalue ? 1 : counts.asked;
  const std::size_t fixed =
      1 + counts.needles * words_.encode(statement{any_key, "0000000"}.sentence()).size() +
      words_.encode(question_for(std::vector<std::string>(distinct_keys, any_key))).size();
  if (prompt_tokens < fixed + 64) {
    throw std::runtime_error(fmt::format("{}: the length is too short for {}", length, to_string(kind)));
  }
  const passage where = choose_passage(random, prompt_tokens - fixed);
  const std::string text =
      words_.decode(std::span<const token_id>(text_.data() + where.begin, text_.data() + where.end));

  auto statements = choose_statements(random, counts.needles, text);
  auto asked = random.sample(counts.needles, counts.asked);
  if (kind == task_kind::context_free) asked = {counts.needles - 1};
  std::vector<std::string> keys;
  if (kind == task_kind::niah_multivalue) {
    std::sort(asked.begin(), asked.end());  // answered in the order of the text
    keys = {statements[asked.front()].key};
    for (const std::size_t i : asked) statements[i].key = keys.front();
  } else {
    for (const std::size_t i : asked) keys.push_back(statements[i].key);
  }

  auto ids = splice(random, where, statements, kind == task_kind::context_free);
  append(ids, words_.encode(question_for(keys)));
  task.record.prompt = words_.decode(std::span<const token_id>(ids).subspan(1));
  const auto again = words_.encode(task.record.prompt);
  if (ids.size() != prompt_tokens || !std::equal(ids.begin() + 1, ids.end(), again.begin(), again.end())) {
    throw std::logic_error(fmt::format("{}: the prompt is not cut into its tokens again", task.record.id));
  }

  std::int64_t written = 0;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const statement& s = statements[asked[i]];
    const bool last = i + 1 == asked.size();
    // The numbers of one key are a list of their own, and the space before a number belongs to what it
    // follows.
    const std::string item =
        kind == task_kind::niah_multivalue
            ? (i == 0 ? fmt::format(" {} is ", s.key) : "") + s.value + (last ? ".\n" : ", ")
            : fmt::format(" {} is {}{}", s.key, s.value, last ? "." : ",");
    const auto answer_tokens = static_cast<std::int64_t>(words_.encode(item).size());
    const auto sentence_tokens = static_cast<std::int64_t>(words_.encode(s.sentence()).size());
    const auto position = static_cast<std::int64_t>(s.position);
    task.need.push_back({written, written + answer_tokens, position, position + sentence_tokens});
    task.record.answers.push_back(s.value);
    task.gold += item;
    written += answer_tokens;
  }
  if (task.gold.back() != '\n') task.gold += '\n';
  return task;
}

}  // namespace tinylm
