// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <string>
#include <vector>

#include "src/c/handles.hpp"
#include "src/c/structs.hpp"
#include "src/c/tensors.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {

/// An engine's threads, whose exceptions end at the call.
struct engine_threads {
  fm_threads engine{};
  bool threw = false;

  explicit engine_threads(const fm_threads& t) noexcept : engine(t) {}
  thread_hook hook() noexcept {
    if (engine.run) return {this, &run, engine.concurrency};
    return engine.concurrency == 1 ? serial_threads() : default_threads();
  }

 private:
  static void run(void* self, std::int32_t count, void (*task)(void*, std::int32_t), void* context) {
    auto& t = *static_cast<engine_threads*>(self);
    try {
      t.engine.run(t.engine.context, count, task, context);
    } catch (...) {
      t.threw = true;
    }
  }
};

struct store_object {
  std::unique_ptr<tiered_chunk_store> store;
  place where = place::host;
};

/// Scores by a callback. Not for several threads at a time, as its selector is not.
class callback_indexer final : public indexer {
 public:
  callback_indexer(fm_score_callback score, void* context, const fm_query_tap* taps, std::int64_t count,
                   bool log_odds);
  status score(const score_request& request, view<float, 1> scores) noexcept override;

  std::string threw;  ///< what the callback has thrown in the call that runs
  bool has_thrown = false;

 private:
  fm_score_callback score_;
  void* context_;
};

struct indexer_object {
  std::unique_ptr<indexer> index;
  enum class make { dual_encoder, pooled_keys, callback, other } made = make::other;
};

struct selector_object {
  engine_threads threads;
  store_object* over = nullptr;
  indexer_object* by = nullptr;
  slot* store_slot = nullptr;
  slot* index_slot = nullptr;
  std::unique_ptr<selector> select;

  explicit selector_object(const fm_threads& t) noexcept : threads(t) {}
};

/// Defaults, and what of C++ a struct of C stands for.
fm_store_options default_store_options();
fm_policy default_policy();
fm_sequence_options default_sequence_options();
store_options store_options_of(const fm_store_options& o);
selection_policy policy_of(const fm_policy& p);
sequence_options sequence_options_of(const fm_sequence_options& o);
fm_policy c_policy(const selection_policy& p);

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
