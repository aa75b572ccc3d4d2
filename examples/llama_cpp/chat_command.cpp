// SPDX-License-Identifier: MIT
// Questions over a long text, answered by llama.cpp by itself and through flashmemory.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "../tinylm/option_ranges.hpp"
#include "machine.hpp"
#include "program_options.hpp"
#include "text_file.hpp"

namespace llama_flashmemory {

namespace {

using steady = std::chrono::steady_clock;

struct chat_options {
  program_options shared;
  std::string document;
  std::int64_t tokens = 0;
  int needles = 4;
  unsigned seed = 1;
  std::vector<std::string> questions;
  std::string engines = "both";
  std::string session;
  std::string trace;
  int answer = 48;
};

struct question {
  std::string text, answer_start, right;  ///< `right` is empty where nobody knows
};

/// One engine over all questions.
struct side {
  std::string name;
  std::unique_ptr<runner> engine;
  double prompt_seconds = 0, step_seconds = 0;
  std::int64_t prompt_tokens = 0, steps = 0;
  int right = 0, asked = 0;
  adapter_footprint last;  ///< after the last answer
};

double seconds(steady::time_point since) {
  return std::chrono::duration<double>(steady::now() - since).count();
}

/// The document's tokens with the needles' sentences at paragraph borders, evenly far apart.
std::vector<llama_token> document_tokens(const text_model& model, const std::vector<std::string>& paragraphs,
                                         const std::vector<needle>& needles, std::int64_t room) {
  std::vector<std::vector<llama_token>> hidden;
  for (const auto& n : needles) {
    hidden.push_back(model.tokens(n.sentence() + "\n\n"));
    room -= static_cast<std::int64_t>(hidden.back().size());
  }
  std::vector<llama_token> out;
  std::size_t placed = 0;
  std::int64_t text = 0;
  for (const auto& p : paragraphs) {
    while (placed < hidden.size() && text * static_cast<std::int64_t>(hidden.size() + 1) >=
                                         static_cast<std::int64_t>(placed + 1) * room) {
      out.insert(out.end(), hidden[placed].begin(), hidden[placed].end());
      ++placed;
    }
    const auto t = model.tokens(p + "\n\n");
    if (text + static_cast<std::int64_t>(t.size()) > room) break;
    text += static_cast<std::int64_t>(t.size());
    out.insert(out.end(), t.begin(), t.end());
  }
  for (; placed < hidden.size(); ++placed)
    out.insert(out.end(), hidden[placed].begin(), hidden[placed].end());
  return out;
}

class conversation {
 public:
  explicit conversation(const chat_options& o)
      : o_(o), model_(o.shared.model), frame_(model_.prompt_frame()) {
    auto settings = o.shared.runners(model_);
    settings.branches = o.session.empty();
    settings.adapted.model_tag = o.session.empty() ? "" : model_.tag();
    settings.adapted.trace_path = o.trace;
    context_ = settings.context;
    if (o.engines != "llama.cpp") add("flashmemory, " + o.shared.policy, make_adapted(model_, settings));
    if (o.engines != "flashmemory") add("llama.cpp", make_plain(model_, settings));
  }

  void run() {
    const bool resumed = !o_.session.empty() && std::filesystem::exists(o_.session);
    std::vector<needle> needles;
    if (resumed) {
      sides_.front().engine->load(o_.session);
      fmt::print("{}: {} tokens are there again\n", o_.session, sides_.front().engine->tokens());
      going_on_ = true;
    } else {
      needles = read_document();
    }
    std::vector<question> questions;
    for (const auto& q : o_.questions) questions.push_back({q, "", ""});
    if (questions.empty() && !needles.empty()) {
      for (const auto& n : needles) questions.push_back({n.question(), n.answer_start(), n.number});
    }
    for (const auto& q : questions) ask(q);
    if (questions.empty()) from_input();
    if (!o_.session.empty()) {
      sides_.front().engine->save(o_.session);
      fmt::print("{}: {} tokens are saved\n", o_.session, sides_.front().engine->tokens());
    }
    summary();
  }

 private:
  void add(std::string name, std::unique_ptr<runner> engine) {
    side s;
    s.name = std::move(name);
    s.engine = std::move(engine);
    sides_.push_back(std::move(s));
  }

  std::vector<needle> read_document() {
    std::vector<llama_token> prompt = frame_.before;
    std::vector<needle> needles;
    if (!o_.document.empty()) {
      const std::int64_t conversation_room =
          96 + std::int64_t{o_.answer} + static_cast<std::int64_t>(frame_.after.size());
      std::int64_t room = context_ - conversation_room - static_cast<std::int64_t>(prompt.size());
      if (o_.tokens > 0) {
        if (o_.tokens > room)
          throw std::runtime_error(fmt::format(
              "--tokens: a document of {} tokens leaves no room for a question in a context of {}", o_.tokens,
              context_));
        room = o_.tokens;
      }
      if (room < 256)
        throw std::runtime_error(fmt::format("a context of {} tokens has no room for a document", context_));
      needles = make_needles(o_.needles, o_.seed);
      const auto text = document_tokens(model_, read_paragraphs(o_.document), needles, room);
      prompt.insert(prompt.end(), text.begin(), text.end());
    }
    if (prompt.empty()) return needles;
    for (auto& s : sides_) feed(s, prompt);
    for (const auto& s : sides_)
      fmt::print("{:24} read {} tokens at {:.0f} tok/s\n", s.name, prompt.size(),
                 static_cast<double>(s.prompt_tokens) / s.prompt_seconds);
    return needles;
  }

  void feed(side& s, const std::vector<llama_token>& tokens) {
    const auto start = steady::now();
    s.engine->prompt(tokens);
    s.prompt_seconds += seconds(start);
    s.prompt_tokens += static_cast<std::int64_t>(tokens.size());
  }

  std::vector<llama_token> words_of(const question& q) const {
    if (going_on_) return model_.next_turn(q.text);
    std::vector<llama_token> out =
        model_.tokens(frame_.chat ? q.text : "\n\nQuestion: " + q.text + "\nAnswer:");
    out.insert(out.end(), frame_.after.begin(), frame_.after.end());
    if (!q.answer_start.empty()) {
      const auto start = model_.tokens((frame_.chat ? "" : " ") + q.answer_start);
      out.insert(out.end(), start.begin(), start.end());
    }
    return out;
  }

  void ask(const question& q) {
    fmt::print("\n{}\n", q.text);
    const auto words = words_of(q);
    for (auto& s : sides_) {
      const bool copy = o_.session.empty() && s.engine->tokens() > 0;
      if (copy) s.engine->branch();
      if (const adapter* a = s.engine->adapted(); a != nullptr && a->trace() != nullptr)
        a->trace()->sequence_name(a->handle(s.engine->sequence()), q.text);
      feed(s, words);
      std::string said;
      const auto start = steady::now();
      for (int i = 0; i < o_.answer && s.engine->tokens() < context_; ++i) {
        const llama_token next = greedy(s.engine->logits(), model_.vocabulary());
        const bool last = model_.ends(next);
        if (!last) said += model_.text(next);
        s.engine->step(next);  // the last one too: the next question stands behind it
        ++s.steps;
        if (last || (!frame_.chat && said.find('\n') != std::string::npos)) break;
      }
      s.step_seconds += seconds(start);
      ++s.asked;
      const bool right = !q.right.empty() && said.find(q.right) != std::string::npos;
      s.right += right;
      std::replace(said.begin(), said.end(), '\n', ' ');
      fmt::print("  {:24} {}{}{}\n", s.name, q.answer_start, said,
                 q.right.empty() ? ""
                 : right         ? "  [right]"
                                 : fmt::format("  [wrong: {}]", q.right));
      std::fflush(stdout);
      s.last = s.engine->footprint();
      if (copy) s.engine->back();
    }
    if (!o_.session.empty()) going_on_ = true;
  }

  void from_input() {
    const bool asked = isatty(STDIN_FILENO) != 0;
    for (std::string line;
         (asked && (fmt::print("> "), std::fflush(stdout)), std::getline(std::cin, line));) {
      if (!line.empty()) ask({line, "", ""});
    }
  }

  void summary() const {
    fmt::print("\n");
    for (const auto& s : sides_) {
      const auto& f = s.last;
      fmt::print("{:24} {} of {} right, {:.1f} tok/s decoding, K and V resident {:.1f} of {:.1f} MiB\n",
                 s.name, s.right, s.asked,
                 s.step_seconds > 0 ? static_cast<double>(s.steps) / s.step_seconds : 0,
                 static_cast<double>(f.resident_bytes) / 1048576, static_cast<double>(f.all_bytes) / 1048576);
    }
    fmt::print("process: {:.0f} MiB resident\n", process_mebibytes("VmRSS:"));
  }

  const chat_options& o_;
  text_model model_;
  text_model::frame frame_;
  std::int64_t context_ = 0;
  std::vector<side> sides_;
  bool going_on_ = false;
};

}  // namespace

void add_chat_command(CLI::App& app) {
  auto o = std::make_shared<chat_options>();
  auto* command = app.add_subcommand("chat", "answers questions, llama.cpp and flashmemory side by side");
  add_shared_options(*command, o->shared);
  command->add_option("--document", o->document, "text file that comes before the questions");
  command->add_option("--tokens", o->tokens, "of the document; 0 = what the context has room for")
      ->check(tinylm::count())
      ->capture_default_str();
  command
      ->add_option("--needles", o->needles,
                   "numbers hidden in the document, asked for where there is no --question")
      ->check(tinylm::within(0, 24))
      ->capture_default_str();
  command->add_option("--seed", o->seed, "of the numbers")->capture_default_str();
  command->add_option("--question", o->questions,
                      "asked in turn; without one, and without numbers, lines of the input are");
  command->add_option("--engine", o->engines, "who answers")
      ->check(CLI::IsMember({"both", "flashmemory", "llama.cpp"}))
      ->capture_default_str();
  command->add_option(
      "--session", o->session,
      "file: the conversation goes on where it stopped, and is saved; flashmemory's side alone");
  command->add_option("--trace", o->trace,
                      "file: what is chosen and looked at, as JSON lines for trace_view; decodes slower");
  command->add_option("--answer", o->answer, "tokens of an answer, at most")
      ->check(tinylm::within(1, 1 << 20))
      ->capture_default_str();
  command->callback([o] {
    if (!o->session.empty()) o->engines = "flashmemory";
    if (!o->trace.empty() && o->engines == "llama.cpp")
      throw std::runtime_error("--trace: with --engine llama.cpp there is nothing to trace");
    conversation(*o).run();
  });
}

}  // namespace llama_flashmemory
