// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <limits>
#include <utility>

#include "src/core/parallel.hpp"
#include "src/indexer/kernels.hpp"
#include "src/indexer/pooled_keys_impl.hpp"
#include "src/indexer/pooled_keys_kernel.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

constexpr std::int64_t task_keys = 512;    // whose products a task makes; fixed, as is
constexpr std::int64_t task_chunks = 128;  // the number of chunks that a task folds
constexpr std::int64_t encode_keys = 32;   // keys that a task makes

std::size_t rounded(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }

std::int32_t blocks(std::int64_t count, std::int64_t step) noexcept {
  return static_cast<std::int32_t>((count + step - 1) / step);
}

std::uint64_t fingerprint(const pooled_keys_config& c) noexcept {
  const std::uint32_t shape[] = {static_cast<std::uint32_t>(c.kv_heads),
                                 static_cast<std::uint32_t>(c.key_dim), static_cast<std::uint32_t>(c.dim),
                                 static_cast<std::uint32_t>(c.tokens_per_key),
                                 static_cast<std::uint32_t>(c.type)};
  std::uint64_t print = XXH3_64bits(shape, sizeof shape);
  for (const pooled_keys_lane& lane : c.lanes) {
    const std::uint64_t part[] = {
        print, std::uint64_t(lane.layer) << 32 | std::uint32_t(lane.kv_head),
        XXH3_64bits(lane.key_projection.data(), lane.key_projection.size() * sizeof(float))};
    print = XXH3_64bits(part, sizeof part);
  }
  return std::max<std::uint64_t>(print, 1);
}

}  // namespace

namespace detail {

std::int32_t query_tap_of(const indexer_taps& taps, const pooled_keys_lane& lane) noexcept {
  const auto same_layer = [&](const query_tap& tap) { return tap.layer == lane.layer; };
  return static_cast<std::int32_t>(std::find_if(taps.queries.begin(), taps.queries.end(), same_layer) -
                                   taps.queries.begin());
}

std::vector<std::int32_t> heads_of(const pooled_keys_config& config, const pooled_keys_lane& lane) {
  if (!lane.query_heads.empty()) return lane.query_heads;
  std::vector<std::int32_t> all;
  const std::int32_t group = config.query_heads / config.kv_heads;
  for (std::int32_t i = 0; i < group; ++i) all.push_back(lane.kv_head * group + i);
  return all;
}

float mass_log_odds(double mass) noexcept {
  constexpr double least = 0x1p-149, most = 1 - 0x1p-24;
  if (std::isnan(mass)) return std::numeric_limits<float>::quiet_NaN();
  const double p = std::min(std::max(mass, least), most);
  return static_cast<float>(std::log(p) - std::log1p(-p));
}

}  // namespace detail

indexer_taps taps_of(const pooled_keys_config& config) {
  const pooled_keys_config c = detail::checked(config);
  indexer_taps taps;
  taps.name = "pooled_keys";
  taps.log_odds = true;
  taps.index_key_fingerprint = fingerprint(c);
  taps.reads.lanes = static_cast<std::int32_t>(c.lanes.size());
  taps.reads.dim = c.dim;
  taps.reads.type = c.type;
  taps.reads.tokens_per_key = c.tokens_per_key;
  for (const pooled_keys_lane& lane : c.lanes) {
    if (detail::query_tap_of(taps, lane) == static_cast<std::int32_t>(taps.queries.size()))
      taps.queries.push_back({lane.layer, tap_kind::queries, c.query_heads * c.key_dim, c.query_tokens});
    taps.index_keys.push_back(
        {lane.layer, c.kv_heads * c.key_dim, c.tokens_per_key, c.tokens_per_key, tap_kind::keys});
  }
  return taps;
}

struct pooled_keys_indexer::impl {
  struct lane_plan {
    std::int32_t tap = 0;
    std::vector<std::int32_t> heads;
    std::int64_t first_row = 0, rows = 0;  ///< of all queries: [tokens, heads] of each lane
  };
  struct layout {
    float* queries = nullptr;  ///< [rows, pooled_stride(dim)]
    float* masses = nullptr;   ///< [rows, stride]
    float* totals = nullptr;   ///< [rows]
    std::int64_t stride = 0;
    std::size_t bytes = 0;
  };

  explicit impl(pooled_keys_config c, const indexer_taps& taps) : config(detail::checked(std::move(c))) {
    for (const pooled_keys_lane& lane : config.lanes) {
      lane_plan plan;
      plan.tap = detail::query_tap_of(taps, lane);
      plan.heads = detail::heads_of(config, lane);
      plan.first_row = rows;
      plan.rows = static_cast<std::int64_t>(plan.heads.size()) * config.query_tokens;
      rows += plan.rows;
      lanes.push_back(std::move(plan));
    }
  }

  layout carve(void* base, std::int64_t chunks) const noexcept {
    layout out;
    out.stride = (chunks + 15) / 16 * 16;
    const auto take = [&](std::int64_t floats) {
      float* const at = base ? reinterpret_cast<float*>(static_cast<std::byte*>(base) + out.bytes) : nullptr;
      out.bytes += rounded(static_cast<std::size_t>(floats) * sizeof(float));
      return at;
    };
    out.queries = take(rows * detail::pooled_stride(config.dim));
    out.masses = take(rows * out.stride);
    out.totals = take(rows);
    return out;
  }

  void make_queries(const score_request& request, const layout& work, std::size_t lane) const noexcept;
  void fold(const layout& work, detail::counted_chunks counted, std::int64_t first, std::int64_t count,
            float* scores) const noexcept;

  pooled_keys_config config;
  std::vector<lane_plan> lanes;
  std::int64_t rows = 0;
};

pooled_keys_indexer::pooled_keys_indexer(pooled_keys_config config)
    : indexer(taps_of(config)), impl_(std::make_unique<impl>(std::move(config), taps())) {}

pooled_keys_indexer::~pooled_keys_indexer() = default;

const pooled_keys_config& pooled_keys_indexer::config() const noexcept { return impl_->config; }

std::size_t pooled_keys_indexer::workspace_bytes(const kv_geometry&, std::int64_t max_chunks,
                                                 std::int64_t) const noexcept {
  return impl_->carve(nullptr, std::max<std::int64_t>(max_chunks, 0)).bytes + 64;
}

/// A lane's queries, projected and with the softmax's scale in them.
void pooled_keys_indexer::impl::make_queries(const score_request& request, const layout& work,
                                             std::size_t at) const noexcept {
  const pooled_keys_lane& lane = config.lanes[at];
  const lane_plan& plan = lanes[at];
  const std::vector<float>& matrix =
      lane.query_projection.empty() ? lane.key_projection : lane.query_projection;
  const std::int64_t stride = detail::pooled_stride(config.dim);
  float* out = work.queries + plan.first_row * stride;
  for (std::int64_t t = 0; t < config.query_tokens; ++t)
    for (const std::int32_t head : plan.heads) {
      const float* const q =
          request.queries[plan.tap] + (t * config.query_heads + head) * std::int64_t{config.key_dim};
      if (matrix.empty())
        std::copy_n(q, config.dim, out);
      else
        detail::multiply_rows(matrix.data(), q, config.dim, config.key_dim, out);
      for (std::int64_t i = 0; i < config.dim; ++i) out[i] *= config.softmax_scale;
      std::fill(out + config.dim, out + stride, 0.0f);
      out += stride;
    }
}

/// The scores of up to task_chunks chunks from all rows' masses.
void pooled_keys_indexer::impl::fold(const layout& work, detail::counted_chunks counted, std::int64_t first,
                                     std::int64_t count, float* scores) const noexcept {
  double squares[task_chunks] = {};
  float best[task_chunks];
  for (std::int64_t t = 0; t < config.query_tokens; ++t) {
    std::fill_n(best, count, 0.0f);
    for (const lane_plan& plan : lanes) {
      const auto heads = static_cast<std::int64_t>(plan.heads.size());
      for (std::int64_t row = plan.first_row + t * heads; row < plan.first_row + (t + 1) * heads; ++row) {
        float* const mass = work.masses + row * work.stride + first;
        // What is not counted has its own mass beside the others'; both make 1.
        for (std::int64_t c = 0; c < count; ++c)
          if (first + c < counted.begin || first + c >= counted.end)
            mass[c] *= work.totals[row] / (work.totals[row] + mass[c]);
        detail::pooled_fold_row(mass, work.totals[row], count, best);
      }
    }
    for (std::int64_t c = 0; c < count; ++c)
      squares[c] += static_cast<double>(best[c]) * static_cast<double>(best[c]);
  }
  for (std::int64_t c = 0; c < count; ++c)
    scores[c] = detail::mass_log_odds(std::sqrt(squares[c] / config.query_tokens));
}

status pooled_keys_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  const impl& im = *impl_;
  const pooled_keys_config& c = im.config;
  if (request.reader == nullptr) return status::null_data;
  if (request.chunks < 0 || request.position < 0) return status::bad_argument;
  if (scores.shape[0] != request.chunks) return status::bad_shape;
  const kv_geometry& geometry = request.reader->geometry();
  const index_key_geometry& keys = geometry.index_keys;
  if (keys.lanes < taps().reads.lanes || keys.type != c.type || keys.dim != c.dim ||
      keys.tokens_per_key != c.tokens_per_key)
    return status::bad_shape;
  const std::int64_t per_chunk = geometry.index_keys_per_chunk();
  for (std::int32_t lane = 0; lane < taps().reads.lanes; ++lane) {
    index_key_pages pages;
    if (const status code = request.reader->index_keys(request.sequence, lane, &pages); code != status::ok)
      return code;
    if (pages.keys / per_chunk < request.chunks) return status::index_keys_missing;
  }
  if (request.chunks == 0) return status::ok;
  if (request.queries == nullptr || scores.data == nullptr) return status::null_data;
  for (std::size_t tap = 0; tap < taps().queries.size(); ++tap)
    if (request.queries[tap] == nullptr) return status::null_data;
  if (request.scratch.bytes < workspace_bytes(geometry, request.chunks, 0)) return status::workspace_small;
  if (request.scratch.data == nullptr) return status::null_data;
  const auto address = reinterpret_cast<std::uintptr_t>(request.scratch.data);
  const impl::layout work = im.carve(reinterpret_cast<void*>((address + 63) / 64 * 64), request.chunks);

  detail::parallel_for(request.threads, taps().reads.lanes,
                       [&](std::int32_t lane) { im.make_queries(request, work, std::size_t(lane)); });
  const std::int64_t strip = std::max<std::int64_t>(1, task_keys / per_chunk);
  const std::int32_t strips = blocks(request.chunks, strip);
  detail::parallel_for(request.threads, taps().reads.lanes * strips, [&](std::int32_t task) {
    const std::int32_t lane = task / strips;
    const std::int64_t first = task % strips * strip;
    const impl::lane_plan& plan = im.lanes[static_cast<std::size_t>(lane)];
    index_key_pages pages;
    static_cast<void>(request.reader->index_keys(request.sequence, lane, &pages));
    const detail::pooled_key_pages source{pages.data, per_chunk, keys};
    detail::pooled_chunk_logits(work.queries + plan.first_row * detail::pooled_stride(c.dim), plan.rows,
                                source, first, std::min(strip, request.chunks - first),
                                work.masses + plan.first_row * work.stride + first, work.stride);
  });
  const detail::counted_chunks counted(c, request.chunks);
  constexpr std::int64_t task_rows = 8;
  detail::parallel_for(request.threads, blocks(im.rows, task_rows), [&](std::int32_t task) {
    for (std::int64_t row = task * task_rows; row < std::min(im.rows, (task + 1) * task_rows); ++row)
      work.totals[row] = detail::pooled_row_masses(work.masses + row * work.stride, request.chunks,
                                                   counted.begin, counted.end);
  });
  detail::parallel_for(request.threads, blocks(request.chunks, task_chunks), [&](std::int32_t task) {
    const std::int64_t first = task * task_chunks;
    const std::int64_t count = std::min(task_chunks, request.chunks - first);
    float out[task_chunks];
    im.fold(work, counted, first, count, out);
    for (std::int64_t i = 0; i < count; ++i) scores(first + i) = out[i];
  });
  return status::ok;
}

status pooled_keys_indexer::encode_index_keys(std::int32_t lane, view<const float, 2> rows,
                                              view<std::byte, 2> keys, workspace,
                                              thread_hook threads) const noexcept {
  const pooled_keys_config& c = impl_->config;
  if (lane < 0 || lane >= taps().reads.lanes) return status::out_of_range;
  const index_key_geometry& shape = taps().reads;
  const std::int64_t count = keys.shape[0], width = std::int64_t{c.kv_heads} * c.key_dim;
  if (count < 0 || keys.shape[1] != shape.bytes()) return status::bad_shape;
  if (count == 0) return status::ok;
  if (rows.shape[0] != count * c.tokens_per_key || rows.shape[1] != width ||
      (rows.stride[1] != 1 && width > 1) || keys.stride[1] != 1 || keys.stride[0] < keys.shape[1])
    return status::bad_shape;
  if (rows.data == nullptr || keys.data == nullptr) return status::null_data;
  const pooled_keys_lane& from = c.lanes[static_cast<std::size_t>(lane)];
  detail::parallel_for(threads, blocks(count, encode_keys), [&](std::int32_t task) {
    float mean[detail::max_pooled_dim], projected[detail::max_pooled_dim];
    const std::int64_t first = task * encode_keys;
    for (std::int64_t key = first; key < std::min(count, first + encode_keys); ++key) {
      const float* row =
          rows.data + key * c.tokens_per_key * rows.stride[0] + std::int64_t{from.kv_head} * c.key_dim;
      std::copy_n(row, c.key_dim, mean);
      for (std::int32_t t = 1; t < c.tokens_per_key; ++t) {
        row += rows.stride[0];
        for (std::int32_t i = 0; i < c.key_dim; ++i) mean[i] += row[i];
      }
      for (std::int32_t i = 0; i < c.key_dim; ++i) mean[i] /= static_cast<float>(c.tokens_per_key);
      const float* values = mean;
      if (!from.key_projection.empty()) {
        detail::multiply_rows(from.key_projection.data(), mean, c.dim, c.key_dim, projected);
        values = projected;
      }
      quantise_index_key(values, shape, keys.data + key * keys.stride[0]);
    }
  });
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
