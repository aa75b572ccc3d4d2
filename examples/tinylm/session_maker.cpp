// SPDX-License-Identifier: MIT
#include "session_maker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace tinylm {
namespace {

constexpr double least_questions = 0.3, most_questions = 0.6;  // of a session; the rest is prose with needles
constexpr double least_needles = 0.1, most_needles = 0.6;      // of the prose with needles
constexpr std::size_t needle_tokens = 18;                      // about
constexpr double gap_share = 0.6;                              // of the questions come after some prose

std::size_t scaled(std::size_t count, double share) {
  return static_cast<std::size_t>(static_cast<double>(count) * share);
}

}  // namespace

session_maker::session_maker(const haystack& text, const session_options& options, std::uint64_t seed)
    : text_(text), options_(options), seed_(seed) {
  const bool shares =
      options.multivalue >= 0 && options.context_free >= 0 && options.multivalue + options.context_free <= 1;
  const bool asks = !options.asks.empty() && *std::min_element(options.asks.begin(), options.asks.end()) > 0;
  if (!shares || !asks)
    throw std::invalid_argument("a session needs numbers of keys above 0, and shares of 1 together at most");
}

/// One session on its way.
class session_maker::builder {
 public:
  builder(const haystack& text, const session_options& options, draw& random, std::size_t length)
      : text_(text), options_(options), random_(random), length_(length) {}

  session make() {
    const double questions = least_questions + (most_questions - least_questions) * random_.uniform();
    const std::size_t body = scaled(length_, 1 - questions);
    const double density = least_needles * std::pow(most_needles / least_needles, random_.uniform());
    const std::size_t plain = std::max<std::size_t>(8, scaled(body, density) / needle_tokens);
    const std::size_t shared = options_.multivalue > 0 ? std::max<std::size_t>(1, plain / 12) : 0;
    std::vector<std::size_t> numbers(shared);  // of each key that has several
    std::size_t more = 0;
    for (std::size_t& n : numbers) more += n = 2 + random_.below(3);

    const std::size_t planted = plain + more;
    const std::size_t prose = body > planted * needle_tokens + 64 ? body - planted * needle_tokens : 64;
    where_ = text_.choose_passage(random_, prose + length_ - body);
    auto all = text_.choose_statements(random_, planted + length_ / 256, where_);
    fresh_.assign(all.begin() + static_cast<std::ptrdiff_t>(planted), all.end());
    all.resize(planted);
    std::size_t next = plain;
    for (const std::size_t n : numbers) {
      for (std::size_t i = 1; i < n; ++i) all[next + i].key = all[next].key;
      next += n;
    }
    plant(all, prose);
    sort_out(all, numbers, plain);
    while (made_.ids.size() < length_) ask();
    cut();
    return std::move(made_);
  }

 private:
  /// Statements go to random sentence ends; those of one key keep to the order in which they are asked for.
  void plant(std::vector<statement>& all, std::size_t prose) {
    at_ = where_.begin + prose;
    const auto ends = text_.places(where_.begin, at_);
    const auto order = random_.sample(all.size(), all.size());
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < all.size(); ++i)
      places.push_back(ends.empty() ? where_.begin : ends[random_.below(ends.size())]);
    std::sort(places.begin(), places.end());
    std::vector<statement> shuffled;
    for (const std::size_t i : order) shuffled.push_back(all[i]);
    made_.ids.push_back(text_.words().bos());
    splice(text_, {where_.begin, at_}, places, shuffled, made_.ids);
    for (std::size_t i = 0; i < order.size(); ++i) all[order[i]].position = shuffled[i].position;
  }

  void sort_out(const std::vector<statement>& all, const std::vector<std::size_t>& numbers,
                std::size_t plain) {
    for (const std::size_t i : random_.sample(plain, plain)) plain_.push_back(all[i]);
    auto from = all.begin() + static_cast<std::ptrdiff_t>(plain);
    for (const std::size_t n : numbers) {
      const auto end = from + static_cast<std::ptrdiff_t>(n);
      shared_.emplace_back(from, end);
      std::sort(shared_.back().begin(), shared_.back().end(),
                [](const statement& a, const statement& b) { return a.position < b.position; });
      from = end;
    }
  }

  /// Some prose perhaps, and a question with its answer; prose to the end once all needles were asked about.
  void ask() {
    if (plain_.empty()) return prose(length_ - made_.ids.size());
    if (random_.uniform() < gap_share) prose(16 + random_.below(185));
    const double kind = random_.uniform();
    if (kind < options_.context_free && !fresh_.empty()) {
      statement s = take(fresh_, 1).front();
      s.position = made_.ids.size();
      append(text_.words().encode(s.sentence()));
      return question({s}, false);
    }
    if (kind < options_.context_free + options_.multivalue && !shared_.empty()) {
      const auto asked = std::move(shared_.back());
      shared_.pop_back();
      return question(asked, true);
    }
    const auto count = static_cast<std::size_t>(random_.one_of(options_.asks));
    question(take(plain_, std::min(count, plain_.size())), false);
  }

  void question(const std::vector<statement>& asked, bool all_of_one) {
    std::vector<std::string> keys;
    for (const statement& s : asked)
      if (keys.empty() || !all_of_one) keys.push_back(s.key);
    append(text_.words().encode(question_text(keys, all_of_one)));
    session::answer answer;
    answer.begin = tokens() - 1;
    const auto items = answer_items(asked, all_of_one);
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::int64_t begin = tokens() - 1;
      append(text_.words().encode(items[i]));
      const auto statement_begin = static_cast<std::int64_t>(asked[i].position);
      const auto sentence = static_cast<std::int64_t>(text_.words().encode(asked[i].sentence()).size());
      made_.need.push_back({begin, tokens() - 1, statement_begin, statement_begin + sentence});
    }
    answer.end = tokens();
    made_.answers.push_back(answer);
  }

  void prose(std::size_t tokens) {
    for (; tokens > 0 && at_ < where_.end; --tokens) made_.ids.push_back(text_.text()[at_++]);
    // Gaps are shorter than what they lie in, so this is the end of a session without needles left.
    for (at_ = at_ < where_.end ? at_ : where_.begin; tokens > 0; --tokens)
      made_.ids.push_back(text_.text()[at_++]);
  }

  void cut() {
    const auto length = static_cast<std::int64_t>(length_);
    made_.ids.resize(length_);
    const auto after = [&](std::int64_t begin) { return begin >= length - 1; };
    made_.need.erase(std::remove_if(made_.need.begin(), made_.need.end(),
                                    [&](const evidence& e) { return after(e.answer_begin); }),
                     made_.need.end());
    made_.answers.erase(std::remove_if(made_.answers.begin(), made_.answers.end(),
                                       [&](const session::answer& a) { return after(a.begin); }),
                        made_.answers.end());
    for (evidence& e : made_.need) e.answer_end = std::min(e.answer_end, length);
    for (session::answer& a : made_.answers) a.end = std::min(a.end, length);
  }

  static std::vector<statement> take(std::vector<statement>& from, std::size_t count) {
    std::vector<statement> taken(from.end() - static_cast<std::ptrdiff_t>(count), from.end());
    from.resize(from.size() - count);
    return taken;
  }

  void append(const std::vector<token_id>& ids) { made_.ids.insert(made_.ids.end(), ids.begin(), ids.end()); }
  std::int64_t tokens() const { return static_cast<std::int64_t>(made_.ids.size()); }

  const haystack& text_;
  const session_options& options_;
  draw& random_;
  std::size_t length_;
  haystack::passage where_{};
  std::size_t at_ = 0;  // where prose goes on
  std::vector<statement> plain_, fresh_;
  std::vector<std::vector<statement>> shared_;
  session made_;
};

session session_maker::make(std::int64_t length, std::int64_t index) const {
  if (length < 1024) throw std::runtime_error(fmt::format("{}: too short for a session", length));
  constexpr std::uint32_t sessions = 0x73657373;  // apart from tasks of the same seed
  const auto wide = [](std::int64_t v) { return static_cast<std::uint64_t>(v); };
  draw random({low_half(seed_), high_half(seed_), sessions, low_half(wide(length)), high_half(wide(length)),
               low_half(wide(index)), high_half(wide(index))});
  return builder(text_, options_, random, static_cast<std::size_t>(length)).make();
}

}  // namespace tinylm
