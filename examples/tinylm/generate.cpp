// SPDX-License-Identifier: MIT
#include "generate.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "kernels.hpp"

namespace tinylm {

namespace fm = flashmemory;
using steady = std::chrono::steady_clock;

runner::runner(engine& model, const tokenizer& words, branch& sequence)
    : engine_(model), tokenizer_(words), branch_(sequence), position_(sequence.tokens()) {}

void runner::note_refresh(run_record& record, const run_options& options) {
  fm::selector& select = *branch_.chooser();
  fm::selection_report report;
  require(select.report(branch_.sequence().handle, &report), select.last_fault(), "report");
  if (report.refreshes == refreshes_) return;
  refreshes_ = report.refreshes;
  refresh r;
  r.tokens = report.position + 1;
  r.complete_chunks = report.complete_chunks;
  r.reason = report.reason;
  r.seconds = report.score_seconds + report.recall_seconds;
  r.bytes_recalled = report.recall.bytes;
  r.resident = branch_.resident();
  std::erase_if(r.resident, [&](fm::chunk_id id) { return id >= r.complete_chunks; });
  r.kept_chunks = static_cast<std::int64_t>(r.resident.size());
  if (options.keep_scores) {
    const auto scores = select.last_scores();
    r.scores.assign(scores.data, scores.data + scores.shape[0]);
  }
  record.refreshes.push_back(std::move(r));
}

void runner::warm_start(run_record& record, const run_options& options) {
  if (branch_.chooser() == nullptr) return;
  // The prompt's tokens are part of the branch already; what the call needs is where its newest token stands.
  const fm::batch_item item{branch_.sequence().handle, position_ - 1, 1};
  require(fm::select_chunks(*branch_.chooser(), fm::batch(&item, 1), fm::stream_ref::host()),
          branch_.chooser()->last_fault(), "select_chunks");
  note_refresh(record, options);
}

std::span<const float> runner::advance(std::span<const token_id> ids, run_record& record,
                                       const run_options& options) {
  mass_recorder recorder;
  const auto start = steady::now();
  const bool look = options.record_mass || options.trace != nullptr;
  const auto logits = engine_.step(branch_.sequence(), position_, ids, look ? &recorder : nullptr);
  const fm::batch_item item{branch_.sequence().handle, position_, static_cast<std::int32_t>(ids.size())};
  if (fm::selector* chooser = branch_.chooser()) {
    require(fm::select_chunks(*chooser, fm::batch(&item, 1), fm::stream_ref::host()), chooser->last_fault(),
            "select_chunks");
  }
  if (options.trace != nullptr) {
    const auto handle = branch_.sequence().handle;
    const fm::view<const float, 1> mass(recorder.mass.data(),
                                        static_cast<std::int64_t>(recorder.mass.size()));
    options.trace->attention_mass(handle, position_ + item.num_tokens - 1, mass);
    for (std::size_t i = 0; i < ids.size(); ++i)
      options.trace->token_text(handle, position_ + static_cast<std::int64_t>(i), tokenizer_.piece(ids[i]));
  }
  record.step_seconds.push_back(std::chrono::duration<double>(steady::now() - start).count());
  record.attention_seconds.push_back(engine_.attention_seconds());
  position_ += item.num_tokens;
  if (branch_.chooser() != nullptr) note_refresh(record, options);
  record.footprints.push_back(branch_.measure());
  if (options.record_mass) record.masses.push_back(std::move(recorder.mass));
  return logits;
}

std::vector<float> runner::feed(std::span<const token_id> ids, bool choose_anew, run_record& record,
                                const run_options& options) {
  std::span<const float> logits;
  while (!ids.empty()) {
    const auto now = ids.first(std::min<std::size_t>(ids.size(), max_step_tokens));
    ids = ids.subspan(now.size());
    if (ids.empty() && choose_anew && branch_.chooser() != nullptr) {
      require(branch_.chooser()->request_refresh(branch_.sequence().handle), branch_.chooser()->last_fault(),
              "request_refresh");
    }
    logits = advance(now, record, options);
  }
  return {logits.begin(), logits.end()};
}

void runner::generate(std::span<const float> logits, run_record& record, const run_options& options) {
  for (std::int64_t i = 0; i < options.max_new_tokens; ++i) {
    const token_id id = greedy(logits);
    record.ids.push_back(id);
    record.text += tokenizer_.piece(id);
    record.ended = id == tokenizer_.newline() || id == tokenizer_.eos();
    if (options.on_step) options.on_step(record);
    if (record.ended || i + 1 == options.max_new_tokens) break;
    logits = advance(std::span<const token_id>(&record.ids.back(), 1), record, options);
  }
}

}  // namespace tinylm
