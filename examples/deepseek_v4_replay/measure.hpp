// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace replay {

/// Mean and percentiles of some steps, in microseconds.
struct spread {
  double mean = 0, p50 = 0, p99 = 0, max = 0;
};
spread spread_of(std::vector<double> values);

/// One mode at one context length.
struct mode_result {
  bool all_resident = false;
  std::int32_t rows = 0;
  std::int64_t context = 0, steps = 0;
  spread step, tables, graph, host;
  std::vector<step_times> times;  ///< of each step
  double level1_us = 0;  ///< device time of the step's last part where a refresh was due, less where none was
  double score_us = 0;   ///< until the host had level 1's scores
  double stall_us = 0;   ///< per step: attention's stream waiting for recalls
  double longest_stall_us = 0;
  std::int64_t refreshes = 0;
  std::int64_t late = 0;    ///< of them, those that took more steps than the selector's max_staleness
  std::int64_t waited = 0;  ///< those whose copies somebody had to wait for
  double staleness = 0;     ///< steps, mean
  std::int64_t max_staleness = 0;
  double changed = 0;         ///< share of a refreshed set that had to be recalled
  double recalled_bytes = 0;  ///< per refresh
  std::int64_t refused = 0;
  double planted_resident = 1, least_planted_resident = 1;
  double planted_picked = 0;
  double prefill_seconds = 0;
  device_bytes bytes;
  std::int64_t sequences = 0;  ///< that fit into the GPU budget
};

/// How a replay reports what it is doing.
class progress_sink {
 public:
  virtual ~progress_sink() = default;
  virtual void update(const char* what, std::int64_t done, std::int64_t total) = 0;
};

/// Prefills, warms up and runs `steps` steps.
mode_result measure(const engine_options& options, const flashmemory::dual_encoder_config& indexer,
                    const planted_directions& directions, std::int64_t warmup, std::int64_t steps,
                    progress_sink& progress);

}  // namespace replay
