// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/decode_step.hpp>
#include <flashmemory/cuda/score.hpp>
#include <flashmemory/cuda/top_k.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/select/policy.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "caches.hpp"
#include "content.hpp"
#include "device.hpp"
#include "memory.hpp"

namespace replay {

/// One replay.
struct engine_options {
  bool all_resident = false;     ///< every chunk stays on the device, and there is no level 1
  std::int32_t rows = 0;         ///< sequences, one per row
  std::int64_t context = 0;      ///< tokens of a sequence at the end, at most
  std::int64_t prompt = 0;       ///< tokens of a sequence at the start; rows differ by up to a chunk
  double budget_fraction = 0.1;  ///< of the chunks that may stay
  std::int32_t interval = 64;    ///< steps between two refreshes of a sequence
  std::size_t gpu_bytes = 0;     ///< fast-tier budget of the store
  topic_rule topics;
  flashmemory::memory_resource pinned;
  std::string trace;  ///< file for what is chosen, for trace_view; empty = none
};

/// What of the device's memory is whose.
struct device_bytes {
  // of one sequence
  std::size_t slots = 0, keys = 0, tables = 0, caches = 0, scratch = 0;
  // whatever the number of sequences
  std::size_t transition = 0, level1 = 0;

  std::size_t per_sequence() const noexcept { return slots + keys + tables + caches + scratch; }
  std::size_t fixed() const noexcept { return transition + level1; }
};

/// What one step took, in microseconds of device time, and what it found.
struct step_times {
  double prepare = 0;    ///< tables: until the graph starts
  double graph = 0;      ///< attention, level 2, appends
  double selection = 0;  ///< level 1 where due, waits for copies, the change of sets
  double host = 0;       ///< host time of the library's calls and the launch, without waiting for the device
  bool scored = false;   ///< a refresh was due
  double planted_resident =
      1;  ///< share of the chunks that queries pointed at that were resident, over all rows

  double step() const noexcept { return prepare + graph + selection; }
};

/// The store's shape and the policies of both modes.
flashmemory::kv_geometry store_geometry(const engine_options& options);
flashmemory::selection_policy selection_policy_of(const engine_options& options);
flashmemory::sequence_options sequence_options_of(const engine_options& options);
/// Bytes on the device that a row needs besides the store and the caches: level 2's scores and lists, tables.
std::size_t row_scratch_bytes(const engine_options& options);

/// Decodes a batch as an engine would: its own caches beside the store, the step captured once as a CUDA graph.
class engine {
 public:
  /// \param indexer     level 1; not used with all_resident
  /// \param directions  of planted keys
  engine(const engine_options& options, const flashmemory::dual_encoder_config& indexer,
         const planted_directions& directions);
  ~engine();
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;

  /// Appends every sequence's prompt. `progress` is called with the tokens done so far, of all rows.
  void prefill(const std::function<void(std::int64_t)>& progress);

  /// Runs `count` steps; the times of those from `warmup` on are kept. The host is one step ahead of the device.
  std::vector<step_times> run(std::int64_t count, std::int64_t warmup,
                              const std::function<void(std::int64_t)>& progress);

  /// Share of the planted entries in resident chunks that level 2 picked in the last CSA layer of the last step.
  double planted_picked();

  device_bytes bytes() const;
  flashmemory::store_counters store_counters() const;
  flashmemory::selector_counters selector_counters() const;
  /// Host seconds from a level 1 launch until its scores were there, mean over the last refresh of each row.
  double score_seconds() const;

 private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace replay
