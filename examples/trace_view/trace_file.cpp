// SPDX-License-Identifier: MIT
#include "trace_file.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace trace_view {
namespace {

using nlohmann::json;

/// One line, whose fields are asked for by name.
class fields {
 public:
  fields(const json& object, std::int64_t number) : object_(object), number_(number) {}

  [[noreturn]] void fail(const char* name, const std::string& what) const {
    throw bad_trace(fmt::format("line {}: {}: {}", number_, name, what));
  }

  bool has(const char* name) const { return object_.contains(name); }

  const json& at(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) fail(name, "is missing");
    return *found;
  }

  std::int64_t integer(const char* name, std::int64_t least, std::int64_t most) const {
    return integer(at(name), name, least, most);
  }

  std::int64_t integer(const json& value, const char* name, std::int64_t least, std::int64_t most) const {
    if (!value.is_number_integer()) fail(name, "is no whole number");
    const bool huge = value.is_number_unsigned() &&
                      value.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<std::int64_t>::max());
    const std::int64_t number = huge ? std::numeric_limits<std::int64_t>::max() : value.get<std::int64_t>();
    if (number < least || number > most)
      fail(name, fmt::format("{} is not in {} to {}", number, least, most));
    return number;
  }

  double number(const char* name) const {
    const json& value = at(name);
    if (!value.is_number()) fail(name, "is no number");
    return value.get<double>();
  }

  std::string text(const char* name) const {
    const json& value = at(name);
    if (!value.is_string()) fail(name, "is no text");
    return value.get<std::string>();
  }

  std::vector<std::int64_t> ids(const char* name) const {
    const json& list = at(name);
    if (!list.is_array()) fail(name, "is no list");
    std::vector<std::int64_t> out;
    out.reserve(list.size());
    for (const json& id : list) out.push_back(integer(id, name, 0, most_chunks - 1));
    return out;
  }

  std::vector<float> numbers(const char* name) const {
    const json& list = at(name);
    if (!list.is_array()) fail(name, "is no list");
    if (std::int64_t(list.size()) > most_chunks) fail(name, "has too many numbers");
    std::vector<float> out;
    out.reserve(list.size());
    for (const json& value : list) {
      if (!value.is_number() && !value.is_null()) fail(name, "holds something that is no number");
      out.push_back(value.is_null() ? std::numeric_limits<float>::quiet_NaN() : value.get<float>());
    }
    return out;
  }

 private:
  const json& object_;
  std::int64_t number_;
};

constexpr std::int64_t most_tokens = std::int64_t{1} << 40;

class reader {
 public:
  trace out;

  void head(const fields& f) {
    f.integer("flashmemory_trace", 1, 1);
    out.title = f.text("title");
    out.tokens_per_chunk = f.integer("tokens_per_chunk", 1, 1 << 20);
    out.layers = f.integer("layers", 1, 1 << 20);
  }

  void event(const fields& f) {
    const std::string kind = f.text("event");
    if (kind == "chosen") return chosen(f);
    if (kind == "in_force") return in_force(f);
    if (kind == "given_up") return given_up(f);
    if (kind == "name") {
      sequence(f).name = f.text("text");
    } else if (kind == "chunk") {
      const std::int64_t chunk = f.integer("chunk", 0, most_chunks - 1);
      sequence(f).chunk_texts[chunk] = f.text("text");
    } else if (kind == "token") {
      const std::int64_t position = f.integer("position", 0, most_tokens);
      sequence(f).token_texts.emplace_back(position, f.text("text"));
    } else if (kind == "mass") {
      const std::int64_t position = f.integer("position", 0, most_tokens);
      sequence(f).attention.push_back({position, f.numbers("mass")});
    }
  }

 private:
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> known_;

  traced_sequence& sequence(const fields& f) {
    const std::int64_t index = f.integer("sequence", 0, std::numeric_limits<std::uint32_t>::max());
    const std::int64_t generation = f.integer("generation", 0, std::numeric_limits<std::uint32_t>::max());
    const auto [at, fresh] = known_.try_emplace({index, generation}, out.sequences.size());
    if (fresh) {
      out.sequences.emplace_back();
      out.sequences.back().index = index;
      out.sequences.back().generation = generation;
    }
    return out.sequences[at->second];
  }

  void chosen(const fields& f) {
    refresh r;
    r.position = f.integer("position", 0, most_tokens);
    r.reason = f.text("reason");
    r.complete_chunks = f.integer("complete_chunks", 0, most_chunks);
    r.budget = f.integer("budget", 0, std::numeric_limits<std::int64_t>::max());
    r.wanted = f.ids("wanted");
    if (f.has("scores")) {
      r.scores = f.numbers("scores");
      if (std::int64_t(r.scores.size()) != r.complete_chunks)
        f.fail("scores", fmt::format("has {} numbers for {} chunks", r.scores.size(), r.complete_chunks));
    }
    sequence(f).refreshes.push_back(std::move(r));
  }

  /// The newest one that is under way.
  refresh& open(const fields& f, traced_sequence& s) {
    if (s.refreshes.empty() || s.refreshes.back().in_force) f.fail("event", "nothing was chosen before");
    return s.refreshes.back();
  }

  void in_force(const fields& f) {
    traced_sequence& s = sequence(f);
    refresh& r = open(f, s);
    r.staleness = f.integer("staleness", 0, most_tokens);
    r.stage = f.text("stage");
    r.recalled = f.integer("recalled", 0, most_chunks);
    r.unreadable = f.integer("unreadable", 0, most_chunks);
    r.score_us = f.number("score_us");
    r.recall_us = f.number("recall_us");
    r.tokens = f.has("tokens") ? f.integer("tokens", 0, most_tokens) : r.position + 1;
    if (f.has("resident")) r.resident = f.ids("resident");
    for (std::size_t i = 1; i < r.resident.size(); ++i)
      if (r.resident[i - 1] >= r.resident[i]) f.fail("resident", "is not ascending");
    r.in_force = true;
  }

  void given_up(const fields& f) {
    traced_sequence& s = sequence(f);
    open(f, s);
    s.refreshes.pop_back();
    ++s.given_up;
  }
};

}  // namespace

trace read_trace(std::istream& in) {
  reader read;
  std::string text;
  std::int64_t number = 0;
  while (std::getline(in, text)) {
    ++number;
    const bool whole = !in.eof();
    if (text.empty()) continue;
    const json line = json::parse(text, nullptr, false);
    if (line.is_discarded() || !line.is_object()) {
      if (!whole && number > 1) {  // whoever wrote it was stopped, or is still writing
        read.out.cut = true;
        break;
      }
      throw bad_trace(fmt::format("line {}: is no JSON object", number));
    }
    const fields f(line, number);
    if (number == 1)
      read.head(f);
    else
      read.event(f);
  }
  if (in.bad()) throw bad_trace(fmt::format("line {}: cannot be read", number + 1));
  if (number == 0) throw bad_trace("is empty");
  return std::move(read.out);
}

}  // namespace trace_view
