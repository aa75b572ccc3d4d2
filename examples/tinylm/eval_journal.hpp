// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "eval_report.hpp"

namespace tinylm {

/// What an evaluation did besides its results; sums over all runs that it took.
struct eval_totals {
  double seconds = 0;
  double prefill_seconds = 0;
  std::int64_t prefill_tokens = 0;
  std::int64_t recalled_chunks = 0, recalled_bytes = 0, refused_chunks = 0, faults = 0;
  std::int64_t fast_peak_bytes = 0;
};

/// The results of an evaluation as they are earned: a line of JSON per prompt, in a file beside the one that is written
/// at the end. A run that was stopped, by whatever, goes on after the last whole line.
class eval_journal {
 public:
  /// \param settings  what results depend on
  /// \throws std::runtime_error naming the file if it cannot be written, or holds results under other settings
  eval_journal(std::string path, const nlohmann::json& settings);

  /// Prompts whose results are there: the first ones.
  std::size_t prompts() const noexcept { return lines_.size(); }

  /// Appends the results of prompt `index`, one per cell.
  /// \throws std::runtime_error naming the file if the line does not fit tasks and cells
  void restore(std::size_t index, const task_record& task, const std::vector<policy_cell>& cells,
               std::vector<eval_result>& results) const;

  /// Totals up to the last line.
  eval_totals totals() const;

  /// The next prompt's results, one per cell; on the disk, as far as the system is concerned, when it returns.
  /// \throws std::runtime_error naming the file
  void add(std::span<const eval_result> results, const eval_totals& totals);

  /// Once everything stands elsewhere.
  void remove();

 private:
  void write_line(const nlohmann::json& line);

  std::string path_;
  std::vector<nlohmann::json> lines_;  ///< read at the start
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_{nullptr, std::fclose};
};

}  // namespace tinylm
