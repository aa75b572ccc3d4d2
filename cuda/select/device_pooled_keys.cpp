// SPDX-License-Identifier: MIT
#include "cuda/select/device_pooled_keys.hpp"

#include <algorithm>
#include <cstring>

#include "cuda/core/carver.hpp"
#include "cuda/core/error.hpp"
#include "src/indexer/pooled_keys_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

namespace {

constexpr std::int64_t scratch_floats = std::int64_t{1} << 24;  // 64 MiB, or one sequence's

/// Matrices [dim, key_dim] as [key_dim, dim], one after another.
class transposed_matrices {
 public:
  transposed_matrices(const pooled_keys_config& config) : dim_(config.dim), key_dim_(config.key_dim) {}

  /// Its place, or -1 if there is none.
  std::int64_t add(const std::vector<float>& matrix) {
    if (matrix.empty()) return -1;
    const auto at = static_cast<std::int64_t>(values_.size());
    for (std::int32_t i = 0; i < key_dim_; ++i)
      for (std::int32_t d = 0; d < dim_; ++d)
        values_.push_back(matrix[static_cast<std::size_t>(std::int64_t{d} * key_dim_ + i)]);
    return at;
  }
  const std::vector<float>& values() const noexcept { return values_; }

 private:
  std::int32_t dim_, key_dim_;
  std::vector<float> values_;
};

void upload(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) ask(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "pooled keys");
}

key_page page_of(const pooled_keys_config& config) noexcept {
  index_key_geometry shape;
  shape.dim = config.dim;
  shape.type = config.type;
  key_page page;
  page.value_bytes = shape.value_bytes();
  page.scale_bytes = shape.scale_bytes();
  page.type = config.type;
  return page;
}

class pooled_key_encoders final : public key_encoders {
 public:
  pooled_key_encoders(const pooled_keys_config& config, const memory_resource& memory) {
    transposed_matrices matrices(config);
    std::vector<std::int64_t> places;
    for (const pooled_keys_lane& lane : config.lanes) places.push_back(matrices.add(lane.key_projection));
    block_ = memory_block(block_kind::device, memory, matrices.values().size() * sizeof(float),
                          "projections of pooled keys");
    upload(block_.as<void>(), matrices.values().data(), matrices.values().size() * sizeof(float));
    for (std::size_t i = 0; i < config.lanes.size(); ++i) {
      pooled_encoder lane;
      lane.projection = places[i] < 0 ? nullptr : block_.as<float>() + places[i];
      lane.kv_head = config.lanes[i].kv_head;
      lane.key_dim = config.key_dim;
      lane.dim = config.dim;
      lane.tokens_per_key = config.tokens_per_key;
      lane.page = page_of(config);
      lanes_.push_back(lane);
    }
    ask(cudaDeviceSynchronize(), "pooled keys");
  }

  cudaError_t encode(std::int32_t lane, const kept_rows& kept, const row_part& part, const row_tensor& from,
                     std::int64_t first_key, std::int64_t count, std::byte* out, unsigned long long* nan_keys,
                     cudaStream_t stream) noexcept override {
    return launch_encode_pooled(of(lane, nan_keys), kept, part, from, first_key, count, out, stream);
  }
  cudaError_t encode_step(std::int32_t lane, const kept_rows& kept, const std::int64_t* places,
                          const std::int64_t* positions, const append_target* targets, std::int64_t rows,
                          std::int32_t per_row, const key_page& page, unsigned long long* nan_keys,
                          cudaStream_t stream) noexcept override {
    pooled_encoder encoder = of(lane, nan_keys);
    encoder.page = page;
    return launch_encode_step_pooled(encoder, kept, places, positions, targets, rows, per_row, stream);
  }

 private:
  pooled_encoder of(std::int32_t lane, unsigned long long* nan_keys) const noexcept {
    pooled_encoder encoder = lanes_[static_cast<std::size_t>(lane)];
    encoder.nan_keys = nan_keys;
    return encoder;
  }

  memory_block block_;
  std::vector<pooled_encoder> lanes_;
};

}  // namespace

device_pooled_keys::device_pooled_keys(const pooled_keys_config& config)
    : library_indexer(taps_of(config)), config_(flashmemory::detail::checked(config)) {}

std::unique_ptr<key_encoders> device_pooled_keys::make_encoders(const memory_resource& memory) const {
  return std::make_unique<pooled_key_encoders>(config_, memory);
}

/// What is asked of which lane, and the queries' projections.
void device_pooled_keys::upload_tables(const context& device) {
  transposed_matrices matrices(config_);
  std::vector<pooled_row> rows;
  std::vector<pooled_lane> lanes;
  std::vector<std::int64_t> places;
  for (std::size_t l = 0; l < config_.lanes.size(); ++l) {
    const pooled_keys_lane& lane = config_.lanes[l];
    const std::vector<std::int32_t> heads = flashmemory::detail::heads_of(config_, lane);
    pooled_lane entry;
    entry.first_row = static_cast<std::int32_t>(rows.size());
    entry.rows = static_cast<std::int32_t>(heads.size()) * config_.query_tokens;
    problem_.most_rows = std::max(problem_.most_rows, entry.rows);
    for (std::int32_t t = 0; t < config_.query_tokens; ++t)
      for (const std::int32_t head : heads)
        rows.push_back({flashmemory::detail::query_tap_of(taps(), lane),
                        (t * config_.query_heads + head) * config_.key_dim, static_cast<std::int32_t>(l), t});
    places.push_back(
        matrices.add(lane.query_projection.empty() ? lane.key_projection : lane.query_projection));
    lanes.push_back(entry);
  }
  const auto lay_out = [&](std::byte* base) {
    carver at(base);
    problem_.rows = at.take<pooled_row>(static_cast<std::int64_t>(rows.size()));
    problem_.lanes = at.take<pooled_lane>(static_cast<std::int64_t>(lanes.size()));
    const float* const first = at.take<float>(static_cast<std::int64_t>(matrices.values().size()));
    for (std::size_t l = 0; l < lanes.size(); ++l)
      lanes[l].projection = places[l] < 0 ? nullptr : first + places[l];
    if (base != nullptr)
      upload(const_cast<float*>(first), matrices.values().data(), matrices.values().size() * sizeof(float));
    return at.bytes();
  };
  tables_ = memory_block(block_kind::device, device.memory, lay_out(nullptr), "tables of pooled keys");
  lay_out(tables_.as<std::byte>());
  upload(const_cast<pooled_row*>(problem_.rows), rows.data(), rows.size() * sizeof(pooled_row));
  upload(const_cast<pooled_lane*>(problem_.lanes), lanes.data(), lanes.size() * sizeof(pooled_lane));
  ask(cudaDeviceSynchronize(), "pooled keys");
  problem_.row_count = static_cast<std::int32_t>(rows.size());
  problem_.lane_count = static_cast<std::int32_t>(lanes.size());
}

void device_pooled_keys::reserve(const device_indexer_capacity& capacity) {
  if (tables_.as<void>() == nullptr) {
    upload_tables(capacity.device);
    problem_.tokens = config_.query_tokens;
    problem_.key_dim = config_.key_dim;
    problem_.dim = config_.dim;
    problem_.scale = config_.softmax_scale;
    problem_.uncounted_sink_chunks = config_.uncounted_sink_chunks;
    problem_.uncounted_recent_chunks = config_.uncounted_recent_chunks;
    problem_.page = key_page_of(capacity.geometry);
  }
  const std::int64_t stride = (std::max<std::int64_t>(capacity.max_chunks, 1) + 31) / 32 * 32;
  const std::int64_t each = problem_.row_count * (stride + config_.dim + 1);
  const auto group =
      static_cast<std::int32_t>(std::clamp<std::int64_t>(scratch_floats / each, 1, capacity.max_sequences));
  pooled_problem now = problem_;
  now.stride = stride;
  const auto lay_out = [&](std::byte* base) {
    carver at(base);
    now.queries = at.take<float>(std::int64_t{group} * now.row_count * now.dim);
    now.masses = at.take<float>(std::int64_t{group} * now.row_count * stride);
    now.totals = at.take<float>(std::int64_t{group} * now.row_count);
    return at.bytes();
  };
  memory_block scratch(block_kind::device, capacity.device.memory, lay_out(nullptr), "masses of pooled keys");
  lay_out(scratch.as<std::byte>());
  scratch_ = std::move(scratch);
  problem_ = now;
  group_ = group;
}

std::size_t device_pooled_keys::table_bytes(std::int32_t max_sequences) const noexcept {
  const auto count = static_cast<std::size_t>(max_sequences);
  return count * (sizeof(pooled_job) + config_.lanes.size() * sizeof(const std::byte*));
}

status device_pooled_keys::fill_table(const device_scoring& call, fault* error) noexcept {
  auto* const jobs = reinterpret_cast<pooled_job*>(call.table);
  const std::int64_t count = call.due.shape[0];
  auto* const keys = reinterpret_cast<const std::byte**>(jobs + count);
  for (std::int64_t i = 0; i < count; ++i) {
    jobs[i].scores = call.due(i).scores;
    jobs[i].chunks = call.due(i).chunks;
    for (std::int32_t lane = 0; lane < taps().reads.lanes; ++lane) {
      index_key_pages pages;
      if (const status code = call.reader->index_keys(call.due(i).sequence, lane, &pages); code != status::ok)
        return refuse(code, "index keys", -1, -1, error);
      keys[i * taps().reads.lanes + lane] = pages.data;
    }
  }
  return status::ok;
}

status device_pooled_keys::score(const device_scoring& call, stream_ref stream, fault* error) noexcept {
  const auto* const jobs = reinterpret_cast<const pooled_job*>(call.table);
  const std::int64_t count = call.due.shape[0];
  const auto* const keys = reinterpret_cast<const std::byte* const*>(jobs + count);
  for (std::int64_t first = 0; first < count; first += group_) {
    const auto here = static_cast<std::int32_t>(std::min<std::int64_t>(group_, count - first));
    std::int64_t most_chunks = 0;
    for (std::int64_t i = first; i < first + here; ++i)
      most_chunks = std::max(most_chunks, call.due(i).chunks);
    for (std::size_t tap = 0; tap < taps().queries.size(); ++tap) {
      const const_tensor<2>& q = call.queries[tap];
      const auto* const from = static_cast<const std::byte*>(q.data) +
                               static_cast<std::size_t>(first * q.stride[0]) * size_of(q.type);
      if (const status code = check(launch_pooled_queries(problem_, static_cast<std::int32_t>(tap), from,
                                                          q.type, q.stride[0], here, stream.cuda()),
                                    "pooled queries", error);
          code != status::ok)
        return code;
    }
    if (const status code =
            check(launch_pooled_scores(problem_, jobs + first, keys + first * problem_.lane_count, here,
                                       most_chunks, stream.cuda()),
                  "pooled scores", error);
        code != status::ok)
      return code;
  }
  return status::ok;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
