// SPDX-License-Identifier: MIT
#include "src/self_test/probe.hpp"

#include <algorithm>

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

indexer_taps taps_for(const kv_geometry& g) {
  indexer_taps t;
  t.name = "self test";
  t.queries = {{0, tap_kind::hidden, planted_model::hidden_width}};
  const index_key_geometry& keys = g.index_keys;
  for (std::int32_t lane = 0; lane < keys.lanes; ++lane)
    // Windows longer than the stride show what a ring of rows forgets too early.
    t.index_keys.push_back(
        {lane % g.layers, planted_model::hidden_width, keys.tokens_per_key, keys.tokens_per_key + lane % 3});
  if (keys.lanes > 0) t.reads = keys;
  t.index_key_fingerprint = 1;
  return t;
}

}  // namespace

probe_indexer::probe_indexer(const kv_geometry& geometry, const planted_model& model)
    : indexer(taps_for(geometry)),
      geometry_(geometry),
      model_(model),
      expected_(static_cast<std::size_t>(geometry.index_keys.bytes())) {}

std::uint64_t probe_indexer::digest(std::uint64_t seed, float x) noexcept {
  seed = (seed ^ bits_of(x)) * 0x9e3779b97f4a7c15u;
  return seed ^ seed >> 29;
}

/// Numbers of the store's type, none of them a NaN.
void probe_indexer::make_key(std::int32_t lane, std::uint64_t seed, std::byte* out) const noexcept {
  const index_key_geometry& keys = geometry_.index_keys;
  seed ^= static_cast<std::uint64_t>(lane) << 32;
  for (std::int32_t b = 0; b < keys.value_bytes(); ++b) {
    seed = seed * 0xd1342543de82ef95u + 1;
    out[b] = static_cast<std::byte>(seed >> 56 & 0x37);
  }
  std::byte* const scales = out + keys.value_bytes();
  if (keys.type == index_key_type::mxfp4) {
    std::fill_n(scales, keys.scale_bytes(), std::byte{0x7f});
  } else if (keys.scale_bytes() > 0) {
    const float scale = 1;
    std::memcpy(scales, &scale, sizeof(scale));
  }
}

status probe_indexer::encode_index_keys(std::int32_t lane, view<const float, 2> rows, view<std::byte, 2> keys,
                                        workspace, thread_hook) const noexcept {
  const index_key_tap& tap = taps_.index_keys[static_cast<std::size_t>(lane)];
  for (std::int64_t k = 0; k < keys.shape[0]; ++k) {
    std::uint64_t seed = 1;
    for (std::int64_t t = 0; t < tap.window; ++t)
      for (std::int64_t i = 0; i < tap.width; ++i) seed = digest(seed, rows(k * tap.tokens_per_key + t, i));
    make_key(lane, seed, &keys(k, 0));
  }
  return status::ok;
}

status probe_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  const index_key_geometry& g = geometry_.index_keys;
  const std::int64_t per_chunk = g.lanes > 0 ? geometry_.index_keys_per_chunk() : 0;
  if (request.sequence.generation != checked_sequence_) {
    checked_sequence_ = request.sequence.generation;
    checked_ = 0;
  }
  const std::int64_t complete = (request.position + 1) / g.tokens_per_key;
  // After a rollback tokens are the same again, so that keys which were right stay so.
  checked_ = std::min(checked_, complete);
  for (std::int32_t lane = 0; lane < g.lanes && wrong_.lane < 0; ++lane) {
    const index_key_tap& tap = taps_.index_keys[static_cast<std::size_t>(lane)];
    index_key_pages pages;
    if (request.reader->index_keys(request.sequence, lane, &pages) != status::ok || pages.keys < complete) {
      wrong_ = {lane, pages.keys, true};
      break;
    }
    // One key of those that were looked at before, and all new ones.
    const std::int64_t old = checked_ > 0
                                 ? static_cast<std::int64_t>(model_.bits(9, lane, request.position, 0) %
                                                             static_cast<std::uint64_t>(checked_))
                                 : 0;
    for (std::int64_t n = checked_ - (checked_ > 0); n < complete && wrong_.lane < 0; ++n) {
      const std::int64_t key = n < checked_ ? old : n;
      std::uint64_t seed = 1;
      for (std::int64_t t = (key + 1) * tap.tokens_per_key - tap.window; t < (key + 1) * tap.tokens_per_key;
           ++t)
        for (std::int64_t i = 0; i < tap.width; ++i)
          seed = digest(seed, t < 0 ? 0.0f : model_.hidden(tap.layer, t, i));
      make_key(lane, seed, expected_.data());
      const std::byte* const page = pages.data + key / per_chunk * per_chunk * g.bytes();
      const std::int64_t at = key % per_chunk;
      const bool planar = g.layout == index_key_layout::planar;
      const std::byte* const values = page + at * (planar ? g.value_bytes() : g.bytes());
      const std::byte* const scales =
          planar ? page + per_chunk * g.value_bytes() + at * g.scale_bytes() : values + g.value_bytes();
      if (std::memcmp(values, expected_.data(), static_cast<std::size_t>(g.value_bytes())) != 0 ||
          std::memcmp(scales, expected_.data() + g.value_bytes(),
                      static_cast<std::size_t>(g.scale_bytes())) != 0)
        wrong_ = {lane, key, false};
    }
  }
  checked_ = complete;
  for (std::int64_t c = 0; c < request.chunks; ++c)
    scores(c) = c == wanted   ? 3.0f
                : c == second ? 2.0f
                              : -1.0f - static_cast<float>(model_.bits(10, 0, c, 0) >> 44) * 0x1p-20f;
  return status::ok;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
