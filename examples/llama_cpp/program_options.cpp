// SPDX-License-Identifier: MIT
#include "program_options.hpp"

#include <fmt/format.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <stdexcept>

#include "../tinylm/option_ranges.hpp"
#include "indexer_choice.hpp"

namespace llama_flashmemory {

namespace fm = flashmemory;

fm::thread_hook use_threads(std::int32_t threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
  return threads == 1 ? fm::serial_threads() : fm::default_threads();
}

void add_shared_options(CLI::App& command, program_options& o) {
  command.add_option("--model", o.model, "GGUF file")->required();
  command.add_option("--policy", o.policy, "who chooses what stays resident")
      ->check(CLI::IsMember(policy_names()))
      ->capture_default_str();
  command.add_option("--budget", o.budget, "share of the chunks that stays resident")
      ->check(tinylm::fraction())
      ->capture_default_str();
  command.add_option("--interval", o.interval, "tokens between two selections")
      ->check(tinylm::within(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--recent", o.recent, "newest complete chunks, always resident")
      ->check(tinylm::within(0, 1 << 20))
      ->capture_default_str();
  command.add_option("--indexer", o.indexer,
                     "trained indexer for lsa; without one the best that needs no training");
  command.add_option("--threads", o.threads, "of llama.cpp and of flashmemory")
      ->check(tinylm::within(1, 1024))
      ->capture_default_str();
  command.add_option("--context", o.context, "tokens of one sequence; 0 = what the model was trained for")
      ->check(tinylm::count())
      ->capture_default_str();
  command.add_option("--ubatch", o.ubatch, "tokens of one pass of a prompt")
      ->check(tinylm::within(1, 1 << 16))
      ->capture_default_str();
  command.add_option("--cache", o.cache, "element type of K and V")
      ->check(CLI::IsMember({"f16", "bf16", "f32", "q8_0"}))
      ->capture_default_str();
  command.add_option("--backing", o.backing,
                     "new file for what is not resident; without one it is in memory");
  command.add_flag("--self-test", o.self_test, "prove store and attention before the first token");
  command.add_flag("--any-llama", o.any_version, "go on with a llama.cpp that was not tested");
}

runner_options program_options::runners(const text_model& loaded, const std::string& policy_name) const {
  runner_options r;
  r.context = context == 0 ? loaded.trained_context() : context;
  if (r.context > loaded.trained_context())
    throw std::runtime_error(fmt::format("--context: {} tokens are more than the {} that {} was trained for",
                                         r.context, loaded.trained_context(), loaded.path()));
  r.threads = threads;
  r.ubatch = ubatch;
  r.cache = cache == "bf16"   ? GGML_TYPE_BF16
            : cache == "f32"  ? GGML_TYPE_F32
            : cache == "q8_0" ? GGML_TYPE_Q8_0
                              : GGML_TYPE_F16;
  auto& a = r.adapted;
  a.policy = policy_name.empty() ? policy : policy_name;
  a.selection.budget_fraction = budget;
  a.selection.interval = interval;
  a.selection.recent_chunks = recent;
  a.indexer = indexer;
  // Without training a chunk's need is what the newest tokens look at: what was needed lately stays for a while, where the
  // budget is not so small that it would keep new ones out.
  if (a.policy == "lsa" && indexer.empty() && budget * static_cast<double>(r.context) / 64 >= 32)
    a.selection.hold = 0.9f;
  a.backing_path = backing;
  a.any_version = any_version;
  a.self_test = self_test;
  a.threads = use_threads(threads);
  return r;
}

}  // namespace llama_flashmemory
