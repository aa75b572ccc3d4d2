// SPDX-License-Identifier: MIT
#include "document_recorder.hpp"

#include <algorithm>
#include <utility>

namespace tinylm {

namespace fm = flashmemory;

namespace {

/// Those of an ascending list that lie in [begin, end).
std::vector<std::int64_t> between(const std::vector<std::int64_t>& list, std::int64_t begin,
                                  std::int64_t end) {
  return {std::lower_bound(list.begin(), list.end(), begin), std::lower_bound(list.begin(), list.end(), end)};
}

}  // namespace

document_recorder::document_recorder(fm::train::recorder& to, fm::train::recording_id id,
                                     const fm::train::attention_mass_options& options,
                                     std::vector<std::int64_t> queries, std::vector<std::int64_t> attended,
                                     std::int32_t skip_sink, std::int32_t skip_recent)
    : to_(to),
      id_(id),
      options_(options),
      queries_(std::move(queries)),
      attended_(std::move(attended)),
      skip_sink_(skip_sink),
      skip_recent_(skip_recent) {}

void document_recorder::on_layer(const served_sequence& sequence, const layer_pass& pass) {
  const auto& g = to_.geometry();
  const std::int64_t begin = pass.position, end = begin + pass.input.shape[0];
  if (pass.layer == 0) {
    rows_.clear();
    paid_.clear();
    positions_ = between(attended_, begin, end);
  }
  to_.add_hidden(id_, pass.layer, begin, pass.input);

  for (const std::int64_t position : between(queries_, begin, end)) {
    auto& rows = rows_[position];
    rows.resize(g.queries.size());
    for (std::size_t tap = 0; tap < rows.size(); ++tap)
      if (g.queries[tap].layer == pass.layer) {
        const float* from = pass.input.data + (position - begin) * pass.input.stride[0];
        rows[tap].assign(from, from + pass.input.shape[1]);
      }
  }

  if (!positions_.empty()) {
    // Chosen tokens lie scattered in a prompt: their queries side by side.
    const std::int64_t heads = pass.q.shape[1], dim = pass.q.shape[2];
    std::vector<float> q;
    for (const std::int64_t position : positions_) {
      const float* from = pass.q.data + (position - begin) * pass.q.stride[0];
      q.insert(q.end(), from, from + heads * dim);
    }
    const auto count = static_cast<std::int64_t>(positions_.size());
    const fm::view<const std::int64_t, 1> where(positions_.data(), count);
    const fm::view<const float, 3> queries(q.data(), count, heads, dim);
    if (begin == 0)  // the prompt's keys are at hand as they were computed
      fm::train::attention_mass(where, queries, pass.k, 1, pass.layer, options_, paid_);
    else
      fm::train::attention_mass(*sequence.store, sequence.handle, where, queries, pass.layer, options_,
                                paid_);
  }
  if (pass.layer + 1 == g.layers) finish_pass();
}

void document_recorder::finish_pass() {
  std::vector<const float*> rows;
  for (const auto& [position, taps] : rows_) {
    rows.clear();
    for (const auto& row : taps) rows.push_back(row.data());
    to_.add_query(id_, position, rows.data());
  }
  for (std::size_t t = 0; t < positions_.size(); ++t) {
    forget_resident(positions_[t], paid_[t]);
    to_.add_attention(id_, positions_[t], paid_[t]);
  }
}

/// A row at `position` belongs to windows of earlier queries, whose candidates end before its own do.
void document_recorder::forget_resident(std::int64_t position, fm::train::token_attention& paid) const {
  const std::int64_t chunk = to_.geometry().tokens_per_chunk();
  const std::int64_t first = skip_sink_ * chunk;
  const std::int64_t end = skip_recent_ > 0 ? ((position + 1) / chunk - skip_recent_) * chunk : position + 1;
  paid.erase(std::remove_if(paid.begin(), paid.end(),
                            [&](const auto& e) { return e.entry < first || e.entry >= end; }),
             paid.end());
}

}  // namespace tinylm
