// SPDX-License-Identifier: MIT
// Speed and memory of llama.cpp by itself and through flashmemory, taking turns in one process.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <flashmemory/io/output_file.hpp>
#include <nlohmann/json.hpp>

#include "../tinylm/option_ranges.hpp"
#include "machine.hpp"
#include "program_options.hpp"
#include "text_file.hpp"

namespace llama_flashmemory {

namespace {

using steady = std::chrono::steady_clock;

struct bench_options {
  program_options shared;
  std::string text;
  std::vector<std::string> engines{"llama.cpp", "llama.cpp-nofa", "full", "quest"};
  std::int64_t depth = 7936;
  int block = 16;
  int rounds = 5;
  std::string json;
};

/// One engine and what it took.
struct contestant {
  std::string name;
  std::unique_ptr<runner> engine;
  std::int64_t depth = 0;
  llama_token next = 0;
  double prompt_seconds = 0;
  std::vector<double> piece_rates, rates, steps;
  std::vector<llama_token> generated;
};

double seconds(steady::time_point since) {
  return std::chrono::duration<double>(steady::now() - since).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

/// "llama.cpp", "llama.cpp-nofa", either with "@TOKENS" for another depth, or a policy.
contestant make(const std::string& name, const text_model& model, const bench_options& o) {
  contestant c;
  c.name = name;
  const auto at = name.find('@');
  const std::string kind = name.substr(0, at);
  c.depth = at == std::string::npos ? o.depth : std::stoll(name.substr(at + 1));
  auto settings = o.shared.runners(model, kind.rfind("llama.cpp", 0) == 0 ? "full" : kind);
  const std::int64_t needed = c.depth + std::int64_t{o.block} * o.rounds + 1;
  if (needed > settings.context)
    throw std::runtime_error(
        fmt::format("{}: {} tokens do not fit a context of {}", name, needed, settings.context));
  settings.context = std::min(settings.context, (needed + 255) / 256 * 256);
  settings.flash_attention = kind != "llama.cpp-nofa";
  c.engine = kind.rfind("llama.cpp", 0) == 0 ? make_plain(model, settings) : make_adapted(model, settings);
  return c;
}

void run(const bench_options& o) {
  if (!o.json.empty()) flashmemory::check_output_file(o.json);
  const text_model model(o.shared.model);
  std::string words;
  for (const auto& p : read_paragraphs(o.text)) words += p + "\n\n";
  auto text = model.prompt_frame().before;
  const auto more = model.tokens(words);
  text.insert(text.end(), more.begin(), more.end());
  const double model_rss = process_mebibytes("VmRSS:");

  std::vector<contestant> all;
  for (const auto& name : o.engines) all.push_back(make(name, model, o));
  for (const auto& c : all) {
    if (static_cast<std::int64_t>(text.size()) < c.depth)
      throw std::runtime_error(fmt::format("{}: has only {} tokens, not {}", o.text, text.size(), c.depth));
  }

  // Prompts, piece by piece in turn, so that what else the machine does hits all alike.
  for (std::int64_t at = 0, left = 1; left > 0; at += o.shared.ubatch) {
    left = 0;
    for (auto& c : all) {
      if (at >= c.depth) continue;
      const auto count = std::min<std::int64_t>(o.shared.ubatch, c.depth - at);
      const std::vector<llama_token> piece(text.begin() + at, text.begin() + at + count);
      const auto start = steady::now();
      c.engine->prompt(piece);
      const double took = seconds(start);
      c.prompt_seconds += took;
      c.piece_rates.push_back(static_cast<double>(count) / took);
      left += c.depth - at - count;
    }
  }
  for (auto& c : all) c.next = greedy(c.engine->logits(), model.vocabulary());
  for (int round = 0; round < o.rounds; ++round) {
    for (auto& c : all) {
      const auto block_start = steady::now();
      for (int i = 0; i < o.block; ++i) {
        c.generated.push_back(c.next);
        const auto start = steady::now();
        c.engine->step(c.next);
        c.steps.push_back(seconds(start));
        c.next = greedy(c.engine->logits(), model.vocabulary());
      }
      c.rates.push_back(o.block / seconds(block_start));
    }
  }

  nlohmann::json report;
  report["model"] = o.shared.model.substr(o.shared.model.find_last_of('/') + 1);
  report["processor"] = processor();
  report["threads"] = o.shared.threads;
  report["llama.cpp"] = llama_version();
  report["flashmemory"] = flashmemory::version();
  report["cache"] = o.shared.cache;
  report["budget"] = o.shared.budget;
  report["depth"] = o.depth;
  report["ubatch"] = o.shared.ubatch;
  report["rss_model_mib"] = model_rss;
  report["rss_mib"] = process_mebibytes("VmRSS:");
  report["rss_peak_mib"] = process_mebibytes("VmHWM:");
  fmt::print("{} at {} tokens, {} threads, {}\n", report["model"].get<std::string>(), o.depth,
             o.shared.threads, processor());
  for (const auto& c : all) {
    const auto f = c.engine->footprint();
    std::size_t equal = 0;
    if (c.depth == all.front().depth)
      while (equal < c.generated.size() && c.generated[equal] == all.front().generated[equal]) ++equal;
    nlohmann::json row{{"engine", c.name},
                       {"depth", c.depth},
                       {"prefill_tokens_per_second", static_cast<double>(c.depth) / c.prompt_seconds},
                       {"prefill_last_pieces", c.piece_rates},
                       {"decode_tokens_per_second", median(c.rates)},
                       {"decode_blocks", c.rates},
                       {"median_step_ms", 1e3 * median(c.steps)},
                       {"steps", c.steps.size()},
                       {"equal_to_first", equal},
                       {"resident_bytes", f.resident_bytes},
                       {"index_bytes", f.index_bytes},
                       {"all_bytes", f.all_bytes},
                       {"resident_chunks", f.resident_chunks},
                       {"chunks", f.chunks},
                       {"refreshes", f.refreshes}};
    fmt::print(
        "{:18} prefill {:7.1f} tok/s  decode {:6.1f} tok/s (median step {:6.2f} ms)  {:3} of {} equal to {}  "
        "K and V {:.1f} of {:.1f} MiB\n",
        c.name, row["prefill_tokens_per_second"].get<double>(), median(c.rates), 1e3 * median(c.steps), equal,
        c.generated.size(), all.front().name, static_cast<double>(f.resident_bytes) / 1048576,
        static_cast<double>(f.all_bytes) / 1048576);
    report["engines"].push_back(std::move(row));
  }
  fmt::print("process: {:.0f} MiB resident, {:.0f} at most, {:.0f} with the model alone\n",
             process_mebibytes("VmRSS:"), process_mebibytes("VmHWM:"), model_rss);
  if (!o.json.empty()) flashmemory::write_file(o.json, report.dump(1) + "\n");
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto o = std::make_shared<bench_options>();
  auto* command = app.add_subcommand("bench", "speed and memory, engines taking turns in one process");
  add_shared_options(*command, o->shared);
  command->add_option("--text", o->text, "text file for the prompt")->required();
  command
      ->add_option("--engines", o->engines,
                   "in turn: llama.cpp, llama.cpp-nofa (without flash attention), or a policy; each with "
                   "@TOKENS for another depth")
      ->delimiter(',');
  command->add_option("--depth", o->depth, "tokens of the prompt")
      ->check(tinylm::count(1))
      ->capture_default_str();
  command->add_option("--block", o->block, "tokens an engine generates in its turn")
      ->check(tinylm::within(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--rounds", o->rounds, "turns of each")
      ->check(tinylm::within(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--json", o->json, "file for the report");
  command->callback([o] { run(*o); });
}

}  // namespace llama_flashmemory
