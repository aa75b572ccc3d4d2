// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <flashmemory/io/safetensors.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "engine.hpp"
#include "generate.hpp"
#include "memory.hpp"
#include "option_ranges.hpp"
#include "task_file.hpp"

namespace tinylm {

namespace fm = flashmemory;

namespace {

struct check_options {
  std::string data = default_data_folder();
  std::string indexer;
  std::vector<std::string> golden;
  std::string golden_lsa;
  std::string tasks;
  std::int32_t threads = 0;
};

nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  return nlohmann::json::parse(file);
}

/// Prints one line per check and remembers whether any failed.
class verdict {
 public:
  void expect(bool good, const std::string& what) {
    fmt::print("{}  {}\n", good ? "ok  " : "FAIL", what);
    failed_ += !good;
  }
  int failed() const noexcept { return failed_; }

 private:
  int failed_ = 0;
};

struct difference {
  double largest_error = 0;
  double largest_value = 0;
};

difference compare(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) throw std::runtime_error("a golden tensor has another size");
  difference d;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(double{got[i]} - double{want[i]});
    d.largest_error = std::isnan(error) ? INFINITY : std::max(d.largest_error, error);
    d.largest_value = std::max(d.largest_value, std::abs(double{want[i]}));
  }
  return d;
}

class golden_check {
 public:
  golden_check(const check_options& options, verdict& result)
      : result_(result),
        words_(options.data + "/tokenizer.json"),
        weights_(load_model(options.data)),
        threads_(options.threads),
        engine_(weights_, threads_) {
    memory_options_.kv_type = fm::dtype::f32;
    memory_options_.indexer_path =
        options.indexer.empty() ? options.data + "/indexer.safetensors" : options.indexer;
  }

  void check_short(const std::string& json_path, const std::string& tensor_path);
  void check_lsa(const std::string& json_path, const std::vector<task_record>& tasks);

 private:
  void expect_close(const std::string& what, const std::vector<float>& got, const fm::safetensors_file& file,
                    const std::string& tensor, double tolerance) {
    const auto d = compare(got, fm::to_floats(file, *file.find(tensor)));
    result_.expect(d.largest_error <= tolerance * std::max(1.0, d.largest_value),
                   fmt::format("{:22} largest error {:.2e}, largest value {:.4g}", what, d.largest_error,
                               d.largest_value));
  }
  void check_indexer(memory& mind, const served_sequence& prompt, const prompt_capture& capture,
                     const fm::safetensors_file& file);

  verdict& result_;
  tokenizer words_;
  model weights_;
  thread_pool threads_;
  engine engine_;
  memory_options memory_options_;
};

void golden_check::check_indexer(memory& mind, const served_sequence& prompt, const prompt_capture& capture,
                                 const fm::safetensors_file& file) {
  const auto& index = *mind.trained();
  const auto& config = index.config();
  const auto& g = mind.store().geometry();
  std::vector<std::byte> room(index.workspace_bytes(g, 16, 64) + 64);
  void* aligned = room.data();
  std::size_t space = room.size();
  std::align(64, space - 64, aligned, space);
  for (std::size_t r = 0; r < config.retrievers.size(); ++r) {
    const auto stream = static_cast<std::int32_t>(r);
    const std::string name = fmt::format("indexer.{}.", r);
    fm::index_key_pages pages;
    require(mind.store().index_keys(prompt.handle, stream, &pages), mind.store().last_fault(), "keys");
    std::vector<float> keys;
    for (std::int64_t k = 0; k < pages.keys; ++k) {
      const std::byte* row = pages.data + k * g.index_keys.bytes();
      float scale = 0;
      std::memcpy(&scale, row + g.index_keys.bytes() - 4, sizeof scale);
      for (int i = 0; i < fm::index_key_dim; ++i) {
        keys.push_back(fm::from_e4m3(static_cast<std::uint8_t>(row[i])) * scale);
      }
    }
    // One step of e4m3 is 1/16 to 1/8 of a value: a tie that fell the other way is not an error.
    expect_close(name + "keys", keys, file, name + "keys_dequant", 0.07);

    const auto& inputs = capture.inputs.at(config.retrievers[r].query_layer);
    const float* last = inputs.data() + inputs.size() - static_cast<std::size_t>(config.hidden);
    const auto position = static_cast<std::int64_t>(inputs.size()) / config.hidden - 1;
    std::vector<float> queries(static_cast<std::size_t>(config.heads * fm::index_key_dim));
    std::vector<float> gates(static_cast<std::size_t>(config.heads));
    std::vector<float> logits(static_cast<std::size_t>(pages.keys));
    const fm::workspace scratch{aligned, space};
    require(index.encode_query(stream, last, position, queries.data(), gates.data(), scratch), {},
            "encode_query");
    require(index.score_keys(stream, queries.data(), gates.data(), pages.data, pages.keys,
                             g.index_keys_per_chunk(), g.index_keys.layout, logits.data(), threads_.hook()),
            {}, "score_keys");
    expect_close(name + "q", queries, file, name + "q", 1e-4);
    expect_close(name + "gate", gates, file, name + "gate", 1e-4);
    expect_close(name + "logits", logits, file, name + "logits", 1e-3);
  }
}

void golden_check::check_short(const std::string& json_path, const std::string& tensor_path) {
  const auto golden = read_json(json_path);
  const fm::safetensors_file file(tensor_path);
  const auto ids = golden.at("ids").get<std::vector<token_id>>();
  const auto wanted = golden.at("greedy_ids").get<std::vector<token_id>>();

  std::vector<token_id> encoded{words_.bos()};
  const auto text = words_.encode(golden.at("prompt").get<std::string>());
  encoded.insert(encoded.end(), text.begin(), text.end());
  result_.expect(encoded == ids, fmt::format("token ids of the prompt ({})", ids.size()));

  const auto cells = make_cells({"full", "lsa"}, {});
  memory_options_.max_tokens = static_cast<std::int64_t>(ids.size() + wanted.size()) + 8;
  memory mind(engine_, cells, memory_options_);
  const auto prompt = mind.open_prompt(memory_options_.max_tokens);
  prompt_capture capture;
  for (const std::int32_t layer : {0, 2, 6, 7}) capture.inputs[layer];
  const auto first = engine_.prefill(prompt, ids, {}, &capture);
  const std::vector<float> logits(first.begin(), first.end());
  expect_close("logits", capture.logits, file, "logits", 2e-3);
  expect_close("hidden", capture.hidden, file, "hidden_final", 1e-3);
  for (const auto& [layer, values] : capture.inputs) {
    expect_close(fmt::format("x_{}", layer), values, file, fmt::format("x.{}", layer), 1e-3);
  }
  check_indexer(mind, prompt, capture, file);

  // The whole prompt fits in sink, recent and open chunks, so both policies have to say the same.
  for (const auto& cell : cells) {
    auto b = mind.fork(prompt, cell, memory_options_.max_tokens);
    runner run(engine_, words_, b);
    run_record record;
    run_options options;
    options.max_new_tokens = static_cast<std::int64_t>(wanted.size()) + 4;
    run.warm_start(record, options);
    run.generate(logits, record, options);
    result_.expect(record.ids == wanted, fmt::format("greedy ids, {} ({})", cell.label(), record.ids.size()));
  }
}

void golden_check::check_lsa(const std::string& json_path, const std::vector<task_record>& tasks) {
  constexpr double tolerance = 1e-3;
  double worst_logit = 0;
  int refreshes = 0, same_sets = 0, excused = 0, texts = 0, entries = 0;
  for (const auto& entry : read_json(json_path)) {
    const std::string policy = entry.at("policy") == "lsa_thr" ? "lsa-threshold" : entry.at("policy");
    const std::string id = entry.at("id");
    const auto task = std::find_if(tasks.begin(), tasks.end(), [&](const auto& t) { return t.id == id; });
    if (task == tasks.end()) throw std::runtime_error(fmt::format("prompt {} is not in the task file", id));
    const double limit = policy == "lsa-threshold" ? 0.5 : entry.at("frac").get<double>();
    const std::vector<policy_cell> cells{make_cell(policy, limit)};
    std::vector<token_id> ids{words_.bos()};
    const auto text = words_.encode(task->prompt);
    ids.insert(ids.end(), text.begin(), text.end());
    memory_options_.max_tokens = static_cast<std::int64_t>(ids.size()) + task->max_new_tokens + 8;
    memory mind(engine_, cells, memory_options_);
    const auto prompt = mind.open_prompt(memory_options_.max_tokens);
    const auto first = engine_.prefill(prompt, ids);
    const std::vector<float> logits(first.begin(), first.end());
    auto b = mind.fork(prompt, cells.front(), memory_options_.max_tokens);
    runner run(engine_, words_, b);
    run_record record;
    run_options options;
    options.max_new_tokens = task->max_new_tokens;
    options.keep_scores = true;
    run.warm_start(record, options);
    run.generate(logits, record, options);

    ++entries;
    const bool same_text = record.text == entry.at("text").get<std::string>();
    texts += same_text;
    if (!same_text) fmt::print("      {} {}: text differs: {}\n", id, policy, record.text);
    const auto& wanted = entry.at("refreshes");
    // Once texts differ, later refreshes are about other tokens.
    const std::size_t count = same_text ? wanted.size() : std::min<std::size_t>(1, wanted.size());
    if (record.refreshes.size() < count) throw std::runtime_error(fmt::format("{}: too few refreshes", id));
    for (std::size_t i = 0; i < count; ++i) {
      const auto& got = record.refreshes[i];
      ++refreshes;
      std::vector<float> scores;
      if (wanted[i].contains("chunk_logits")) scores = wanted[i]["chunk_logits"].get<std::vector<float>>();
      double error = 0;
      if (!scores.empty()) error = compare(got.scores, scores).largest_error;
      worst_logit = std::max(worst_logit, error);
      const auto list = wanted[i].at("resident").get<std::vector<fm::chunk_id>>();
      std::vector<fm::chunk_id> only_here, only_there;
      std::set_difference(got.resident.begin(), got.resident.end(), list.begin(), list.end(),
                          std::back_inserter(only_here));
      std::set_difference(list.begin(), list.end(), got.resident.begin(), got.resident.end(),
                          std::back_inserter(only_there));
      bool close = !scores.empty() && only_here.size() == only_there.size();
      for (std::size_t k = 0; close && k < only_here.size(); ++k) {
        for (const auto other : only_there) {
          close = close && std::abs(scores[static_cast<std::size_t>(only_here[k])] -
                                    scores[static_cast<std::size_t>(other)]) < tolerance;
        }
      }
      same_sets += only_here.empty() && only_there.empty();
      excused += close && !only_here.empty();
      if (!close && !(only_here.empty() && only_there.empty())) {
        fmt::print("      {} {} at {} tokens: {} chunks differ\n", id, policy, got.tokens,
                   only_here.size() + only_there.size());
      }
    }
  }
  result_.expect(worst_logit <= tolerance,
                 fmt::format("chunk logits: largest error {:.2e} in {} refreshes", worst_logit, refreshes));
  result_.expect(same_sets + excused == refreshes,
                 fmt::format("resident sets: {} identical, {} differ by equal logits, of {}", same_sets,
                             excused, refreshes));
  result_.expect(texts == entries, fmt::format("texts: {} identical of {}", texts, entries));
}

void run_check(const check_options& options) {
  verdict result;
  golden_check check(options, result);
  if (options.golden.empty() && options.golden_lsa.empty()) throw std::runtime_error("nothing to check");
  if (!options.golden.empty()) check.check_short(options.golden[0], options.golden[1]);
  if (!options.golden_lsa.empty()) check.check_lsa(options.golden_lsa, read_tasks(options.tasks));
  if (result.failed() != 0) throw command_failed(fmt::format("{} checks failed", result.failed()));
}

}  // namespace

void add_check_command(CLI::App& app) {
  auto options = std::make_shared<check_options>();
  auto* command = app.add_subcommand("check", "Compare with files that another implementation wrote");
  command->add_option("--data", options->data, "Folder of model, tokenizer and indexer")
      ->capture_default_str();
  command->add_option("--indexer", options->indexer, "Indexer of those files [the data folder's]")
      ->check(CLI::ExistingFile);
  command->add_option("--golden", options->golden, "JSON and safetensors file of a short prompt")
      ->expected(2)
      ->check(CLI::ExistingFile);
  auto* lsa =
      command
          ->add_option("--golden-lsa", options->golden_lsa, "JSON of resident sets and texts of long prompts")
          ->check(CLI::ExistingFile);
  auto* tasks = command->add_option("--tasks", options->tasks, "JSONL with the prompts it names")
                    ->check(CLI::ExistingFile);
  lsa->needs(tasks);
  command->add_option("--threads", options->threads, "Threads, 0 = all")
      ->check(thread_count())
      ->capture_default_str();
  command->callback([options] { run_check(*options); });
}

}  // namespace tinylm
