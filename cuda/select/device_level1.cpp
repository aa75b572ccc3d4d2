// SPDX-License-Identifier: MIT
#include "cuda/select/device_level1.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>

#include "cuda/core/carver.hpp"
#include "cuda/core/error.hpp"
#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

namespace {

constexpr std::size_t staging_parts = 4;
constexpr std::int64_t key_block = 4096;  // keys that a prompt encodes at a time

[[noreturn]] void refuse_options(const std::string& what) {
  throw argument_error(status::bad_argument, "cuda::make_selector: " + what);
}

}  // namespace

device_level1::device_level1(const context& device, std::unique_ptr<library_indexer> index, dtype rows)
    : device_(device), rows_type_(rows), own_index_(std::move(index)), index_(*own_index_) {
  check_taps();
}

device_level1::device_level1(const context& device, device_indexer& index, dtype rows)
    : device_(device), rows_type_(rows), index_(index) {
  check_taps();
  if (!taps().index_keys.empty())
    refuse_options(
        fmt::format("indexer {} encodes index keys; a device_indexer's are the engine's", taps().name));
}

void device_level1::check_taps() const {
  if (rows_type_ != dtype::f32 && rows_type_ != dtype::bf16 && rows_type_ != dtype::f16)
    refuse_options("rows must be f32, bf16 or f16");
}

void device_level1::set_up(const level1_context& context) {
  context_ = &context;
  const device_guard guard(device_.ordinal);
  const std::int64_t places = context.options.max_sequences;
  if (places > 4096) refuse_options(fmt::format("max_sequences is {}, at most 4096", places));
  const auto block = [&](block_kind kind, std::size_t bytes, const char* purpose) {
    return memory_block(kind, kind == block_kind::device ? device_.memory : device_.pinned, bytes, purpose);
  };
  const auto element = static_cast<std::int64_t>(size_of(rows_type_));
  const auto lay_out_rows = [&](std::byte* base) {
    carver at(base);
    query_rows_.clear();
    key_rows_.clear();
    for (const auto& source : context.query_sources)
      query_rows_.push_back(
          {at.take<std::byte>(places * level1_context::query_rows(source) * source.width * element),
           rows_type_, source.width, level1_context::query_rows(source)});
    for (const auto& source : context.key_sources)
      key_rows_.push_back({at.take<std::byte>(places * context.key_rows(source) * source.width * element),
                           rows_type_, source.width, context.key_rows(source)});
    return at.bytes();
  };
  rows_ = block(block_kind::device, lay_out_rows(nullptr), "hidden states of sequences");
  lay_out_rows(rows_.as<std::byte>());
  const auto lay_out_gathered = [&](std::byte* base) {
    carver at(base);
    gathered_.clear();
    for (const auto& source : context.query_sources)
      gathered_.push_back(at.take<std::byte>(places * source.tokens * source.width * element));
    return at.bytes();
  };
  gathered_block_ = block(block_kind::device, lay_out_gathered(nullptr), "hidden states of due sequences");
  lay_out_gathered(gathered_block_.as<std::byte>());
  if (own_index_ != nullptr) encoders_ = own_index_->make_encoders(device_.memory);
  if (encodes_keys())
    key_staging_ = block(block_kind::device, std::size_t(key_block * context.geometry.index_keys.bytes()),
                         "index keys of a prompt");
  lists_ = block(block_kind::device, list_bytes(), "scoring tables");
  staging_ = block(block_kind::pinned, list_bytes() * staging_parts, "scoring tables");
  nan_keys_ = block(block_kind::device, sizeof(unsigned long long), "counter of keys");
  nan_copy_ = block(block_kind::pinned, sizeof(unsigned long long), "counter of keys");
  *nan_copy_.as<unsigned long long>() = 0;
  ask(cudaMemset(nan_keys_.as<void>(), 0, nan_keys_.bytes()), "counter of keys");
  ask(cudaMemset(rows_.as<void>(), 0, rows_.bytes()), "hidden states of sequences");
  ask(cudaMemset(lists_.as<void>(), 0, lists_.bytes()), "scoring tables");
  ask(cudaDeviceSynchronize(), "level 1");
  fences_ = std::vector<event>(staging_parts);
  generations_.resize(staging_parts);
  scored_.resize(static_cast<std::size_t>(places));
  good_.reserve(static_cast<std::size_t>(places));
  requests_.reserve(static_cast<std::size_t>(places));
  queries_.resize(taps().queries.size());
  reserve_chunks();
}

/// Scores that have landed, or are on their way, move to the larger blocks.
void device_level1::reserve_chunks() {
  const device_guard guard(device_.ordinal);
  const std::int64_t places = context_->options.max_sequences, stride = context_->max_chunks;
  const std::size_t bytes = std::size_t(places * stride) * sizeof(float);
  memory_block on_device(block_kind::device, device_.memory, bytes, "chunk scores");
  memory_block on_host(block_kind::pinned, device_.pinned, bytes, "chunk scores");
  ask(cudaDeviceSynchronize(), "level 1");
  device_indexer_capacity capacity;
  capacity.device = device_;
  capacity.geometry = context_->geometry;
  capacity.max_sequences = context_->options.max_sequences;
  capacity.max_chunks = stride;
  index_.reserve(capacity);
  for (std::int64_t p = 0; scores_stride_ > 0 && p < places; ++p)
    std::copy_n(pinned_scores_.as<float>() + p * scores_stride_, scores_stride_,
                on_host.as<float>() + p * stride);
  device_scores_ = std::move(on_device);
  pinned_scores_ = std::move(on_host);
  scores_stride_ = stride;
}

float* device_level1::scores_of(const memory_block& block, std::int32_t place) const noexcept {
  return block.as<float>() + std::int64_t{place} * scores_stride_;
}

std::size_t device_level1::row_bytes() const noexcept {
  std::int64_t elements = 0;
  for (const auto& rows : query_rows_) elements += rows.capacity * rows.width;
  for (const auto& rows : key_rows_) elements += rows.capacity * rows.width;
  return static_cast<std::size_t>(elements) * size_of(rows_type_);
}

std::int64_t device_level1::most_step_tokens() const noexcept {
  return std::min<std::int64_t>(level1_context::newest_rows, context_->options.max_rollback_tokens + 1);
}

std::size_t device_level1::list_bytes() const noexcept {
  const auto places = static_cast<std::size_t>(context_->options.max_sequences);
  return 2 * aligned_256(places * sizeof(std::int64_t)) +
         aligned_256(context_->query_sources.size() * places * sizeof(std::int64_t)) +
         aligned_256(index_.table_bytes(context_->options.max_sequences));
}

device_level1::launch_list device_level1::list_at(std::byte* base) const noexcept {
  carver at(base);
  launch_list list;
  list.places = at.take<std::int64_t>(context_->options.max_sequences);
  list.positions = at.take<std::int64_t>(context_->options.max_sequences);
  list.oldest = at.take<std::int64_t>(static_cast<std::int64_t>(context_->query_sources.size()) *
                                      context_->options.max_sequences);
  list.table = at.take<std::byte>(0);
  return list;
}

status device_level1::check_rows(const const_tensor<3>& rows, fault* error) const noexcept {
  if (rows.stride[2] != 1 && rows.shape[2] > 1)
    return refuse(status::bad_shape, "last stride of rows", 1, rows.stride[2], error);
  return status::ok;
}

status device_level1::keep(view<const observed_rows, 1> rows_of, const kept_rows& kept,
                           const row_tensor& from, cudaStream_t stream, fault* error) noexcept {
  for (std::int64_t i = 0; i < rows_of.shape[0];) {
    row_parts parts;
    std::int32_t count = 0;
    std::int64_t most = 0;
    for (; i < rows_of.shape[0] && count < row_parts::most; ++i, ++count) {
      const observed_rows& o = rows_of(i);
      parts.part[count] = {o.sequence->place, static_cast<std::int32_t>(o.tokens), o.position, o.from};
      most = std::max(most, o.tokens);
    }
    if (const status code = check(launch_keep_rows(kept, parts, count, most, from, stream), "observe", error);
        code != status::ok)
      return code;
  }
  return status::ok;
}

status device_level1::encode(const observed_rows& part, std::size_t source, const row_tensor& from,
                             stream_ref stream, fault* error) noexcept {
  served_sequence& s = *part.sequence;
  const kv_geometry& geometry = context_->geometry;
  const std::int64_t end = (part.position + part.tokens) / geometry.index_keys.tokens_per_key;
  const auto store_failed = [&](status code) {
    *error = context_->store.last_fault();
    error->code = code;
    error->sequence = s.handle.index;
    return code;
  };
  s.keys[source].torn = true;
  for (const std::int32_t lane : context_->key_sources[source].lanes) {
    index_key_pages pages;
    if (const status code = context_->store.index_keys(s.handle, lane, &pages); code != status::ok)
      return store_failed(code);
    for (std::int64_t key = pages.keys; key < end;) {
      const std::int64_t count = std::min(key_block, end - key);
      const row_part rows{s.place, static_cast<std::int32_t>(part.tokens), part.position, part.from};
      status code = check(encoders_->encode(lane, key_rows_[source], rows, from, key, count,
                                            key_staging_.as<std::byte>(), nan_counter(), stream.cuda()),
                          "encode_index_keys", error);
      if (code != status::ok) return code;
      code = context_->store.append_index_keys(
          s.handle, lane, key,
          view<const std::byte, 2>(key_staging_.as<std::byte>(), count, geometry.index_keys.bytes()), stream);
      if (code != status::ok) return store_failed(code);
      key += count;
    }
  }
  s.keys[source].torn = false;
  return status::ok;
}

status device_level1::observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                              const_tensor<3> rows, stream_ref stream, std::int64_t*, fault* error) noexcept {
  const device_guard guard(device_.ordinal);
  if (stream.is_host())
    return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, error);
  if (const status code = check_rows(rows, error); code != status::ok) return code;
  const row_tensor from{rows.data, rows.type, rows.stride[0], rows.stride[1], rows.shape[2]};
  for (std::size_t k = 0; k < key_rows_.size(); ++k) {
    if (context_->key_sources[k].kind != kind || context_->key_sources[k].layer != layer) continue;
    for (std::int64_t i = 0; i < rows_of.shape[0]; ++i)
      if (const status code = encode(rows_of(i), k, from, stream, error); code != status::ok) return code;
    if (const status code = keep(rows_of, key_rows_[k], from, stream.cuda(), error); code != status::ok)
      return code;
    for (std::int64_t i = 0; i < rows_of.shape[0]; ++i)
      rows_of(i).sequence->keys[k].ring.advance(rows_of(i).position, rows_of(i).tokens);
  }
  for (std::size_t q = 0; q < query_rows_.size(); ++q) {
    if (context_->query_sources[q].layer != layer || context_->query_sources[q].kind != kind) continue;
    if (const status code = keep(rows_of, query_rows_[q], from, stream.cuda(), error); code != status::ok)
      return code;
    for (std::int64_t i = 0; i < rows_of.shape[0]; ++i)
      rows_of(i).sequence->queries[q].advance(rows_of(i).position, rows_of(i).tokens);
  }
  return status::ok;
}

/// As of the newest scores that have arrived.
std::int64_t device_level1::more_nan_keys() const noexcept {
  return static_cast<std::int64_t>(
      *static_cast<volatile unsigned long long*>(nan_copy_.as<unsigned long long>()));
}

status device_level1::observe_step(const step_rows& step, std::int32_t layer, tap_kind kind,
                                   const_tensor<3> rows, stream_ref stream, fault* error) noexcept {
  if (const status code = check_rows(rows, error); code != status::ok) return code;
  const row_tensor from{rows.data, rows.type, rows.stride[0], rows.stride[1], rows.shape[2]};
  const kv_geometry& geometry = context_->geometry;
  const key_page page = key_page_of(geometry);
  const auto keep_step = [&](const kept_rows& kept) {
    return check(
        launch_keep_step(kept, step.places, step.positions, step.rows, step.tokens, from, stream.cuda()),
        "observe", error);
  };
  for (std::size_t k = 0; k < key_rows_.size(); ++k) {
    if (context_->key_sources[k].kind != kind || context_->key_sources[k].layer != layer) continue;
    if (const status code = keep_step(key_rows_[k]); code != status::ok) return code;
    for (const std::int32_t lane : context_->key_sources[k].lanes)
      if (const status code = check(
              encoders_->encode_step(lane, key_rows_[k], step.places, step.positions,
                                     step.keys + std::int64_t{lane} * step.rows * step.index_keys_per_row,
                                     step.rows, step.index_keys_per_row, page, nan_counter(), stream.cuda()),
              "encode_index_keys", error);
          code != status::ok)
        return code;
  }
  for (std::size_t q = 0; q < query_rows_.size(); ++q)
    if (context_->query_sources[q].layer == layer && context_->query_sources[q].kind == kind)
      if (const status code = keep_step(query_rows_[q]); code != status::ok) return code;
  return status::ok;
}

void device_level1::advance_step(served_sequence& s, std::int64_t position, std::int64_t tokens,
                                 const std::uint8_t* observed) const noexcept {
  const auto was_observed = [&](const auto& source) {
    return observed[static_cast<std::int32_t>(source.kind) * context_->geometry.layers + source.layer] != 0;
  };
  for (std::size_t q = 0; q < s.queries.size(); ++q)
    if (was_observed(context_->query_sources[q])) s.queries[q].advance(position, tokens);
  for (std::size_t k = 0; k < s.keys.size(); ++k)
    if (was_observed(context_->key_sources[k])) s.keys[k].ring.advance(position, tokens);
}

std::int64_t device_level1::width_of(std::int32_t layer, tap_kind kind) const noexcept {
  for (const auto& source : context_->query_sources)
    if (source.layer == layer && source.kind == kind) return source.width;
  for (const auto& source : context_->key_sources)
    if (source.layer == layer && source.kind == kind) return source.width;
  return -1;
}

std::byte* device_level1::row_address(const served_sequence& s, kept_row row,
                                      std::size_t* bytes) const noexcept {
  const kept_rows& rows = row.key ? key_rows_[row.source] : query_rows_[row.source];
  *bytes = static_cast<std::size_t>(rows.width) * size_of(rows.type);
  return rows.data + static_cast<std::size_t>(s.place * rows.capacity + row.token % rows.capacity) * *bytes;
}

/// For set-up calls: everything queued so far is over, or timed_out.
void device_level1::settle(const char* purpose) const {
  const cudaError_t code = wait_for_device(device_.deadline);
  if (code == cudaErrorNotReady)
    throw error(status::timed_out,
                fmt::format("{}: the device is still busy after {} ms", purpose, device_.deadline.count()));
  ask(code, purpose);
}

void device_level1::copy_rows(const served_sequence& from, served_sequence& to) {
  const device_guard guard(device_.ordinal);
  settle("attach_fork");
  const auto copy = [&](const kept_rows& rows) {
    const std::size_t bytes = static_cast<std::size_t>(rows.capacity * rows.width) * size_of(rows.type);
    ask(cudaMemcpy(rows.data + static_cast<std::size_t>(to.place) * bytes,
                   rows.data + static_cast<std::size_t>(from.place) * bytes, bytes, cudaMemcpyDeviceToDevice),
        "attach_fork");
  };
  for (const auto& rows : query_rows_) copy(rows);
  for (const auto& rows : key_rows_) copy(rows);
  settle("attach_fork");
}

void device_level1::read_row(const served_sequence& s, kept_row row, float* out) {
  const device_guard guard(device_.ordinal);
  settle("save_state");
  std::size_t bytes;
  const std::byte* const at = row_address(s, row, &bytes);
  std::vector<std::byte> raw(bytes);
  ask(cudaMemcpy(raw.data(), at, bytes, cudaMemcpyDeviceToHost), "save_state");
  for (std::size_t i = 0; i < bytes / size_of(rows_type_); ++i)
    out[i] = flashmemory::detail::load_float(raw.data(), rows_type_, static_cast<std::int64_t>(i));
}

void device_level1::write_row(served_sequence& s, kept_row row, const float* values) {
  const device_guard guard(device_.ordinal);
  settle("load_state");
  std::size_t bytes;
  std::byte* const at = row_address(s, row, &bytes);
  std::vector<std::byte> raw(bytes);
  for (std::size_t i = 0; i < bytes / size_of(rows_type_); ++i)
    flashmemory::detail::store_float(raw.data(), rows_type_, static_cast<std::int64_t>(i), values[i]);
  ask(cudaMemcpy(at, raw.data(), bytes, cudaMemcpyHostToDevice), "load_state");
  settle("load_state");  // it may only have begun
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
