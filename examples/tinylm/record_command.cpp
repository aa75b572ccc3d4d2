// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/train/recorder.hpp>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.hpp"
#include "document_recorder.hpp"
#include "engine.hpp"
#include "kernels.hpp"
#include "tasks.hpp"
#include "terminal.hpp"

namespace tinylm {

namespace fm = flashmemory;
using steady = std::chrono::steady_clock;

namespace {

struct record_options {
  std::string data = default_data_folder();
  std::string text, part = "0:0.6", out;
  std::vector<std::int64_t> lengths{4096, 8192, 16384};
  std::vector<std::string> kinds;
  std::int64_t per_kind = 16;
  std::uint64_t seed = 1;
  bool odd = false, greedy = false, fresh = false, progress = false;
  std::int64_t tau = 64;
  std::int64_t background = 8;
  double validation = 0.125;
  std::vector<std::int32_t> query_layers, key_layers{0, 1, 2}, key_windows{16};
  std::int32_t tokens_per_key = 4;
  std::string writer = "0";
  std::int64_t share = 0, shares = 1;
  std::size_t memory_mib = 256;
  std::int32_t max_entries = 24;
  float min_mass = 0.004f;
  std::int32_t threads = 0;
};

/// FNV-1a of the model's file: recordings of one model are never mixed with another's.
std::string fingerprint_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::uint64_t hash = 14695981039346656037u;
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0)
    for (std::streamsize i = 0; i < file.gcount(); ++i)
      hash = (hash ^ static_cast<unsigned char>(piece[static_cast<std::size_t>(i)])) * 1099511628211u;
  return fmt::format("tinylm-{:016x}", hash);
}

fm::train::recording_geometry geometry_of(const record_options& options, const model_config& c) {
  fm::train::recording_geometry g;
  g.layers = c.layers;
  g.heads = c.heads;
  g.entries_per_chunk = 64;
  g.model_fingerprint = fingerprint_of(options.data + "/model.safetensors");
  for (std::int32_t l = 0; l < c.layers; ++l)
    if (options.query_layers.empty() ||
        std::find(options.query_layers.begin(), options.query_layers.end(), l) != options.query_layers.end())
      g.queries.push_back({l, fm::tap_kind::hidden, c.hidden});
  for (const std::int32_t layer : options.key_layers)
    for (const std::int32_t window : options.key_windows)
      g.keys.push_back({layer, c.hidden, options.tokens_per_key, window, 0});
  return g;
}

struct job {
  std::string kind;
  std::int64_t length, index;
};

/// In rounds over kinds and lengths, so that a run that is stopped has some of everything.
std::vector<job> jobs_of(const record_options& options) {
  std::vector<job> jobs;
  for (std::int64_t index = 0; index < options.per_kind; ++index)
    for (const std::int64_t length : options.lengths)
      for (const std::string& kind : options.kinds) jobs.push_back({kind, length, index});
  std::vector<job> mine;
  for (std::size_t i = 0; i < jobs.size(); ++i)
    if (static_cast<std::int64_t>(i) % options.shares == options.share) mine.push_back(jobs[i]);
  return mine;
}

class document_maker {
 public:
  document_maker(const record_options& options, const tokenizer& words, engine& model,
                 fm::train::recorder& to, const task_maker& tasks)
      : options_(options), words_(words), engine_(model), to_(to), tasks_(tasks) {
    std::int64_t longest = 0;
    for (const std::int64_t length : options.lengths) longest = std::max(longest, length);
    const auto& c = model.weights().config;
    fm::store_options store;
    store.geometry.layers = c.layers;
    store.geometry.kv_heads = c.kv_heads;
    store.geometry.key_dim = store.geometry.value_dim = c.head_dim;
    max_tokens_ = longest + task_maker::answer_room;
    const std::size_t kv = static_cast<std::size_t>(store.geometry.chunks_for(max_tokens_) + 8) *
                           fm::chunk_layout(store.geometry).chunk_bytes();
    store.fast_bytes = kv + (std::size_t{8} << 20);
    store.backing_bytes = kv;
    store.max_sequences = 1;
    store_ = std::make_unique<fm::tiered_chunk_store>(store);
    mass_.max_entries = options.max_entries;
    mass_.min_mass = options.min_mass;
    mass_.threads = model.threads().hook();
  }

  /// Records one task; tokens of the document.
  std::int64_t record(const job& what) {
    const made_task task = tasks_.make(task_kind_from(what.kind), what.length, what.index, options_.odd);
    std::vector<token_id> prompt{words_.bos()};
    const auto text = words_.encode(task.record.prompt);
    prompt.insert(prompt.end(), text.begin(), text.end());
    const auto gold = words_.encode(task.gold);
    const auto length = static_cast<std::int64_t>(prompt.size());
    const std::int64_t answer = options_.greedy ? task.record.max_new_tokens : std::int64_t(gold.size());

    const auto id = to_.begin(what.kind, split_of(what.index));
    std::vector<std::int64_t> queries = background_of(what, length);
    for (std::int64_t t = length - 1; t < length + answer; ++t) queries.push_back(t);
    document_recorder recorder(to_, id, mass_, queries, windows_of(queries, length + answer));
    fm::sequence_options sequence;
    sequence.max_tokens = max_tokens_;
    served_sequence served;
    served.store = store_.get();
    served.handle = store_->open(sequence);
    served.on_layer = [&](const layer_pass& pass) { recorder.on_layer(served, pass); };
    std::int64_t tokens = length;
    try {
      tokens += options_.greedy ? generate(served, prompt, answer, gold, task, id)
                                : teach(served, prompt, gold, task, id);
      to_.finish(id, tokens);
    } catch (...) {
      (void)store_->close(served.handle);
      to_.drop(id);
      throw;
    }
    require(store_->close(served.handle), store_->last_fault(), "close");
    return tokens;
  }

 private:
  /// The gold answer, up to the newline that ends it, which no token follows.
  std::int64_t teach(const served_sequence& served, const std::vector<token_id>& prompt,
                     const std::vector<token_id>& gold, const made_task& task, fm::train::recording_id id) {
    engine_.prefill(served, prompt);
    const auto given = static_cast<std::int64_t>(gold.size()) - 1;
    for (std::int64_t at = 0; at < given;) {
      const std::int64_t now = std::min<std::int64_t>(max_step_tokens, given - at);
      engine_.step(served, static_cast<std::int64_t>(prompt.size()) + at,
                   std::span(gold).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(now)));
      at += now;
    }
    add_evidence(task, id, static_cast<std::int64_t>(prompt.size()), given);
    return given;
  }

  /// What the model answers by itself. Needs are known only where that is the gold answer.
  std::int64_t generate(const served_sequence& served, const std::vector<token_id>& prompt, std::int64_t most,
                        const std::vector<token_id>& gold, const made_task& task,
                        fm::train::recording_id id) {
    auto logits = engine_.prefill(served, prompt);
    std::vector<token_id> answer;
    std::int64_t processed = 0;
    for (;; ++processed) {
      answer.push_back(greedy(logits));
      if (answer.back() == words_.newline() || answer.back() == words_.eos() || processed + 1 >= most) break;
      logits = engine_.step(served, static_cast<std::int64_t>(prompt.size()) + processed,
                            std::span(&answer.back(), 1));
    }
    if (answer == gold) add_evidence(task, id, static_cast<std::int64_t>(prompt.size()), processed);
    return processed;
  }

  /// Answer token i is computed by the token before it, so it is that one's attention that needs the
  /// sentence.
  void add_evidence(const made_task& task, fm::train::recording_id id, std::int64_t prompt,
                    std::int64_t processed) {
    for (const evidence& need : task.record.need) {
      const std::int64_t begin = prompt + need.answer_begin - 1;
      const std::int64_t end = std::min(prompt + need.answer_end - 1, prompt + processed);
      if (begin < end) to_.add_evidence(id, {begin, end, need.prompt_begin, need.prompt_end});
    }
  }

  fm::train::dataset_split split_of(std::int64_t index) const {
    const auto before = [&](std::int64_t i) {
      return static_cast<std::int64_t>(static_cast<double>(i) * options_.validation);
    };
    return before(index + 1) > before(index) ? fm::train::dataset_split::validation
                                             : fm::train::dataset_split::train;
  }

  /// Query positions in the middle of the text, ascending; far enough from the answer to see none of it.
  std::vector<std::int64_t> background_of(const job& what, std::int64_t length) const {
    std::seed_seq mixed{static_cast<std::uint32_t>(options_.seed), static_cast<std::uint32_t>(what.index),
                        static_cast<std::uint32_t>(what.length),
                        static_cast<std::uint32_t>(task_kind_from(what.kind))};
    std::mt19937_64 random(mixed);
    const std::int64_t first = 256, end = length - 1 - options_.tau;
    std::set<std::int64_t> chosen;
    for (std::int64_t i = 0; i < options_.background && first < end; ++i)
      chosen.insert(first + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end - first)));
    return {chosen.begin(), chosen.end()};
  }

  /// Every token that lies in the window of a query.
  std::vector<std::int64_t> windows_of(const std::vector<std::int64_t>& queries, std::int64_t tokens) const {
    std::vector<std::int64_t> all;
    std::int64_t next = 0;
    for (const std::int64_t t : queries)
      for (next = std::max(next, t + 1); next <= t + options_.tau && next < tokens; ++next)
        all.push_back(next);
    return all;
  }

  const record_options& options_;
  const tokenizer& words_;
  engine& engine_;
  fm::train::recorder& to_;
  const task_maker& tasks_;
  std::int64_t max_tokens_ = 0;
  std::unique_ptr<fm::tiered_chunk_store> store_;
  fm::train::attention_mass_options mass_;
};

void run_record(const record_options& options) {
  if (options.fresh) std::filesystem::remove_all(options.out);
  if (options.share < 0 || options.share >= options.shares)
    throw std::invalid_argument(fmt::format("share {} of {}", options.share, options.shares));
  const tokenizer words(options.data + "/tokenizer.json");
  const model weights = load_model(options.data);
  thread_pool threads(options.threads);
  engine runs(weights, threads);
  const task_maker tasks(words, options.text.empty() ? options.data + "/prose.txt" : options.text,
                         options.data + "/words.txt", options.seed, text_part_from(options.part));
  fm::train::recorder_options settings;
  settings.writer = options.writer;
  settings.memory_budget = options.memory_mib << 20;
  settings.shard_bytes = std::min(settings.shard_bytes, settings.memory_budget);
  fm::train::recorder to(options.out, geometry_of(options, weights.config), settings);
  document_maker maker(options, words, runs, to, tasks);

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
  auto* command = app.add_subcommand("record", "Record documents to train an indexer on");
  const auto list = [&](const char* name, auto& value, const char* what) {
    return command->add_option(name, value, what)->delimiter(',')->capture_default_str();
  };
  const auto count = [&](const char* name, auto& value, const char* what) {
    return command->add_option(name, value, what)->check(CLI::NonNegativeNumber)->capture_default_str();
  };
  command->add_option("--out", options->out, "Folder of shards; a stopped run goes on there")->required();
  command->add_flag("--fresh", options->fresh, "Delete that folder first");
  list("--lengths", options->lengths, "Context lengths")
      ->check(CLI::Range(std::int64_t{512}, std::int64_t{32768}));
  list("--kinds", options->kinds, "Kinds of task")->check(CLI::IsMember(names));
  count("--per-kind", options->per_kind, "Documents of each kind and length");
  count("--seed", options->seed, "Same seed, same documents");
  command->add_option("--text", options->text, "Text to hide things in [prose.txt of the data folder]")
      ->check(CLI::ExistingFile);
  command->add_option("--text-part", options->part, "Only this part of it; evaluate on another")
      ->capture_default_str();
  command->add_flag("--odd", options->odd, "Random prompt lengths, no multiples of 64");
  command->add_flag("--greedy", options->greedy, "The model's own answers instead of the right ones");
  command->add_option("--tau", options->tau, "Tokens after a query whose attention is recorded")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  count("--background", options->background,
        "Queries inside the text, besides the question's end and the answer");
  command->add_option("--validation", options->validation, "Share of the documents that is held out")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  list("--query-layers", options->query_layers, "Whose hidden states are recorded [all]");
  list("--key-layers", options->key_layers, "Whose hidden states key encoders see");
  list("--key-windows", options->key_windows, "Tokens that a key sees");
  command->add_option("--tokens-per-key", options->tokens_per_key, "Stride of keys")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  count("--max-entries", options->max_entries, "Attention: most entries kept per token, layer and head");
  count("--min-mass", options->min_mass, "Attention: lightest entry that is kept");
  command->add_option("--writer", options->writer, "Name of this run's shards")->capture_default_str();
  count("--share", options->share, "Which share of the documents, where several processes record");
  command->add_option("--shares", options->shares, "How many shares there are")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--memory", options->memory_mib, "MiB that may wait to be written")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--data", options->data, "Folder of model, tokenizer, words and text")
      ->capture_default_str();
  count("--threads", options->threads, "Threads, 0 = all");
  command->add_flag("--progress", options->progress, "Show progress even without a terminal");
  command->callback([options] { run_record(*options); });
}

}  // namespace tinylm
