// SPDX-License-Identifier: MIT
#include "level2.hpp"

namespace replay {

namespace fm = flashmemory;

namespace {

constexpr std::int32_t top = model::top_entries;

std::int64_t capacity_of(std::int64_t max_chunks) noexcept { return max_chunks * model::chunk_entries; }
std::int64_t groups_of(std::int64_t max_chunks) noexcept {
  return capacity_of(max_chunks) / fm::cuda::score_group;
}

}  // namespace

std::size_t level2::bytes_per_row(std::int64_t max_chunks) noexcept {
  return std::size_t(capacity_of(max_chunks) + groups_of(max_chunks)) * sizeof(float) +
         std::size_t(top + 1) * sizeof(std::int32_t) +
         std::size_t(model::csa_layers) * sizeof(fm::cuda::score_job) + sizeof(fm::cuda::select_row);
}

level2::level2(const fm::kv_geometry& geometry, const fm::cuda::chunk_tables& tables,
               const std::byte* queries, const float* weights)
    : layout_(geometry),
      tables_(tables),
      rows_(static_cast<std::int32_t>(tables.options().rows)),
      max_chunks_(tables.options().max_chunks),
      logits_(std::size_t(rows_ * capacity_of(max_chunks_))),
      maxima_(std::size_t(rows_ * groups_of(max_chunks_))),
      ids_(std::size_t(rows_) * top),
      counts_(std::size_t(rows_)) {
  const fm::cuda::chunk_row* const rows = tables.rows().data;
  std::vector<fm::cuda::score_job> jobs;
  for (std::int32_t layer = 0; layer < model::csa_layers; ++layer)
    for (std::int32_t r = 0; r < rows_; ++r) {
      const std::int64_t at = std::int64_t{layer} * rows_ + r;
      fm::cuda::score_job job;
      job.queries = queries + at * model::index_heads * model::lightning_dim;
      job.weights = weights + at * model::index_heads;
      job.pages = tables.lists() + r * max_chunks_;
      job.pages_offset = static_cast<std::int64_t>(layout_.value_offset(layer, 0));
      job.device_count = &rows[r].entries;
      job.logits = logits_.data() + r * capacity_of(max_chunks_);
      job.group_max = maxima_.data() + r * groups_of(max_chunks_);
      jobs.push_back(job);
    }
  std::vector<fm::cuda::select_row> choices;
  for (std::int32_t r = 0; r < rows_; ++r) {
    fm::cuda::select_row row;
    row.scores = logits_.data() + r * capacity_of(max_chunks_);
    row.group_max = maxima_.data() + r * groups_of(max_chunks_);
    row.device_count = &rows[r].entries;
    row.k = top;
    row.ids = ids_.data() + std::int64_t{r} * top;
    row.selected = counts_.data() + r;
    row.first_id = static_cast<std::int32_t>(r * capacity_of(max_chunks_));
    choices.push_back(row);
  }
  jobs_ = device_array<fm::cuda::score_job>(jobs);
  choices_ = device_array<fm::cuda::select_row>(choices);
}

void level2::select(std::int32_t csa_layer, const device_stream& stream) const {
  fm::cuda::score_options options;
  options.heads = model::index_heads;
  fm::fault f;
  must(fm::cuda::score(options, jobs_.data() + std::int64_t{csa_layer} * rows_, rows_, {}, stream.ref(), &f),
       f);
  must(fm::cuda::select_top_k(choices_.data(), rows_, 0, {}, stream.ref(), &f), f);
}

fm::cuda::deepseek_v4::entry_source level2::selected(std::int32_t csa_layer) const noexcept {
  fm::cuda::deepseek_v4::entry_source s;
  s.pool.table = tables_.lists();
  s.pool.table_offset = static_cast<std::int64_t>(layout_.key_offset(csa_layer, 0));
  s.pool.num_pages = rows_ * max_chunks_;
  s.pool.entries_per_page = model::chunk_entries;
  s.entries = fm::view<const std::int32_t, 2>(ids_.data(), rows_, top);
  s.counts = fm::view<const std::int32_t, 1>(counts_.data(), rows_);
  return s;
}

std::vector<std::int32_t> level2::picked(std::int32_t row) const {
  const std::vector<std::int32_t> ids = ids_.get();
  const auto count = counts_.get()[std::size_t(row)];
  std::vector<std::int32_t> mine(ids.begin() + std::int64_t{row} * top,
                                 ids.begin() + std::int64_t{row} * top + count);
  for (std::int32_t& id : mine) id -= static_cast<std::int32_t>(row * capacity_of(max_chunks_));
  return mine;
}

}  // namespace replay
