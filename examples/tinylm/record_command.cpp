// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.hpp"
#include "document_maker.hpp"
#include "engine.hpp"
#include "option_ranges.hpp"
#include "tasks.hpp"
#include "terminal.hpp"

namespace tinylm {

namespace fm = flashmemory;
using steady = std::chrono::steady_clock;

namespace {

/// FNV-1a of a file: recordings of one model or text are never mixed with another's.
std::string fingerprint_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::uint64_t hash = 14695981039346656037u;
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0)
    for (std::streamsize i = 0; i < file.gcount(); ++i)
      hash = (hash ^ static_cast<unsigned char>(piece[static_cast<std::size_t>(i)])) * 1099511628211u;
  return fmt::format("{:016x}", hash);
}

fm::train::recording_geometry geometry_of(const record_options& options, const model_config& c) {
  fm::train::recording_geometry g;
  g.layers = c.layers;
  g.heads = c.heads;
  g.entries_per_chunk = 64;
  g.model_fingerprint = "tinylm-" + fingerprint_of(options.data + "/model.safetensors");
  for (std::int32_t l = 0; l < c.layers; ++l)
    if (options.query_layers.empty() ||
        std::find(options.query_layers.begin(), options.query_layers.end(), l) != options.query_layers.end())
      g.queries.push_back({l, fm::tap_kind::hidden, c.hidden});
  for (const std::int32_t layer : options.key_layers)
    for (const std::int32_t window : options.key_windows)
      g.keys.push_back({layer, c.hidden, options.tokens_per_key, window, 0});
  return g;
}

/// In rounds over kinds and lengths, so that a run that is stopped has some of everything.
std::vector<record_job> jobs_of(const record_options& options) {
  std::vector<record_job> jobs;
  const auto count = [&](std::size_t length) {
    return options.per_kind[options.per_kind.size() == 1 ? 0 : length];
  };
  const std::int64_t rounds = *std::max_element(options.per_kind.begin(), options.per_kind.end());
  for (std::int64_t index = 0; index < rounds; ++index)
    for (std::size_t length = 0; length < options.lengths.size(); ++length)
      for (const std::string& kind : options.kinds)
        if (index < count(length)) jobs.push_back({kind, options.lengths[length], index});
  std::vector<record_job> mine;
  for (std::size_t i = 0; i < jobs.size(); ++i)
    if (static_cast<std::int64_t>(i) % options.shares == options.share) mine.push_back(jobs[i]);
  return mine;
}

/// What the documents depend on besides the geometry, by the options' names: a run that goes on in a folder must have been
/// started with the same.
std::map<std::string, std::string> settings_of(const record_options& o, const std::string& text_path) {
  const auto list = [](const auto& values) { return fmt::format("{}", fmt::join(values, ",")); };
  return {{"lengths", list(o.lengths)},
          {"kinds", list(o.kinds)},
          {"per-kind", list(o.per_kind)},
          {"asks", list(o.sessions.asks)},
          {"multivalue", fmt::format("{}", o.sessions.multivalue)},
          {"session-queries", fmt::format("{}", o.session_queries)},
          {"skip-sink", fmt::format("{}", o.skip_sink)},
          {"skip-recent", fmt::format("{}", o.skip_recent)},
          {"seed", fmt::format("{}", o.seed)},
          {"text", fingerprint_of(text_path)},
          {"text-part", o.part},
          {"odd", fmt::format("{}", o.odd)},
          {"greedy", fmt::format("{}", o.greedy)},
          {"tau", fmt::format("{}", o.tau)},
          {"background", fmt::format("{}", o.background)},
          {"validation", fmt::format("{}", o.validation)},
          {"max-entries", fmt::format("{}", o.max_entries)},
          {"min-mass", fmt::format("{}", o.min_mass)},
          {"share", fmt::format("{}", o.share)},
          {"shares", fmt::format("{}", o.shares)}};
}

void run_record(const record_options& options) {
  if (options.share < 0 || options.share >= options.shares)
    throw std::invalid_argument(fmt::format("share {} of {}", options.share, options.shares));
  if (options.per_kind.size() != 1 && options.per_kind.size() != options.lengths.size())
    throw std::invalid_argument(fmt::format("{} counts of documents for {} lengths", options.per_kind.size(),
                                            options.lengths.size()));
  const tokenizer words(options.data + "/tokenizer.json");
  const model weights = load_model(options.data);
  thread_pool threads(options.threads);
  engine runs(weights, threads);
  const std::string text_path = options.text.empty() ? options.data + "/prose.txt" : options.text;
  const text_part part = text_part_from(options.part);
  const task_maker tasks(words, text_path, options.data + "/words.txt", options.seed, part);
  const haystack text(words, text_path, options.data + "/words.txt", part);
  fm::train::recorder_options settings;
  settings.writer = options.writer;
  settings.memory_budget = options.memory_mib << 20;
  settings.shard_bytes = std::min(settings.shard_bytes, settings.memory_budget);
  settings.settings = settings_of(options, text_path);
  settings.fresh = options.fresh;
  fm::train::recorder to(options.out, geometry_of(options, weights.config), settings);
  document_maker maker(options, words, runs, to, tasks, text);

  // Documents are recorded in the order of the jobs, so their number says where a stopped run goes on.
  const auto jobs = jobs_of(options);
  const auto done = static_cast<std::size_t>(to.counters().documents);
  const auto start = steady::now();
  std::int64_t tokens = 0;
  progress_line line(fmt::format("{} documents", jobs.size()), options.progress);
  for (std::size_t i = done; i < jobs.size(); ++i) {
    line.update(static_cast<std::int64_t>(i), static_cast<std::int64_t>(jobs.size()),
                fmt::format("{}_{}_{}", jobs[i].kind, jobs[i].length, jobs[i].index));
    tokens += maker.record(jobs[i]);
  }
  to.flush();
  line.clear();
  const auto counters = to.counters();
  fmt::print("{} documents in {} shards of {}, {} tokens now in {}\n", counters.documents, counters.shards,
             options.out, tokens,
             duration_text(std::chrono::duration<double>(steady::now() - start).count()));
  fmt::print("at most {:.1f} MiB waited to be written\n",
             static_cast<double>(counters.peak_bytes) / (1 << 20));
}

}  // namespace

void add_record_command(CLI::App& app) {
  auto options = std::make_shared<record_options>();
  std::set<std::string> names;
  for (const task_kind kind : all_task_kinds()) {
    options->kinds.emplace_back(to_string(kind));
    names.emplace(to_string(kind));
  }
  names.emplace(session_kind);
  auto* command = app.add_subcommand("record", "Record documents to train an indexer on");
  const auto list = [&](const char* name, auto& value, const char* what) {
    return command->add_option(name, value, what)->delimiter(',')->capture_default_str();
  };
  const auto count = [&](const char* name, auto& value, const char* what) {
    return command->add_option(name, value, what)->check(tinylm::count())->capture_default_str();
  };
  command->add_option("--out", options->out, "Folder of shards; a stopped run goes on there")->required();
  command->add_flag("--fresh", options->fresh,
                    "Start anew: this writer's recordings there go first, and nothing else");
  list("--lengths", options->lengths, "Context lengths")->check(within<std::int64_t>(512, 32768));
  list("--kinds", options->kinds, "Kinds of task, or \"session\": many needles, then question after question")
      ->check(CLI::IsMember(names));
  list("--per-kind", options->per_kind, "Documents of each kind and length; several numbers: one per length")
      ->check(tinylm::count());
  list("--asks", options->sessions.asks, "Sessions: keys of a question, each as likely as the others")
      ->check(within(1, 16));
  command
      ->add_option("--multivalue", options->sessions.multivalue,
                   "Sessions: share of questions for all numbers of a key")
      ->check(fraction())
      ->capture_default_str();
  count("--session-queries", options->session_queries,
        "Sessions: queries per 1024 tokens, half of them inside answers");
  count("--skip-sink", options->skip_sink, "Attention to so many first chunks is not recorded");
  count("--skip-recent", options->skip_recent,
        "Attention to so many newest complete chunks, and to what follows them, is not recorded");
  count("--seed", options->seed, "Same seed, same documents");
  command->add_option("--text", options->text, "Text to hide things in [prose.txt of the data folder]")
      ->check(CLI::ExistingFile);
  command->add_option("--text-part", options->part, "Only this part of it; evaluate on another")
      ->capture_default_str();
  command->add_flag("--odd", options->odd, "Random prompt lengths, no multiples of 64");
  command->add_flag("--greedy", options->greedy, "The model's own answers instead of the right ones");
  command->add_option("--tau", options->tau, "Tokens after a query whose attention is recorded")
      ->check(within<std::int64_t>(1, 1 << 20))
      ->capture_default_str();
  count("--background", options->background,
        "Queries inside the text, besides the question's end and the answer");
  command->add_option("--validation", options->validation, "Share of the documents that is held out")
      ->check(fraction())
      ->capture_default_str();
  list("--query-layers", options->query_layers, "Whose hidden states are recorded [all]")
      ->check(within(0, 65535));
  list("--key-layers", options->key_layers, "Whose hidden states key encoders see")->check(within(0, 65535));
  list("--key-windows", options->key_windows, "Tokens that a key sees")->check(within(1, 65536));
  command->add_option("--tokens-per-key", options->tokens_per_key, "Stride of keys")
      ->check(within(1, 64))
      ->capture_default_str();
  count("--max-entries", options->max_entries, "Attention: most entries kept per token, layer and head");
  command->add_option("--min-mass", options->min_mass, "Attention: lightest entry that is kept")
      ->check(fraction())
      ->capture_default_str();
  command->add_option("--writer", options->writer, "Name of this run's shards")->capture_default_str();
  count("--share", options->share, "Which share of the documents, where several processes record");
  command->add_option("--shares", options->shares, "How many shares there are")
      ->check(tinylm::count(1))
      ->capture_default_str();
  command->add_option("--memory", options->memory_mib, "MiB that may wait to be written")
      ->check(tinylm::count(1))
      ->capture_default_str();
  command->add_option("--data", options->data, "Folder of model, tokenizer, words and text")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads, 0 = all")
      ->check(thread_count())
      ->capture_default_str();
  command->add_flag("--progress", options->progress, "Show progress even without a terminal");
  command->callback([options] { run_record(*options); });
}

}  // namespace tinylm
