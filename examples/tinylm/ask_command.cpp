// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/io/output_file.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ask_view.hpp"
#include "commands.hpp"
#include "document.hpp"
#include "engine.hpp"
#include "generate.hpp"
#include "memory.hpp"
#include "option_ranges.hpp"
#include "scoring.hpp"
#include "terminal.hpp"

namespace tinylm {

namespace fm = flashmemory;
using steady = std::chrono::steady_clock;

namespace {

/// What a context leaves for a question and its answer.
constexpr std::int64_t conversation_room = 320;

struct ask_options {
  std::string data = default_data_folder();
  document_options document;
  std::int64_t tokens = 16384;
  std::vector<std::string> questions;
  std::vector<std::string> policies{"lsa", "full"};
  double budget = 0.135;
  std::int32_t recent = -1;  ///< unless given, what the indexer was trained for
  std::int64_t max_new_tokens = 120;
  fm::dtype kv_type = fm::dtype::bf16;
  std::int32_t threads = 0;
  bool progress = false;
  std::string trace;
  bool self_test = false;
};

/// What one policy did over all questions.
struct ask_total {
  int right = 0;
  int expected = 0;
  std::vector<run_record> answers;

  double mean_bytes() const {
    double sum = 0, steps = 0;
    for (const auto& a : answers) {
      sum += a.mean_bytes() * static_cast<double>(a.footprints.size());
      steps += static_cast<double>(a.footprints.size());
    }
    return steps > 0 ? sum / steps : 0;
  }
  double mean_fraction() const {
    double sum = 0, steps = 0;
    for (const auto& a : answers) {
      sum += a.mean_fraction() * static_cast<double>(a.footprints.size());
      steps += static_cast<double>(a.footprints.size());
    }
    return steps > 0 ? sum / steps : 0;
  }
  double peak_bytes() const {
    std::size_t peak = 0;
    for (const auto& a : answers) peak = std::max(peak, a.peak_bytes());
    return static_cast<double>(peak);
  }
  double tokens_per_second() const {
    double steps = 0, seconds = 0;
    for (const auto& a : answers) {
      steps += static_cast<double>(a.step_seconds.size());
      seconds += a.seconds();
    }
    return seconds > 0 ? steps / seconds : 0;
  }
};

/// One needle, another one, and several at once.
std::vector<std::string> default_questions(const document& doc) {
  const auto& n = doc.needles;
  std::vector<std::string> questions;
  if (n.empty()) return {"What is the special magic number?"};
  const auto one = [&](const needle& which) {
    return fmt::format("What is the special magic number for {}?", which.key);
  };
  questions.push_back(one(n[n.size() / 4]));
  if (n.size() > 1) questions.push_back(one(n[n.size() * 3 / 4]));
  if (n.size() > 3) {
    const std::size_t step = n.size() / 4;
    questions.push_back(fmt::format("What are the special magic numbers for {}, {}, {} and {}?",
                                    n[3 * step].key, n[0].key, n[2 * step].key, n[step].key));
  }
  return questions;
}

std::vector<const needle*> needles_asked(const document& doc, const std::string& question) {
  std::vector<const needle*> asked;
  for (const auto& n : doc.needles) {
    if (question.find(n.key) != std::string::npos) asked.push_back(&n);
  }
  return asked;
}

class asking {
 public:
  asking(const ask_options& options, const std::vector<policy_cell>& cells)
      : options_(options),
        cells_(cells),
        words_(options.data + "/tokenizer.json"),
        weights_(load_model(options.data)),
        threads_(options.threads),
        engine_(weights_, threads_),
        look_(stdout_style()) {
    if (options.tokens > weights_.config.max_positions || options.tokens < 1024) {
      throw std::runtime_error(
          fmt::format("--tokens must be from 1024 to {}", weights_.config.max_positions));
    }
    document_options d = options.document;
    d.tokens = options.tokens - conversation_room;
    if (d.text_path.empty()) d.text_path = options.data + "/prose.txt";
    d.words_path = options.data + "/words.txt";
    doc_ = make_document(words_, d);
    questions_ = options.questions.empty() ? default_questions(doc_) : options.questions;
    for (const std::string& question : questions_) {
      const auto tokens = static_cast<std::int64_t>(question_ids(question).size());
      if (tokens + options.max_new_tokens > conversation_room)
        throw std::runtime_error(fmt::format(
            "--question: {} tokens and --max-new-tokens {} are more than the {} that are left: {}", tokens,
            options.max_new_tokens, conversation_room, question));
    }
    memory_options m;
    m.kv_type = options.kv_type;
    m.max_tokens = options.tokens;
    m.indexer_path = options.data + "/indexer.safetensors";
    m.trace_path = options.trace;
    memory_ = std::make_unique<memory>(engine_, cells, m);
    if (options.self_test) prove();
    totals_.resize(cells.size());
    for (const auto& cell : cells)
      label_width_ = std::max(label_width_, static_cast<std::int32_t>(cell.label().size()));
    introduce(d.text_path);
  }

  void run() {
    const served_sequence prompt = memory_->open_prompt(options_.tokens);
    read(prompt);
    ask_view view(label_width_, stdout_is_terminal());
    for (std::size_t q = 0; q < questions_.size(); ++q) {
      view.question(q + 1, questions_.size(), questions_[q]);
      for (std::size_t c = 0; c < cells_.size(); ++c)
        answer(prompt, questions_[q], cells_[c], totals_[c], view);
    }
    memory_->close_prompt(prompt);
    conclude();
  }

 private:
  std::vector<token_id> question_ids(const std::string& question) const {
    return words_.encode("\nQuestion: " + question + "\nAnswer:");
  }

  /// What is not found before the first question would not be found after it.
  void prove() {
    fm::self_test_options o;
    o.query_heads = weights_.config.heads;
    o.sink_chunks = cells_.front().policy.sink_chunks;
    o.recent_chunks = cells_.front().policy.recent_chunks;
    const auto report = fm::self_test(memory_->store(), o);
    if (!report.passed()) throw std::runtime_error(describe(report));
    fmt::print("{}\n", describe(report));
  }

  void introduce(const std::string& path) const {
    const auto& c = weights_.config;
    const auto& g = memory_->store().geometry();
    const auto tokens = static_cast<std::int64_t>(doc_.ids.size());
    fmt::print("{}  {} layers, {} query and {} key heads x {}, K and V in {}, {} thread{}\n",
               look_.bold("tinylm ask"), c.layers, c.heads, c.kv_heads, c.head_dim,
               fm::to_string(options_.kv_type), threads_.size(), threads_.size() == 1 ? "" : "s");
    const auto name = path.substr(path.find_last_of('/') + 1);
    fmt::print(
        "document    {}, {} tokens, with {} sentences like \"The special magic number for ... is ...\"\n",
        name, tokens, doc_.needles.size());
    const auto bytes = static_cast<double>(fm::chunk_layout(g).chunk_bytes());
    fmt::print("its K, V    {} in {} chunks of {} tokens\n",
               bytes_text(bytes * static_cast<double>(g.chunks_for(tokens))), g.chunks_for(tokens),
               g.tokens_per_chunk());
    std::fflush(stdout);
  }

  void read(const served_sequence& prompt) {
    const auto start = steady::now();
    progress_line line("reading ", options_.progress);
    const auto logits = engine_.prefill(
        prompt, doc_.ids, [&](std::int64_t done, std::int64_t total) { line.update(done, total); });
    (void)logits;  // what follows is a question, not a continuation
    line.clear();
    const double seconds = std::chrono::duration<double>(steady::now() - start).count();
    fmt::print("read in     {}, {:.0f} tokens/s, with full attention\n", duration_text(seconds),
               static_cast<double>(doc_.ids.size()) / seconds);
  }

  void answer(const served_sequence& prompt, const std::string& question, const policy_cell& cell,
              ask_total& total, ask_view& view) {
    branch b = memory_->fork(prompt, cell, options_.tokens);
    runner run(engine_, words_, b);
    const auto ids = question_ids(question);
    const auto expected = needles_asked(doc_, question);
    run_record listening, record;
    run_options how;
    how.max_new_tokens = options_.max_new_tokens;
    if (b.chooser() != nullptr && memory_->trace() != nullptr) {
      how.trace = memory_->trace();
      show_document(*how.trace, b.sequence().handle, cell.label() + ": " + question);
    }
    answer_state state{&cell, &record, &expected, 0, {}};
    run.warm_start(listening, how);
    const auto logits = run.feed(ids, true, listening, how);
    how.on_step = [&](const run_record&) { view.growing(state); };
    run.generate(logits, record, how);

    std::vector<std::string> numbers;
    for (const needle* n : expected) numbers.push_back(n->number);
    const score s = score_answer(record.text, numbers);
    state.right = s.found;
    state.resident = b.resident();
    view.finished(state);
    total.right += s.found;
    total.expected += s.expected;
    total.answers.push_back(std::move(record));
  }

  void show_document(fm::selection_trace& trace, fm::sequence_handle sequence,
                     const std::string& name) const {
    trace.sequence_name(sequence, name);
    const auto tokens = static_cast<std::size_t>(memory_->store().geometry().tokens_per_chunk());
    for (std::size_t first = 0, chunk = 0; first < doc_.ids.size(); first += tokens, ++chunk)
      trace.chunk_text(
          sequence, static_cast<std::int64_t>(chunk),
          words_.decode(std::span(doc_.ids).subspan(first, std::min(tokens, doc_.ids.size() - first))));
  }

  void conclude() const {
    fmt::print("\n{}\n",
               look_.bold(fmt::format("{:<{}}  {:>9}  {:>10} {:>10}  {:>8}  {:>8}", "policy", label_width_,
                                      "answers", "fast avg", "fast peak", "of full", "tok/s")));
    double full_speed = 0;
    for (std::size_t c = 0; c < cells_.size(); ++c) {
      if (cells_[c].full()) full_speed = totals_[c].tokens_per_second();
    }
    for (std::size_t c = 0; c < cells_.size(); ++c) {
      const auto& t = totals_[c];
      const double speed = t.tokens_per_second();
      const std::string times = full_speed > 0 ? fmt::format("  {:.2f}x", speed / full_speed) : "";
      fmt::print("{:<{}}  {:>9}  {:>10} {:>10}  {:>6.1f} %  {:>8.0f}{}\n", cells_[c].label(), label_width_,
                 t.expected > 0 ? fmt::format("{} of {}", t.right, t.expected) : "-",
                 bytes_text(t.mean_bytes()), bytes_text(t.peak_bytes()), 100 * t.mean_fraction(), speed,
                 times);
    }
    fmt::print("{}\n", look_.dim("fast: bytes of the sequence in the fast tier, resident K and V, index keys "
                                 "and tables, while answering"));
  }

  const ask_options& options_;
  const std::vector<policy_cell>& cells_;
  tokenizer words_;
  model weights_;
  thread_pool threads_;
  engine engine_;
  style look_;
  document doc_;
  std::vector<std::string> questions_;
  std::unique_ptr<memory> memory_;
  std::vector<ask_total> totals_;
  std::int32_t label_width_ = 0;
};

void run_ask(const ask_options& options) {
  if (std::count(options.policies.begin(), options.policies.end(), "oracle") != 0) {
    throw std::runtime_error("ask has no recorded attention to show an oracle; eval does");
  }
  always_kept kept = kept_by(options.data + "/indexer.safetensors");
  if (options.recent >= 0) kept.recent = options.recent;
  const auto cells = make_cells(options.policies, {{options.budget}}, kept);
  if (!options.trace.empty()) fm::check_output_file(options.trace);
  asking(options, cells).run();
}

}  // namespace

void add_ask_command(CLI::App& app) {
  auto options = std::make_shared<ask_options>();
  options->document.needles = 8;
  auto* command = app.add_subcommand(
      "ask", "Read a long document once, then answer questions about it with little of it in memory");
  command->add_option("--document", options->document.text_path, "A text file; without it, the shipped prose")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--tokens", options->tokens,
                   "Context length, questions and answers included; the document is cut or "
                   "repeated to fit")
      ->check(within<std::int64_t>(1024, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--needles", options->document.needles, "Sentences with a number to plant in the document")
      ->check(within(0, 200))
      ->capture_default_str();
  command->add_option("--question", options->questions,
                      "Ask this; may be repeated. Without it, some of the planted numbers");
  command
      ->add_option("--policy", options->policies,
                   "full, lsa, lsa-threshold, recency, random, quest; compared side by side")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--kv-budget", options->budget, "Fraction of the complete chunks that may stay")
      ->check(fraction(0.001))
      ->capture_default_str();
  command
      ->add_option(
          "--recent", options->recent,
          "Newest complete chunks that always stay, paid from the budget [what the indexer was trained "
          "for, else 2]")
      ->check(within(0, 1 << 20));
  command->add_option("--max-new-tokens", options->max_new_tokens, "Longest answer")
      ->check(within(1, 250))
      ->capture_default_str();
  command->add_option("--kv-dtype", options->kv_type, "Of stored K and V")
      ->transform(CLI::CheckedTransformer(std::map<std::string, fm::dtype>{
          {"f32", fm::dtype::f32}, {"bf16", fm::dtype::bf16}, {"f16", fm::dtype::f16}}));
  command->add_option("--threads", options->threads, "Threads, 0 = all")->check(thread_count());
  command->add_option("--seed", options->document.seed, "Of the planted keys and numbers")
      ->capture_default_str();
  command->add_option("--data", options->data, "Folder of model, tokenizer and indexer")
      ->capture_default_str();
  command->add_flag("--self-test", options->self_test,
                    "Prove the store and its attention before anything else");
  command->add_option(
      "--trace", options->trace,
      "Write down what is chosen and what is looked at, as JSON lines for trace_view; slower");
  command->add_flag("--progress", options->progress, "Show progress even without a terminal");
  command->callback([options] { run_ask(*options); });
}

}  // namespace tinylm
