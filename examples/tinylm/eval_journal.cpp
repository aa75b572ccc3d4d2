// SPDX-License-Identifier: MIT
#include "eval_journal.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <utility>

namespace tinylm {

namespace fm = flashmemory;

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(footprint, slots, index, tables, everything, resident_chunks, chunks)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(refresh, tokens, complete_chunks, kept_chunks, reason, seconds,
                                   bytes_recalled, resident)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(run_record, ids, text, ended, step_seconds, attention_seconds, refreshes,
                                   footprints)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(score, found, expected)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(eval_totals, seconds, prefill_seconds, prefill_tokens, recalled_chunks,
                                   recalled_bytes, refused_chunks, faults, fast_peak_bytes)

namespace {

constexpr int version = 1;

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw std::runtime_error(fmt::format("{}: {}", path, what));
}

/// The file's whole lines; what stands after the last newline was being written when somebody pulled the plug.
std::string whole_lines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  const auto end = text.rfind('\n');
  text.resize(end == std::string::npos ? 0 : end + 1);
  return text;
}

}  // namespace

eval_journal::eval_journal(std::string path, const nlohmann::json& settings) : path_(std::move(path)) {
  const std::string text = whole_lines(path_);
  const nlohmann::json head = {{"tinylm_eval", version}, {"settings", settings}};
  for (std::size_t at = 0; at < text.size();) {
    const auto end = text.find('\n', at);
    auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                      text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (line.is_discarded()) refuse(path_, fmt::format("line {} is no JSON", lines_.size() + 2));
    if (at == 0 && line != head)
      refuse(path_,
             "holds the results so far of another evaluation; go on with that one, or delete the file");
    if (at != 0) lines_.push_back(std::move(line));
    at = end + 1;
  }
  // Cut to the whole lines, or made with the first one.
  std::error_code error;
  if (!text.empty()) std::filesystem::resize_file(path_, text.size(), error);
  if (error) refuse(path_, error.message());
  file_.reset(std::fopen(path_.c_str(), text.empty() ? "wbe" : "abe"));
  if (!file_) refuse(path_, std::strerror(errno));
  if (text.empty()) write_line(head);
}

void eval_journal::restore(std::size_t index, const task_record& task, const std::vector<policy_cell>& cells,
                           std::vector<eval_result>& results) const {
  try {
    const nlohmann::json& line = lines_.at(index);
    const nlohmann::json& of_cells = line.at("cells");
    if (line.at("id") != task.id || of_cells.size() != cells.size())
      throw std::runtime_error("another prompt");
    for (std::size_t c = 0; c < cells.size(); ++c) {
      eval_result result;
      result.task = &task;
      result.cell = &cells[c];
      of_cells[c].at("answer").get_to(result.answer);
      of_cells[c].at("run").get_to(result.run);
      results.push_back(std::move(result));
    }
  } catch (const std::exception& e) {
    refuse(path_, fmt::format("line {}: {}", index + 2, e.what()));
  }
}

eval_totals eval_journal::totals() const {
  if (lines_.empty()) return {};
  try {
    return lines_.back().at("totals").get<eval_totals>();
  } catch (const nlohmann::json::exception& e) {
    refuse(path_, fmt::format("line {}: {}", lines_.size() + 1, e.what()));
  }
}

void eval_journal::add(std::span<const eval_result> results, const eval_totals& totals) {
  nlohmann::json cells = nlohmann::json::array();
  for (const eval_result& r : results) cells.push_back({{"answer", r.answer}, {"run", r.run}});
  write_line({{"id", results.front().task->id}, {"totals", totals}, {"cells", std::move(cells)}});
}

void eval_journal::write_line(const nlohmann::json& line) {
  // Generated text may end inside a multi-byte character.
  const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() || std::fflush(file_.get()) != 0)
    refuse(path_, fmt::format("cannot be written: {}", std::strerror(errno)));
}

void eval_journal::remove() {
  file_.reset();
  std::remove(path_.c_str());
}

}  // namespace tinylm
