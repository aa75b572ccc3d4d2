// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <limits>
#include <new>
#include <vector>

#include "src/core/convert.hpp"
#include "src/core/format.hpp"
#include "src/core/parallel.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

/// Chunks at the end of what was complete at the last scoring that a rollback may have replaced since.
constexpr std::int64_t volatile_chunks = 2;

std::size_t rounded(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }

/// Smaller or larger of two; NaN if either is, so that a NaN in K shows in the scores.
float lower(float a, float b) noexcept { return std::isnan(a) || a < b ? a : b; }
float upper(float a, float b) noexcept { return std::isnan(a) || a > b ? a : b; }

/// Every layer's queries. Checked nothing yet: a size that passes 32 bits is refused by the constructor.
indexer_taps quest_taps(const kv_geometry& geometry, std::int32_t query_heads) {
  indexer_taps taps;
  taps.name = "quest";
  const std::int64_t width = std::int64_t{query_heads} * geometry.key_dim;
  for (std::int32_t layer = 0; layer < geometry.layers; ++layer)
    taps.queries.push_back({layer, tap_kind::queries, static_cast<std::int32_t>(width)});
  return taps;
}

}  // namespace

struct quest_indexer::impl {
  struct place {
    sequence_handle sequence;
    bool used = false;
    std::int64_t summarised = 0;  ///< chunks [0, summarised) have summaries
    std::int64_t complete = 0;    ///< complete chunks at the last scoring
    std::int64_t position = -1;   ///< at the last scoring
  };

  kv_geometry geometry;
  std::int32_t query_heads = 0;
  std::int64_t max_chunks = 0;
  float scale = 0;
  std::vector<place> places;
  std::unique_ptr<float[]> summaries;  ///< [places, chunks, layers, kv_heads, {min, max}, key_dim]

  std::int64_t summary_floats() const noexcept {
    return std::int64_t{geometry.layers} * geometry.kv_heads * 2 * geometry.key_dim;
  }
  float* summary(std::int64_t at, std::int64_t chunk) const noexcept {
    return summaries.get() + (at * max_chunks + chunk) * summary_floats();
  }

  std::int64_t find_place(const chunk_reader& reader, sequence_handle sequence) noexcept;
  void summarise(const std::byte* chunk, float* out) const noexcept;
  status update(std::int64_t at, const score_request& request, std::byte* chunk) noexcept;
  void bound(std::int64_t at, std::int64_t chunks, const float* query, std::int32_t layer, std::int32_t head,
             float* mass) const noexcept;
};

quest_indexer::quest_indexer(const kv_geometry& geometry, std::int32_t query_heads,
                             std::int32_t max_sequences, std::int64_t max_chunks, float softmax_scale)
    : indexer(quest_taps(geometry, query_heads)), impl_(std::make_unique<impl>()) {
  validate(geometry);
  const auto require = [](bool holds, const char* what, double value) {
    if (!holds)
      throw argument_error(status::bad_argument, formatted("quest_indexer: {} cannot be {}", what, value));
  };
  require(geometry.format == kv_format::separate, "kv_format", static_cast<double>(geometry.format));
  require(query_heads >= 1 && query_heads % geometry.kv_heads == 0, "query_heads", query_heads);
  require(std::int64_t{query_heads} * geometry.key_dim <= std::numeric_limits<std::int32_t>::max(),
          "query_heads", query_heads);
  require(max_sequences >= 1, "max_sequences", max_sequences);
  require(max_chunks >= 1, "max_chunks", static_cast<double>(max_chunks));
  require(std::isfinite(softmax_scale) && softmax_scale >= 0, "softmax_scale",
          static_cast<double>(softmax_scale));
  impl& im = *impl_;
  im.geometry = geometry;
  im.query_heads = query_heads;
  im.max_chunks = max_chunks;
  im.scale = softmax_scale > 0 ? softmax_scale : 1.0f / std::sqrt(static_cast<float>(geometry.key_dim));
  const double floats = static_cast<double>(max_sequences) * static_cast<double>(max_chunks) *
                        static_cast<double>(im.summary_floats());
  if (floats < 0x1p60)
    im.summaries.reset(
        new (std::nothrow) float[static_cast<std::size_t>(max_sequences * max_chunks * im.summary_floats())]);
  if (im.summaries == nullptr)
    throw admission_error(status::budget_exceeded,
                          formatted("quest_indexer: no memory for {} sequences x {} chunks x {} bytes",
                                    max_sequences, max_chunks, im.summary_floats() * 4));
  im.places.resize(static_cast<std::size_t>(max_sequences));
}

quest_indexer::~quest_indexer() = default;

std::size_t quest_indexer::workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                                           std::int64_t) const noexcept {
  const auto rows =
      static_cast<std::size_t>(impl_->geometry.layers) * static_cast<std::size_t>(impl_->query_heads);
  return rounded(chunk_layout(geometry).chunk_bytes()) +
         rows * static_cast<std::size_t>(std::max<std::int64_t>(max_chunks, 0)) * sizeof(float);
}

std::int64_t quest_indexer::impl::find_place(const chunk_reader& reader, sequence_handle sequence) noexcept {
  for (std::size_t i = 0; i < places.size(); ++i)
    if (places[i].used && places[i].sequence == sequence) return static_cast<std::int64_t>(i);
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i].used && reader.is_open(places[i].sequence)) continue;
    places[i] = place{};
    places[i].sequence = sequence;
    places[i].used = true;
    return static_cast<std::int64_t>(i);
  }
  return -1;
}

void quest_indexer::impl::summarise(const std::byte* chunk, float* out) const noexcept {
  const chunk_layout layout(geometry);
  const std::int64_t dim = geometry.key_dim;
  for (std::int32_t layer = 0; layer < geometry.layers; ++layer)
    for (std::int32_t head = 0; head < geometry.kv_heads; ++head, out += 2 * dim) {
      const std::byte* const keys = chunk + layout.key_offset(layer, head);
      for (std::int64_t d = 0; d < dim; ++d)
        out[d] = out[dim + d] = detail::load_float(keys, geometry.type, d);
      for (std::int64_t e = 1; e < geometry.entries_per_chunk; ++e)
        for (std::int64_t d = 0; d < dim; ++d) {
          const float k = detail::load_float(keys, geometry.type, e * dim + d);
          out[d] = lower(out[d], k);
          out[dim + d] = upper(out[dim + d], k);
        }
    }
}

status quest_indexer::impl::update(std::int64_t at, const score_request& request, std::byte* chunk) noexcept {
  place& p = places[static_cast<std::size_t>(at)];
  std::int64_t keep = std::min(p.summarised, p.complete - volatile_chunks);
  if (request.position < p.position)
    keep = std::min(keep, (request.position + 1) / geometry.tokens_per_chunk());
  keep = std::min(keep, request.chunks);
  p.summarised = std::max<std::int64_t>(keep, 0);
  const view<std::byte, 1> out(chunk, chunk_layout(geometry).chunk_bytes());
  std::int64_t again = request.chunks;  // from there on the next call reads anew
  for (; p.summarised < request.chunks; ++p.summarised) {
    const status code =
        request.reader->read_chunk(request.sequence, static_cast<chunk_id>(p.summarised), out);
    float* const to = summary(at, p.summarised);
    if (code == status::ok) {
      summarise(chunk, to);
    } else if (code == status::corrupt_chunk || code == status::io_error) {
      // It costs this chunk, which ranks last: its score is no number.
      std::fill_n(to, std::int64_t{geometry.layers} * geometry.kv_heads * 2 * geometry.key_dim,
                  std::numeric_limits<float>::quiet_NaN());
      if (code == status::io_error) again = std::min(again, p.summarised);
    } else {
      return code;
    }
  }
  p.summarised = again;
  p.complete = request.chunks;
  p.position = request.position;
  return status::ok;
}

void quest_indexer::impl::bound(std::int64_t at, std::int64_t chunks, const float* query, std::int32_t layer,
                                std::int32_t head, float* mass) const noexcept {
  const std::int64_t dim = geometry.key_dim;
  const std::int64_t kv_head = head / (query_heads / geometry.kv_heads);
  const std::int64_t offset = (std::int64_t{layer} * geometry.kv_heads + kv_head) * 2 * dim;
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t c = 0; c < chunks; ++c) {
    const float* const low = summary(at, c) + offset;
    const float* const high = low + dim;
    float sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += upper(query[d] * low[d], query[d] * high[d]);
    mass[c] = sum * scale;
    if (mass[c] > largest) largest = mass[c];
  }
  float total = 0;
  for (std::int64_t c = 0; c < chunks; ++c) {
    mass[c] = std::exp(mass[c] - largest);
    if (!std::isnan(mass[c])) total += mass[c];
  }
  for (std::int64_t c = 0; c < chunks; ++c) mass[c] /= total;
}

status quest_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  const workspace& scratch = request.scratch;
  const thread_hook& threads = request.threads;
  impl& im = *impl_;
  if (request.chunks < 0 || scores.shape[0] < request.chunks) return status::bad_shape;
  if (request.chunks > im.max_chunks) return status::out_of_range;
  if (request.reader == nullptr ||
      (request.chunks > 0 && (request.queries == nullptr || scores.data == nullptr)))
    return status::null_data;
  const kv_geometry& g = request.reader->geometry();
  if (g.layers != im.geometry.layers || g.kv_heads != im.geometry.kv_heads ||
      g.key_dim != im.geometry.key_dim || g.value_dim != im.geometry.value_dim ||
      g.type != im.geometry.type || g.entries_per_chunk != im.geometry.entries_per_chunk ||
      g.tokens_per_entry != im.geometry.tokens_per_entry)
    return status::bad_shape;
  if (scratch.data == nullptr || scratch.bytes < workspace_bytes(g, request.chunks, 0))
    return status::workspace_small;

  sequence_info info;
  if (const status code = request.reader->info(request.sequence, &info); code != status::ok) return code;
  if (request.chunks > info.complete_chunks) return status::out_of_range;
  const std::int64_t at = im.find_place(*request.reader, request.sequence);
  if (at < 0) return status::budget_exceeded;
  auto* const chunk = static_cast<std::byte*>(scratch.data);
  if (const status code = im.update(at, request, chunk); code != status::ok) return code;

  if (request.chunks == 0) return status::ok;

  auto* const mass = reinterpret_cast<float*>(chunk + rounded(chunk_layout(im.geometry).chunk_bytes()));
  const std::int64_t chunks = request.chunks;
  const std::int32_t rows = im.geometry.layers * im.query_heads;
  detail::parallel_for(threads, rows, [&](std::int32_t row) {
    const std::int32_t layer = row / im.query_heads, head = row % im.query_heads;
    im.bound(at, chunks, request.queries[layer] + std::int64_t{head} * im.geometry.key_dim, layer, head,
             mass + row * chunks);
  });
  for (std::int64_t c = 0; c < chunks; ++c) {
    float best = mass[c];
    for (std::int64_t row = 1; row < rows; ++row) best = upper(best, mass[row * chunks + c]);
    scores(c) = best;
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
