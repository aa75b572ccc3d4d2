// SPDX-License-Identifier: MIT
#include "tasks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
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

}  // namespace

std::span<const task_kind> all_task_kinds() noexcept { return kinds; }

std::string_view to_string(task_kind kind) noexcept { return kind_names[static_cast<std::size_t>(kind)]; }

task_kind task_kind_from(std::string_view name) {
  for (const task_kind kind : kinds) {
    if (to_string(kind) == name) return kind;
  }
  throw std::invalid_argument(fmt::format("{}: no such kind of task", name));
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
  for (const evidence& e : task.record.need) {
    json["need"].push_back({e.answer_begin, e.answer_end, e.prompt_begin, e.prompt_end});
  }
  json["prompt"] = task.record.prompt;
  try {
    return json.dump();
  } catch (const nlohmann::json::type_error&) {
    throw std::runtime_error(fmt::format("{}: the text is not UTF-8", task.record.id));
  }
}

task_maker::task_maker(const tokenizer& words, const std::string& text_path, const std::string& words_path,
                       std::uint64_t seed, const text_part& part)
    : text_(words, text_path, words_path, part), seed_(seed) {}

made_task task_maker::make(task_kind kind, std::int64_t length, std::int64_t index, bool odd) const {
  const auto wide = [](std::int64_t v) { return static_cast<std::uint64_t>(v); };
  draw random({low_half(seed_), high_half(seed_), static_cast<std::uint32_t>(kind), low_half(wide(length)),
               high_half(wide(length)), low_half(wide(index)), high_half(wide(index))});
  const tokenizer& words = text_.words();
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
  const bool all_of_one = kind == task_kind::niah_multivalue;
  const std::string any_key = text_.any_key();
  const std::size_t distinct_keys = all_of_one ? 1 : counts.asked;
  const std::size_t fixed =
      1 + counts.needles * words.encode(statement{any_key, "0000000"}.sentence()).size() +
      words.encode(question_text(std::vector<std::string>(distinct_keys, any_key), all_of_one)).size();
  if (prompt_tokens < fixed + 64) {
    throw std::runtime_error(fmt::format("{}: the length is too short for {}", length, to_string(kind)));
  }
  const haystack::passage where = text_.choose_passage(random, prompt_tokens - fixed);

  auto statements = text_.choose_statements(random, counts.needles, where);
  auto asked = random.sample(counts.needles, counts.asked);
  if (kind == task_kind::context_free) asked = {counts.needles - 1};
  std::vector<std::string> keys;
  if (all_of_one) {
    std::sort(asked.begin(), asked.end());  // answered in the order of the text
    keys = {statements[asked.front()].key};
    for (const std::size_t i : asked) statements[i].key = keys.front();
  } else {
    for (const std::size_t i : asked) keys.push_back(statements[i].key);
  }

  // At random sentence ends.
  const auto ends = text_.places(where.begin, where.end);
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < statements.size(); ++i) places.push_back(ends[random.below(ends.size())]);
  if (kind == task_kind::context_free) places.back() = where.end;
  std::sort(places.begin(), places.end());
  std::vector<token_id> ids{words.bos()};
  splice(text_, where, places, statements, ids);
  const auto question = words.encode(question_text(keys, all_of_one));
  ids.insert(ids.end(), question.begin(), question.end());
  task.record.prompt = words.decode(std::span<const token_id>(ids).subspan(1));
  const auto again = words.encode(task.record.prompt);
  if (ids.size() != prompt_tokens || !std::equal(ids.begin() + 1, ids.end(), again.begin(), again.end())) {
    throw std::logic_error(fmt::format("{}: the prompt is not cut into its tokens again", task.record.id));
  }

  std::vector<statement> items;
  for (const std::size_t a : asked) items.push_back(statements[a]);
  std::int64_t written = 0;
  for (const std::string& item : answer_items(items, all_of_one)) {
    const statement& s = items[task.record.need.size()];
    // Of a list of keys the newline at its end is no item's.
    const bool own_end = all_of_one || item.back() != '\n';
    const auto answer_tokens =
        static_cast<std::int64_t>(words.encode(own_end ? item : item.substr(0, item.size() - 1)).size());
    const auto sentence_tokens = static_cast<std::int64_t>(words.encode(s.sentence()).size());
    const auto position = static_cast<std::int64_t>(s.position);
    task.record.need.push_back({written, written + answer_tokens, position, position + sentence_tokens});
    task.record.answers.push_back(s.value);
    task.gold += item;
    written += answer_tokens;
  }
  return task;
}

}  // namespace tinylm
