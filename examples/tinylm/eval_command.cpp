// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/io/output_file.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "commands.hpp"
#include "engine.hpp"
#include "eval_journal.hpp"
#include "eval_report.hpp"
#include "generate.hpp"
#include "html_report.hpp"
#include "memory.hpp"
#include "option_ranges.hpp"
#include "scoring.hpp"
#include "task_file.hpp"
#include "terminal.hpp"

namespace tinylm {

namespace fm = flashmemory;
using steady = std::chrono::steady_clock;

namespace {

struct eval_options {
  std::string data = default_data_folder();
  std::string indexer;
  std::vector<std::string> tasks;
  std::vector<std::string> policies{"full", "lsa"};
  cell_limits limits;
  std::vector<std::string> only;
  std::int64_t limit = 0;
  std::string json;
  std::string html;
  fm::dtype kv_type = fm::dtype::bf16;
  std::int32_t threads = 0;
  std::int32_t interval = 0, recent = -1;  ///< unless given, what the indexer was trained for
  std::uint64_t seed = 1;
  bool progress = false;
};

std::string indexer_path(const eval_options& options) {
  return options.indexer.empty() ? options.data + "/indexer.safetensors" : options.indexer;
}

/// What stays anyway, and where a budget is too small for it.
std::string kept_text(const always_kept& kept, const std::vector<policy_cell>& cells,
                      const std::vector<std::vector<token_id>>& prompts) {
  std::string text = fmt::format("chosen every {} tokens; {} sink and {} recent chunks always kept",
                                 kept.interval, kept.sink, kept.recent);
  std::map<std::pair<std::size_t, double>, std::int32_t> fewer;  // by prompt length and budget
  for (const auto& ids : prompts)
    for (const auto& cell : cells) {
      const auto recent = fm::fitted(cell.policy, static_cast<std::int64_t>(ids.size()) / 64).recent_chunks;
      if (recent != kept.recent) fewer[{ids.size(), cell.budget}] = recent;
    }
  for (const auto& [at, recent] : fewer)
    text += fmt::format(", {} recent in prompts of {} tokens at {:g}%", recent, at.first, 100 * at.second);
  return text;
}

std::vector<task_record> chosen_tasks(const eval_options& options) {
  std::vector<task_record> chosen;
  std::map<std::pair<std::string, std::int64_t>, std::int64_t> count;
  for (const auto& path : options.tasks) {
    for (auto& t : read_tasks(path)) {
      if (!options.only.empty() &&
          std::find(options.only.begin(), options.only.end(), t.task) == options.only.end()) {
        continue;
      }
      if (options.limit > 0 && ++count[{t.task, t.length}] > options.limit) continue;
      chosen.push_back(std::move(t));
    }
  }
  if (chosen.empty()) throw std::runtime_error("no task is left to run");
  return chosen;
}

std::vector<token_id> prompt_ids(const tokenizer& words, const task_record& task) {
  std::vector<token_id> ids{words.bos()};
  const auto text = words.encode(task.prompt);
  ids.insert(ids.end(), text.begin(), text.end());
  if (task.prompt_tokens != 0 && static_cast<std::int64_t>(ids.size()) != task.prompt_tokens) {
    throw std::runtime_error(fmt::format("{}: the prompt has {} tokens, the file says {}", task.id,
                                         ids.size(), task.prompt_tokens));
  }
  return ids;
}

class evaluation {
 public:
  evaluation(const eval_options& options, const std::vector<policy_cell>& cells, std::int64_t max_tokens,
             const tokenizer& words, engine& model)
      : cells_(cells),
        words_(words),
        engine_(model),
        memory_(model, cells, memory_options_for(options, max_tokens)) {}

  /// One prompt: processed once, then continued under every policy.
  void run(const task_record& task, std::span<const token_id> ids, std::vector<eval_result>& results) {
    const auto max_tokens = static_cast<std::int64_t>(ids.size()) + task.max_new_tokens;
    const served_sequence prompt = memory_.open_prompt(max_tokens);
    const auto start = steady::now();
    const auto first = engine_.prefill(prompt, ids);
    const std::vector<float> logits(first.begin(), first.end());
    prefill_seconds_ += std::chrono::duration<double>(steady::now() - start).count();
    prefill_tokens_ += static_cast<std::int64_t>(ids.size());
    std::optional<run_record> recorded;
    for (const auto& cell : cells_) {
      if (cell.name == "oracle" && !recorded) recorded = record_attention(task, prompt, logits, max_tokens);
      results.push_back(continue_with(cell, task, prompt, logits, max_tokens, recorded));
    }
    memory_.close_prompt(prompt);
  }

  double prefill_seconds() const noexcept { return prefill_seconds_; }
  std::int64_t prefill_tokens() const noexcept { return prefill_tokens_; }
  memory& mind() noexcept { return memory_; }

 private:
  static memory_options memory_options_for(const eval_options& options, std::int64_t max_tokens) {
    memory_options m;
    m.kv_type = options.kv_type;
    m.max_tokens = max_tokens;
    m.indexer_path = indexer_path(options);
    m.random_seed = options.seed;
    return m;
  }

  /// What a run with everything resident pays attention to, for the oracle.
  run_record record_attention(const task_record& task, const served_sequence& prompt,
                              const std::vector<float>& logits, std::int64_t max_tokens) {
    const policy_cell full = make_cell("full", 0);
    branch b = memory_.fork(prompt, full, max_tokens);
    runner run(engine_, words_, b);
    run_record record;
    run_options options;
    options.max_new_tokens = task.max_new_tokens;
    options.record_mass = true;
    run.generate(logits, record, options);
    return record;
  }

  eval_result continue_with(const policy_cell& cell, const task_record& task, const served_sequence& prompt,
                            const std::vector<float>& logits, std::int64_t max_tokens,
                            const std::optional<run_record>& recorded) {
    eval_result result;
    result.task = &task;
    result.cell = &cell;
    branch b = memory_.fork(prompt, cell, max_tokens);
    if (cell.name == "oracle") {
      const auto index = b.sequence().handle.index;
      memory_.oracle()->forget(index);
      std::int64_t position = b.tokens();
      for (const auto& mass : recorded->masses) {
        memory_.oracle()->record(
            index, position++, fm::view<const float, 1>(mass.data(), static_cast<std::int64_t>(mass.size())));
      }
    }
    runner run(engine_, words_, b);
    run_options options;
    options.max_new_tokens = task.max_new_tokens;
    run.warm_start(result.run, options);
    run.generate(logits, result.run, options);
    result.answer = score_answer(result.run.text, task.answers);
    return result;
  }

  const std::vector<policy_cell>& cells_;
  const tokenizer& words_;
  engine& engine_;
  memory memory_;
  double prefill_seconds_ = 0;
  std::int64_t prefill_tokens_ = 0;
};

/// FNV-1a.
class digest {
 public:
  void add(std::string_view text) {
    for (const char c : text) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 1099511628211u;
  }
  void add_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string piece(1 << 16, '\0');
    while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0)
      add(std::string_view(piece).substr(0, static_cast<std::size_t>(file.gcount())));
  }
  std::string text() const { return fmt::format("{:016x}", hash_); }

 private:
  std::uint64_t hash_ = 14695981039346656037u;
};

/// What results depend on and options say.
nlohmann::json settings_of(const eval_options& options, const always_kept& kept) {
  return {{"tasks", options.tasks},
          {"policies", options.policies},
          {"budgets", options.limits.budgets},
          {"thresholds", options.limits.thresholds},
          {"hystereses", options.limits.hystereses},
          {"only", options.only},
          {"limit", options.limit},
          {"kv_dtype", fm::to_string(options.kv_type)},
          {"random_seed", options.seed},
          {"interval", kept.interval},
          {"sink_chunks", kept.sink},
          {"recent_chunks", kept.recent},
          {"flashmemory", fm::version()}};
}

/// The same with what the files hold.
nlohmann::json journal_settings(const eval_options& options, const always_kept& kept,
                                const std::vector<task_record>& tasks) {
  digest prompts, weights;
  for (const auto& t : tasks) prompts.add(fmt::format("{}\n{}\n{}\n", t.id, t.max_new_tokens, t.prompt));
  weights.add_file(options.data + "/model.safetensors");
  weights.add_file(indexer_path(options));
  nlohmann::json settings = settings_of(options, kept);
  settings["prompts_digest"] = prompts.text();
  settings["weights_digest"] = weights.text();
  return settings;
}

/// Beside the first output that is a file; none without one.
std::unique_ptr<eval_journal> journal_for(const eval_options& options, const always_kept& kept,
                                          const std::vector<task_record>& tasks) {
  for (const auto& path : {options.json, options.html}) {
    if (path.empty() || std::filesystem::is_other(path)) continue;
    return std::make_unique<eval_journal>(path + ".partial", journal_settings(options, kept, tasks));
  }
  return nullptr;
}

void check_outputs(const eval_options& options) {
  if (!options.json.empty()) fm::check_output_file(options.json);
  if (!options.html.empty()) fm::check_output_file(options.html);
  if (!options.json.empty() && options.json == options.html && !std::filesystem::is_other(options.json))
    throw std::runtime_error("--json and --html name the same file");
}

/// `before` is what earlier runs did, the rest this one.
eval_totals totals_of(evaluation& run, const eval_totals& before, double seconds) {
  const auto counters = run.mind().store().counters();
  eval_totals t = before;
  t.seconds += seconds;
  t.prefill_seconds += run.prefill_seconds();
  t.prefill_tokens += run.prefill_tokens();
  t.recalled_chunks += static_cast<std::int64_t>(counters.recalled);
  t.recalled_bytes += static_cast<std::int64_t>(counters.bytes_recalled);
  t.refused_chunks += static_cast<std::int64_t>(counters.refused);
  t.faults += static_cast<std::int64_t>(counters.faults);
  t.fast_peak_bytes =
      std::max(t.fast_peak_bytes, static_cast<std::int64_t>(run.mind().store().usage().fast_peak_bytes));
  return t;
}

void write_json(const eval_options& options, const std::vector<eval_result>& results,
                const std::vector<eval_summary>& summaries, evaluation& run, std::int32_t threads,
                const eval_totals& totals, const always_kept& kept) {
  nlohmann::json out;
  out["settings"] = settings_of(options, kept);
  out["settings"].update({{"threads", threads},
                          {"tokens_per_chunk", run.mind().store().geometry().tokens_per_chunk()},
                          {"chunk_bytes", fm::chunk_layout(run.mind().store().geometry()).chunk_bytes()}});
  out["seconds"] = totals.seconds;
  out["prefill"] = {{"seconds", totals.prefill_seconds}, {"tokens", totals.prefill_tokens}};
  out["store"] = {{"recalled_chunks", totals.recalled_chunks},
                  {"recalled_bytes", totals.recalled_bytes},
                  {"refused_chunks", totals.refused_chunks},
                  {"faults", totals.faults},
                  {"fast_peak_bytes", totals.fast_peak_bytes}};
  out["summaries"] = nlohmann::json::array();
  for (const auto& s : summaries) out["summaries"].push_back(to_json(s));
  out["prompts"] = nlohmann::json::array();
  for (const auto& r : results) out["prompts"].push_back(to_json(r));
  // Generated text may end inside a multi-byte character.
  fm::write_file(options.json, out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

void write_html(const eval_options& options, const std::vector<eval_result>& results,
                const std::vector<eval_summary>& summaries, const std::vector<policy_cell>& cells,
                std::int64_t tokens_per_chunk, const std::vector<std::string>& facts) {
  fm::write_file(options.html, html_report({"tinylm: accuracy and residency", facts, tokens_per_chunk},
                                           results, summaries, cells));
}

void run_eval(const eval_options& options) {
  const auto start = steady::now();
  const auto seconds = [&] { return std::chrono::duration<double>(steady::now() - start).count(); };
  check_outputs(options);
  const auto tasks = chosen_tasks(options);
  always_kept kept = kept_by(indexer_path(options));
  if (options.interval > 0) kept.interval = options.interval;
  if (options.recent >= 0) kept.recent = options.recent;
  const auto cells = make_cells(options.policies, options.limits, kept);
  const tokenizer words(options.data + "/tokenizer.json");
  const model weights = load_model(options.data);
  thread_pool threads(options.threads);
  engine runs(weights, threads);

  std::vector<std::vector<token_id>> ids;
  std::int64_t max_tokens = 0, total = 0;
  for (const auto& task : tasks) {
    ids.push_back(prompt_ids(words, task));
    const auto tokens = static_cast<std::int64_t>(ids.back().size());
    if (tokens + task.max_new_tokens > weights.config.max_positions)
      throw std::runtime_error(
          fmt::format("{}: {} tokens and {} for the answer do not fit the model's {} positions", task.id,
                      tokens, task.max_new_tokens, weights.config.max_positions));
    max_tokens = std::max(max_tokens, tokens + task.max_new_tokens);
    total += tokens;
  }
  evaluation evaluate(options, cells, max_tokens, words, runs);
  const auto journal = journal_for(options, kept, tasks);
  const eval_totals before = journal ? journal->totals() : eval_totals{};
  std::vector<eval_result> results;
  const std::size_t restored = journal ? std::min(journal->prompts(), tasks.size()) : 0;
  for (std::size_t i = 0; i < restored; ++i) journal->restore(i, tasks[i], cells, results);
  if (restored > 0) fmt::print(stderr, "going on after {} of {} prompts\n", restored, tasks.size());
  progress_line line(fmt::format("{} prompts", tasks.size()), options.progress);
  std::int64_t done = 0;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (i >= restored) {
      line.update(done, total, tasks[i].id);
      evaluate.run(tasks[i], ids[i], results);
      if (journal)
        journal->add(std::span(results).last(cells.size()), totals_of(evaluate, before, seconds()));
    }
    done += static_cast<std::int64_t>(ids[i].size());
  }
  line.clear();
  const auto summaries = summarise(results, cells);
  print_table(summaries);
  const eval_totals totals = totals_of(evaluate, before, seconds());
  const std::string facts =
      fmt::format("{} prompts of {} tokens in {}; K and V in {}, {} thread{}", tasks.size(), total,
                  duration_text(totals.seconds), fm::to_string(options.kv_type), threads.size(),
                  threads.size() == 1 ? "" : "s");
  const std::string always = kept_text(kept, cells, ids);
  fmt::print("\n{}\n{}\n", facts, always);
  if (!options.json.empty()) write_json(options, results, summaries, evaluate, threads.size(), totals, kept);
  if (!options.html.empty()) {
    const auto chunk = evaluate.mind().store().geometry().tokens_per_chunk();
    write_html(options, results, summaries, cells, chunk,
               {facts, fmt::format("chunks of {} tokens; {}; flashmemory {}", chunk, always, fm::version())});
  }
  if (journal) journal->remove();
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto options = std::make_shared<eval_options>();
  auto* command = app.add_subcommand("eval", "Accuracy, footprint and speed of policies over task files");
  command->add_option("--tasks", options->tasks, "JSONL task files")
      ->required()
      ->check(CLI::ExistingFile)
      ->delimiter(',');
  command
      ->add_option("--policy", options->policies, "full, lsa, lsa-threshold, recency, random, quest, oracle")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--kv-budget", options->limits.budgets, "Fractions of the complete chunks that may stay")
      ->delimiter(',')
      ->check(fraction(0.001))
      ->capture_default_str();
  command
      ->add_option("--threshold", options->limits.thresholds,
                   "Probabilities above which lsa-threshold keeps a chunk")
      ->delimiter(',')
      ->check(fraction(0.0001, 0.9999))
      ->capture_default_str();
  command
      ->add_option("--hysteresis", options->limits.hystereses,
                   "Log-odds below the threshold down to which lsa-threshold keeps a chunk that it had kept")
      ->delimiter(',')
      ->check(within(0.0, 100.0))
      ->capture_default_str();
  command
      ->add_option("--interval", options->interval,
                   "Tokens between two choices of what stays [what the indexer was trained for, else 64]")
      ->check(within(1, 1 << 20));
  command
      ->add_option(
          "--recent", options->recent,
          "Newest complete chunks that always stay, paid from the budget [what the indexer was trained "
          "for, else 2]")
      ->check(within(0, 1 << 20));
  command->add_option("--task", options->only, "Only tasks of these names")->delimiter(',');
  command->add_option("--limit", options->limit, "At most this many prompts per task and length, 0 = all")
      ->check(count());
  command->add_option("--json", options->json,
                      "Write everything, every prompt's text included, to this file; results so far lie in "
                      "FILE.partial, and the same command goes on there");
  command->add_option("--html", options->html,
                      "Write a report with charts and residency maps, one self-contained page");
  command->add_option("--data", options->data, "Folder of model, tokenizer and indexer")
      ->capture_default_str();
  command->add_option("--indexer", options->indexer, "Another indexer artifact")->check(CLI::ExistingFile);
  command->add_option("--kv-dtype", options->kv_type, "Of stored K and V")
      ->transform(CLI::CheckedTransformer(std::map<std::string, fm::dtype>{
          {"f32", fm::dtype::f32}, {"bf16", fm::dtype::bf16}, {"f16", fm::dtype::f16}}));
  command->add_option("--threads", options->threads, "Threads, 0 = all")->check(thread_count());
  command->add_option("--seed", options->seed, "Of the random policy")->capture_default_str();
  command->add_flag("--progress", options->progress, "Show progress even without a terminal");
  command->callback([options] { run_eval(*options); });
}

}  // namespace tinylm
