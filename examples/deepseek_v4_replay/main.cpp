// SPDX-License-Identifier: MIT
// Decode of DeepSeek-V4-Flash at its real dimensions, with all chunks resident and with the query-critical ones only.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <flashmemory/io/output_file.hpp>
#include <thread>

#include "admission.hpp"
#include "ceilings.hpp"
#include "indexer.hpp"
#include "measure.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace fm = flashmemory;
using namespace replay;

namespace {

struct settings {
  std::vector<std::int64_t> contexts = {256 << 10, 512 << 10, 1 << 20};
  std::int32_t batch = 16;
  std::int64_t steps = 512, warmup = 256;
  double budget = 0.1, drift = 0.1;
  double gpu_budget = 0;  // GB; 0 = 95 % of what is free
  std::string json, trace;
  bool progress = false;
};

/// The planted topics of a context: a topic nearly fills the budget.
topic_rule rule_for(const engine_options& o, const settings& s) {
  const fm::kv_geometry g = store_geometry(o);
  const fm::selection_policy p = selection_policy_of(o);
  const std::int64_t kept = fm::budget_chunks(p, g, o.prompt / g.tokens_per_chunk());
  topic_rule rule;
  rule.planted =
      std::max<std::int32_t>(1, std::int32_t(0.98 * double(kept - p.sink_chunks - p.recent_chunks)));
  rule.drift = std::max<std::int32_t>(1, std::int32_t(std::lround(s.drift * rule.planted)));
  rule.topics = std::int32_t((s.steps + s.warmup) / o.interval) + 2;
  rule.chunk_entries = model::chunk_entries;
  return rule;
}

engine_options options_for(const settings& s, std::int64_t context, bool all_resident, std::size_t gpu_bytes,
                           pinned_arena& arena) {
  engine_options o;
  o.rows = s.batch;
  o.context = context;
  o.prompt = context - s.steps - s.warmup;
  o.budget_fraction = s.budget;
  o.gpu_bytes = gpu_bytes;
  o.pinned = arena.resource();
  o.topics = rule_for(o, s);  // of the mode with a budget, for both
  o.all_resident = all_resident;
  if (!all_resident) o.trace = s.trace;
  return o;
}

comparison compare(const settings& s, std::int64_t context, const fm::dual_encoder_config& indexer,
                   const planted_directions& directions, std::size_t gpu_bytes, pinned_arena& arena,
                   progress_bar& bar) {
  comparison c;
  for (const bool all_resident : {true, false}) {
    bar.title(fmt::format("{}K {}", context >> 10, all_resident ? "all resident" : "flashmemory "));
    const engine_options o = options_for(s, context, all_resident, gpu_bytes, arena);
    mode_result& r = all_resident ? c.all_resident : c.flashmemory;
    r = measure(o, indexer, directions, s.warmup, s.steps, bar);
    bar.update("admission", 0, 1);
    r.sequences = admitted_sequences(o, r.bytes, gpu_bytes);
  }
  return c;
}

int run(const settings& s) {
  if (!s.json.empty()) fm::check_output_file(s.json);
  if (!s.trace.empty()) fm::check_output_file(s.trace);
  if (!s.trace.empty() && s.contexts.size() != 1)
    throw std::runtime_error(
        fmt::format("--trace: is of one context, and --contexts names {}", s.contexts.size()));
  for (const std::int64_t context : s.contexts)
    if (context - s.steps - s.warmup < 4096)
      throw std::runtime_error(
          fmt::format("--contexts {}: --steps {} and --warmup {} leave no prompt of 4096 tokens", context,
                      s.steps, s.warmup));
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print("skipped: no CUDA device\n");
    return 0;
  }
  progress_bar bar(s.progress);
  bar.title("set-up");
  bar.update("indexer", 0, 1);
  const std::int64_t longest = *std::max_element(s.contexts.begin(), s.contexts.end());
  const fm::dual_encoder_config indexer = random_indexer(longest);
  circumstances about = measured_circumstances();
  std::size_t free_bytes = 0, total_bytes = 0;
  must(cudaMemGetInfo(&free_bytes, &total_bytes));
  about.gpu_bytes =
      s.gpu_budget > 0 ? std::size_t(s.gpu_budget * 1e9) : std::size_t(0.95 * double(free_bytes));
  about.budget_fraction = s.budget;
  about.drift = s.drift;
  pinned_arena arena(int(std::clamp(std::thread::hardware_concurrency(), 1u, 16u)));
  about.interval = options_for(s, longest, false, 0, arena).interval;
  const std::int32_t topics = options_for(s, longest, false, 0, arena).topics.topics;
  const device_array<float> values = make_directions(indexer, topics);
  const planted_directions directions{values.data(), topics};

  std::vector<comparison> results;
  for (const std::int64_t context : s.contexts) {
    results.push_back(compare(s, context, indexer, directions, about.gpu_bytes, arena, bar));
    arena.trim();  // blocks of another context have other sizes
  }
  bar.clear();
  fmt::print("{}", table_text(results, about));
  if (!s.json.empty()) {
    fm::write_file(s.json, json_text(results, about));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  settings s;
  CLI::App app{
      "Replays decoding of DeepSeek-V4-Flash, attention and indexers only, with all chunks on the GPU and "
      "with "
      "the query-critical ones only"};
  app.add_option("--contexts", s.contexts, "tokens of a sequence, e.g. 262144,524288,1048576")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{8192}, std::int64_t{1} << 24));
  app.add_option("--batch", s.batch, "sequences that decode together")->check(CLI::Range(1, max_rows));
  app.add_option("--steps", s.steps, "measured decode steps")->check(CLI::Range(1, 100000));
  app.add_option("--warmup", s.warmup, "steps before them")->check(CLI::Range(1, 100000));
  app.add_option("--budget", s.budget, "share of the chunks that flashmemory keeps")
      ->check(CLI::Range(0.001, 1.0));
  app.add_option("--drift", s.drift, "share of a topic's chunks that the next one replaces")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--gpu-budget", s.gpu_budget,
                 "GB of GPU memory in which sequences are counted; 0 = 95 % of what is free")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--json", s.json, "file for everything measured");
  app.add_option("--trace", s.trace,
                 "file for what is chosen, as JSON lines for trace_view; slows the host down");
  app.add_flag("--progress", s.progress, "say what is going on even if stderr is no terminal");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(s);
  } catch (const std::exception& e) {
    fmt::print(stderr, "\ndeepseek_v4_replay: {}\n", e.what());
    return 1;
  }
}
