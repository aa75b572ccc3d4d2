// SPDX-License-Identifier: MIT
#include "src/select/host_level1.hpp"

#include <algorithm>
#include <cstring>

#include "src/core/index_key.hpp"
#include "src/select/served_sequence.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

namespace {

/// Stores refuse keys that are not numbers. A key that NaN or Inf went into says nothing about its tokens:
/// all zero, it scores what an unrelated key scores.
bool neutralise(std::byte* key, const index_key_geometry& shape) noexcept {
  if (finite_index_key(shape, key)) return false;
  std::memset(key, 0, static_cast<std::size_t>(shape.bytes()));
  return true;
}

}  // namespace

fault fault_of_store(const chunk_reader& store, status code, sequence_handle sequence,
                     const char* what) noexcept {
  fault f = store.last_fault();
  if (f.code != code) f = fault{};
  f.code = code;
  f.sequence = sequence.index;
  if (f.what == nullptr || *f.what == 0) f.what = what;
  return f;
}

status host_level1::store_failed(status code, const served_sequence& s, const char* what,
                                 fault* error) const noexcept {
  *error = fault_of_store(context_->store, code, s.handle, what);
  return code;
}

void host_level1::set_up(const level1_context& context) {
  context_ = &context;
  tap_rows_.resize(context.source_of_tap.size());
  places_.resize(static_cast<std::size_t>(context.options.max_sequences));
  reserve_chunks();
}

void host_level1::reserve_chunks() {
  const kv_geometry& geometry = context_->geometry;
  std::int64_t block_floats = 0;
  for (const index_key_tap& tap : taps().index_keys)
    block_floats = std::max(block_floats, ((key_block - 1) * tap.tokens_per_key + tap.window) * tap.width);
  std::int64_t query_floats = 0;
  for (const query_source& source : context_->query_sources)
    if (source.tokens > 1) query_floats += source.tokens * source.width;
  const std::int64_t block_keys = taps().index_keys.empty() ? 0 : key_block;
  block_layout plan;
  const std::size_t rows_at = plan.add<float>(block_floats), queries_at = plan.add<float>(query_floats),
                    keys_at = plan.add<std::byte>(block_keys * geometry.index_keys.bytes());
  const std::size_t scratch_bytes = index_.workspace_bytes(geometry, context_->max_chunks, block_keys);
  const std::size_t scratch_at = plan.add<std::byte>(static_cast<std::int64_t>(scratch_bytes));
  const std::int64_t rows =
      context_->options.apply == apply_mode::at_once ? 1 : context_->options.max_sequences;
  buffer scores(context_->options.memory,
                static_cast<std::size_t>(rows * context_->max_chunks) * sizeof(float), "selector scores");
  memory_ = buffer(context_->options.memory, plan.bytes(), "selector scratch");
  const view<float, 2> moved(scores.as<float>(), rows, context_->max_chunks);
  for (std::int64_t row = 0; row < scores_.shape[0]; ++row)
    std::copy_n(scores_.data + row * scores_.stride[0], scores_.shape[1], moved.data + row * moved.stride[0]);
  score_memory_ = std::move(scores);
  scores_ = moved;
  std::byte* const base = memory_.as<std::byte>();
  key_rows_ = reinterpret_cast<float*>(base + rows_at);
  query_rows_ = reinterpret_cast<float*>(base + queries_at);
  key_out_ = base + keys_at;
  scratch_ = {base + scratch_at, scratch_bytes};
}

std::size_t host_level1::row_bytes() const noexcept {
  std::int64_t floats = 0;
  for (const auto& source : context_->query_sources)
    floats += level1_context::query_rows(source) * source.width;
  for (const auto& source : context_->key_sources) floats += context_->key_rows(source) * source.width;
  return static_cast<std::size_t>(floats) * sizeof(float);
}

void host_level1::open_place(served_sequence& s) {
  buffer& memory = places_[static_cast<std::size_t>(s.place)];
  memory = buffer(context_->options.memory, row_bytes(), "selector rows of a sequence");
  float* rows = memory.as<float>();
  const auto lay_out = [&](row_ring& ring) {
    ring.rows = rows;
    rows += ring.width * ring.capacity;
  };
  for (auto& ring : s.queries) lay_out(ring);
  for (auto& input : s.keys) lay_out(input.ring);
}

/// Rows of tokens [first, first + count), from the call where it has them all, else gathered.
view<const float, 2> host_level1::seen_rows(const observed_rows& part, const row_ring& ring,
                                            std::int64_t first, std::int64_t count,
                                            const_tensor<3> rows) noexcept {
  const std::int64_t width = rows.shape[1] * rows.shape[2];
  if (const float* const plain = plain_rows(rows); plain != nullptr && first >= part.position)
    return view<const float, 2>(plain + (part.from + first - part.position) * width, count, width);
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t token = first + r;
    float* const out = key_rows_ + r * width;
    if (token >= part.position)
      load_row(rows, part.from + token - part.position, out);
    else if (token < 0)
      std::fill_n(out, width, 0.0f);
    else
      std::copy_n(ring.row(token), width, out);
  }
  return view<const float, 2>(key_rows_, count, width);
}

/// Keys [first_key, end) of one lane, but for those that it has; `rows` are those that the source's widest lane sees.
status host_level1::append_lane(served_sequence& s, std::int32_t lane, std::int64_t first_key,
                                std::int64_t end, std::int64_t source_window, view<const float, 2> rows,
                                stream_ref stream, std::int64_t* nan_keys, fault* error) noexcept {
  const kv_geometry& geometry = context_->geometry;
  const std::int64_t tokens_per_key = geometry.index_keys.tokens_per_key;
  const std::int64_t window = taps().index_keys[static_cast<std::size_t>(lane)].window;
  index_key_pages pages;
  if (const status code = context_->store.index_keys(s.handle, lane, &pages); code != status::ok)
    return store_failed(code, s, "keys", error);
  const std::int64_t count = end - pages.keys;
  if (count <= 0) return status::ok;
  const std::int64_t skip = (pages.keys - first_key) * tokens_per_key + source_window - window;
  const view<const float, 2> mine(rows.data + skip * rows.stride[0], (count - 1) * tokens_per_key + window,
                                  rows.shape[1]);
  const view<std::byte, 2> out(key_out_, count, geometry.index_keys.bytes());
  if (const status code = index_.encode_index_keys(lane, mine, out, scratch_, context_->options.threads);
      code != status::ok) {
    *error = fault{};
    error->code = code;
    error->sequence = s.handle.index;
    error->lane = lane;
    error->what = "encode_index_keys";
    return code;
  }
  for (std::int64_t k = 0; k < count; ++k)
    *nan_keys += neutralise(key_out_ + k * geometry.index_keys.bytes(), geometry.index_keys);
  if (const status code = context_->store.append_index_keys(s.handle, lane, pages.keys, out, stream);
      code != status::ok)
    return store_failed(code, s, "append_index_keys", error);
  return status::ok;
}

status host_level1::encode(const observed_rows& part, std::size_t source, const_tensor<3> rows,
                           stream_ref stream, std::int64_t* nan_keys, fault* error) noexcept {
  served_sequence& s = *part.sequence;
  key_input& input = s.keys[source];
  const key_source& from = context_->key_sources[source];
  const std::int64_t tokens_per_key = context_->geometry.index_keys.tokens_per_key;
  const std::int64_t end = (part.position + part.tokens) / tokens_per_key;
  input.torn = true;
  std::int64_t key = end;  // the first that some lane has not got
  for (const std::int32_t lane : from.lanes) {
    index_key_pages pages;
    if (const status code = context_->store.index_keys(s.handle, lane, &pages); code != status::ok)
      return store_failed(code, s, "keys", error);
    key = std::min(key, pages.keys);
  }
  // Rows are gathered once for all lanes.
  while (key < end) {
    const std::int64_t count = std::min(key_block, end - key);
    const view<const float, 2> seen = seen_rows(part, input.ring, (key + 1) * tokens_per_key - from.window,
                                                (count - 1) * tokens_per_key + from.window, rows);
    for (const std::int32_t lane : from.lanes)
      if (const status code =
              append_lane(s, lane, key, key + count, from.window, seen, stream, nan_keys, error);
          code != status::ok)
        return code;
    key += count;
  }
  input.torn = false;
  input.ring.push(part.position, part.tokens, rows, part.from);
  return status::ok;
}

status host_level1::observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                            const_tensor<3> rows, stream_ref stream, std::int64_t* nan_keys,
                            fault* error) noexcept {
  const auto& key_sources = context_->key_sources;
  const auto& query_sources = context_->query_sources;
  for (std::int64_t i = 0; i < rows_of.shape[0]; ++i) {
    const observed_rows& part = rows_of(i);
    for (std::size_t k = 0; k < key_sources.size(); ++k)
      if (key_sources[k].kind == kind && key_sources[k].layer == layer)
        if (const status code = encode(part, k, rows, stream, nan_keys, error); code != status::ok)
          return code;
    for (std::size_t q = 0; q < query_sources.size(); ++q)
      if (query_sources[q].layer == layer && query_sources[q].kind == kind)
        part.sequence->queries[q].push(part.position, part.tokens, rows, part.from);
  }
  return status::ok;
}

void host_level1::copy_rows(const served_sequence& from, served_sequence& to) {
  const auto copy = [](const row_ring& a, row_ring& b) { std::copy_n(a.rows, a.width * a.capacity, b.rows); };
  for (std::size_t q = 0; q < to.queries.size(); ++q) copy(from.queries[q], to.queries[q]);
  for (std::size_t k = 0; k < to.keys.size(); ++k) copy(from.keys[k].ring, to.keys[k].ring);
}

void host_level1::read_row(const served_sequence& s, kept_row row, float* out) {
  const row_ring& ring = row.key ? s.keys[row.source].ring : s.queries[row.source];
  std::copy_n(ring.row(row.token), ring.width, out);
}

void host_level1::write_row(served_sequence& s, kept_row row, const float* values) {
  const row_ring& ring = row.key ? s.keys[row.source].ring : s.queries[row.source];
  std::copy_n(values, ring.width, ring.row(row.token));
}

/// The rows of the newest tokens up to `position`, oldest first; for those that are not there stands the oldest that is.
const float* host_level1::newest_rows(const row_ring& ring, std::int64_t position, std::int64_t tokens,
                                      float* out) const noexcept {
  if (tokens == 1) return ring.row(position);
  for (std::int64_t t = 0; t < tokens; ++t)
    std::copy_n(ring.row(std::max(ring.first(), position - tokens + 1 + t)), ring.width,
                out + t * ring.width);
  return out;
}

view<float, 1> host_level1::scores_of(const served_sequence& s) const noexcept {
  const std::int64_t row = scores_.shape[0] > 1 ? s.place : 0;
  return view<float, 1>(scores_.data + row * scores_.stride[0], s.flight.chunks);
}

status host_level1::poll(served_sequence& s, fault* error) noexcept {
  s.flight.watch = stopwatch();  // its turn begins here
  float* gathered = query_rows_;
  for (std::size_t source = 0; source < s.queries.size(); ++source) {
    const std::int64_t tokens = context_->query_sources[source].tokens, width = s.queries[source].width;
    const float* const rows = newest_rows(s.queries[source], s.flight.position, tokens, gathered);
    if (tokens > 1) gathered += tokens * width;
    for (std::size_t tap = 0; tap < tap_rows_.size(); ++tap)
      if (context_->source_of_tap[tap] == static_cast<std::int32_t>(source))
        tap_rows_[tap] = rows + (tokens - taps().queries[tap].tokens) * width;
  }
  score_request request;
  request.reader = &context_->store;
  request.sequence = s.handle;
  request.position = s.flight.position;
  request.chunks = s.flight.chunks;
  request.queries = tap_rows_.data();
  request.scratch = scratch_;
  request.threads = context_->options.threads;
  const status code = index_.score(request, scores_of(s));
  if (code != status::ok) {
    *error = fault{};
    error->code = code;
    error->sequence = s.handle.index;
    error->what = "score";
  }
  return code;
}

view<const float, 1> host_level1::scores(const served_sequence& s) const noexcept { return scores_of(s); }

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
