// SPDX-License-Identifier: MIT
#include "cuda/select/device_level1.hpp"

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>

#include "cuda/core/error.hpp"
#include "src/core/convert.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t staging_parts = 4;
constexpr std::int64_t key_block = 4096;  // keys that a prompt encodes at a time

std::size_t aligned(std::size_t bytes) noexcept { return (bytes + alignment - 1) / alignment * alignment; }

/// Lays out arrays in one block, in two passes: sizes first, then addresses.
class carver {
 public:
  explicit carver(std::byte* base) noexcept : base_(base) {}
  template <class T>
  T* take(std::int64_t count) noexcept {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += aligned(static_cast<std::size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(at);
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

[[noreturn]] void refuse_options(const std::string& what) {
  throw argument_error(status::bad_argument, "cuda::make_selector: " + what);
}

}  // namespace

device_level1::device_level1(const dual_encoder_config& config, const selector_device_options& device)
    : config_(config), options_(device), taps_(config) {
  if (options_.rows != dtype::f32 && options_.rows != dtype::bf16 && options_.rows != dtype::f16)
    refuse_options("selector_device_options::rows must be f32, bf16 or f16");
  if (options_.num_sms < 0) refuse_options(fmt::format("num_sms is {}", options_.num_sms));
}

void device_level1::set_up(const level1_context& context) {
  context_ = &context;
  const device_guard guard(options_.device);
  const std::int64_t places = context.options.max_sequences;
  if (places > 4096) refuse_options(fmt::format("max_sequences is {}, at most 4096", places));
  if (config_.tokens_per_key != context.geometry.tokens_per_key)
    refuse_options(fmt::format("the indexer was trained for {} tokens a key, the store has {}",
                               config_.tokens_per_key, context.geometry.tokens_per_key));
  query_encoder_options encode;
  encode.weights = options_.weights;
  encode.max_rows = static_cast<std::int32_t>(places);
  encode.device = options_.device;
  encode.memory = options_.memory;
  encoder_.emplace(config_, encode);
  const auto retrievers = static_cast<std::int64_t>(config_.retrievers.size());
  fused_ = config_.reduce == key_reduction::max && (config_.combine == ensemble::max || retrievers == 1);

  const auto block = [&](block_kind kind, std::size_t bytes, const char* purpose) {
    return memory_block(kind, kind == block_kind::device ? options_.memory : options_.pinned, bytes, purpose);
  };
  const std::size_t element = size_of(options_.rows);
  const auto lay_out_rows = [&](std::byte* base) {
    carver at(base);
    query_rows_.clear();
    key_rows_.clear();
    for (const auto& source : context.query_sources)
      query_rows_.push_back({at.take<std::byte>(places * level1_context::query_rows * source.width *
                                                static_cast<std::int64_t>(element)),
                             options_.rows, source.width, level1_context::query_rows});
    for (const auto& source : context.key_sources)
      key_rows_.push_back({at.take<std::byte>(places * context.key_rows(source) * source.width *
                                              static_cast<std::int64_t>(element)),
                           options_.rows, source.width, context.key_rows(source)});
    return at.bytes();
  };
  rows_ = block(block_kind::device, lay_out_rows(nullptr), "hidden states of sequences");
  lay_out_rows(rows_.as<std::byte>());

  std::int64_t streams = 0;
  for (const auto& r : config_.retrievers) streams += !r.wk.empty();
  weights_ =
      block(block_kind::device, std::size_t(streams * config_.hidden) * 128 * sizeof(float), "key encoder");
  std::vector<float> transposed(static_cast<std::size_t>(config_.hidden) * 128);
  float* next = weights_.as<float>();
  for (auto& r : config_.retrievers) {
    if (r.wk.empty()) continue;
    for (std::int64_t row = 0; row < 128; ++row)
      for (std::int64_t i = 0; i < config_.hidden; ++i)
        transposed[static_cast<std::size_t>(i * 128 + row)] =
            r.wk[static_cast<std::size_t>(row * config_.hidden + i)];
    ask(cudaMemcpy(next, transposed.data(), transposed.size() * sizeof(float), cudaMemcpyHostToDevice),
        "key encoder");
    key_weights_.push_back(next);
    next += transposed.size();
  }
  for (auto& r : config_.retrievers) {
    r.wq_a = {};
    r.wq_b = {};
    r.q_norm = {};
    r.weights_proj = {};
    r.wk = {};
  }

  const std::int64_t keys = context.max_chunks * context.geometry.keys_per_chunk();
  logit_stride_ = fused_ ? 0 : (keys + 63) / 64 * 64;
  const auto lay_out_scratch = [&](std::byte* base) {
    carver at(base);
    encoded_.queries = at.take<std::byte>(retrievers * places * config_.heads * 128);
    encoded_.weights = at.take<float>(retrievers * places * config_.heads);
    gathered_.clear();
    for (const auto& source : context.query_sources)
      gathered_.push_back(at.take<std::byte>(places * source.width * static_cast<std::int64_t>(element)));
    encode_scratch_ = {at.take<std::byte>(static_cast<std::int64_t>(encoder_->workspace_bytes())),
                       encoder_->workspace_bytes()};
    logits_ = at.take<float>(retrievers * logit_stride_);
    key_staging_ = at.take<std::byte>(streams > 0 ? key_block * context.geometry.key_bytes : 0);
    return at.bytes();
  };
  scratch_ = block(block_kind::device, lay_out_scratch(nullptr), "level-1 scratch");
  lay_out_scratch(scratch_.as<std::byte>());
  lists_ = block(block_kind::device, list_bytes(), "scoring jobs");
  staging_ = block(block_kind::pinned, list_bytes() * staging_parts, "scoring jobs");
  const std::size_t score_bytes = std::size_t(places * context.max_chunks) * sizeof(float);
  device_scores_ = block(block_kind::device, score_bytes, "chunk scores");
  pinned_scores_ = block(block_kind::pinned, score_bytes, "chunk scores");
  nan_keys_ = block(block_kind::device, sizeof(unsigned long long), "counter of keys");
  nan_copy_ = block(block_kind::pinned, sizeof(unsigned long long), "counter of keys");
  *nan_copy_.as<unsigned long long>() = 0;
  ask(cudaMemset(nan_keys_.as<void>(), 0, nan_keys_.bytes()), "counter of keys");
  ask(cudaMemset(rows_.as<void>(), 0, rows_.bytes()), "hidden states of sequences");
  ask(cudaDeviceSynchronize(), "level 1");
  fences_ = std::vector<event>(staging_parts);
  generations_.resize(staging_parts);
  scored_.resize(static_cast<std::size_t>(places));
  good_.reserve(static_cast<std::size_t>(places));
  hidden_.resize(static_cast<std::size_t>(retrievers));
  load_kernels();
}

/// The products of different numbers of sequences have kernels of their own, and the first launch of a kernel may wait
/// for the device. Better now than in a step.
void device_level1::load_kernels() {
  ask(cudaMemset(scratch_.as<void>(), 0, scratch_.bytes()), "level-1 scratch");
  ask(cudaMemset(lists_.as<void>(), 0, lists_.bytes()), "scoring jobs");
  ask(cudaDeviceSynchronize(), "level 1");
  cudaStream_t stream = nullptr;
  ask(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "level 1");
  const launch_list device = list_at(lists_.as<std::byte>());
  status code = status::ok;
  fault why;
  for (std::int64_t rows = 1; code == status::ok; rows *= 2) {
    rows = std::min<std::int64_t>(rows, context_->options.max_sequences);
    for (std::size_t r = 0; r < hidden_.size(); ++r) {
      const auto source = static_cast<std::size_t>(
          context_->source_of_tap[static_cast<std::size_t>(taps_.tap_of(static_cast<std::int32_t>(r)))]);
      hidden_[r] = const_tensor<2>(gathered_[source], options_.rows, rows, query_rows_[source].width);
    }
    code = encoder_->encode(hidden_.data(), device.positions, rows, encoded_, encode_scratch_,
                            stream_ref(stream), &why);
    if (rows == context_->options.max_sequences) break;
  }
  const cudaError_t done = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  ask(done, "level 1");
  if (code != status::ok) throw error(code, describe(why));
}

std::size_t device_level1::row_bytes() const noexcept {
  std::int64_t elements = 0;
  for (const auto& rows : query_rows_) elements += rows.capacity * rows.width;
  for (const auto& rows : key_rows_) elements += rows.capacity * rows.width;
  return static_cast<std::size_t>(elements) * size_of(options_.rows);
}

std::int64_t device_level1::most_step_tokens() const noexcept {
  return std::min<std::int64_t>(level1_context::query_rows, context_->options.max_rollback_tokens + 1);
}

std::size_t device_level1::list_bytes() const noexcept {
  const std::size_t places = static_cast<std::size_t>(context_->options.max_sequences);
  return aligned(places * config_.retrievers.size() * sizeof(score_job)) +
         2 * aligned(places * sizeof(std::int64_t));
}

device_level1::launch_list device_level1::list_at(std::byte* base) const noexcept {
  carver at(base);
  const std::int64_t places = context_->options.max_sequences;
  launch_list list;
  list.jobs = at.take<score_job>(places * static_cast<std::int64_t>(config_.retrievers.size()));
  list.places = at.take<std::int64_t>(places);
  list.positions = at.take<std::int64_t>(places);
  return list;
}

key_encoder device_level1::encoder_of(std::int32_t key_stream) const noexcept {
  key_encoder e;
  e.weights = key_weights_[static_cast<std::size_t>(key_stream)];
  e.hidden = config_.hidden;
  e.tokens_per_key = config_.tokens_per_key;
  e.window = config_.key_window;
  e.scale_floor = config_.key_scale_floor;
  e.nan_keys = nan_counter();
  return e;
}

status device_level1::check_rows(const const_tensor<2>& rows, fault* error) const noexcept {
  if (rows.stride[1] != 1 && rows.shape[1] > 1)
    return refuse(status::bad_shape, "hidden stride", 1, rows.stride[1], error);
  return status::ok;
}

status device_level1::keep(view<const observed_rows, 1> rows_of, const kept_rows& kept,
                           const hidden_tensor& from, cudaStream_t stream, fault* error) noexcept {
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

status device_level1::encode(const observed_rows& part, std::size_t source, const hidden_tensor& from,
                             stream_ref stream, fault* error) noexcept {
  served_sequence& s = *part.sequence;
  const kv_geometry& geometry = context_->geometry;
  const std::int64_t end = (part.position + part.tokens) / geometry.tokens_per_key;
  const auto store_failed = [&](status code) {
    *error = context_->store.last_fault();
    error->code = code;
    error->sequence = s.handle.index;
    return code;
  };
  s.keys[source].torn = true;
  for (const std::int32_t key_stream : context_->key_sources[source].streams) {
    key_pages pages;
    if (const status code = context_->store.keys(s.handle, key_stream, &pages); code != status::ok)
      return store_failed(code);
    for (std::int64_t key = pages.keys; key < end;) {
      const std::int64_t count = std::min(key_block, end - key);
      const row_part rows{s.place, static_cast<std::int32_t>(part.tokens), part.position, part.from};
      status code = check(launch_encode_keys(encoder_of(key_stream), key_rows_[source], rows, from, key,
                                             count, key_staging_, stream.cuda()),
                          "encode_keys", error);
      if (code != status::ok) return code;
      code = context_->store.append_keys(s.handle, key_stream, key,
                                         view<const std::byte, 2>(key_staging_, count, geometry.key_bytes),
                                         stream);
      if (code != status::ok) return store_failed(code);
      key += count;
    }
  }
  s.keys[source].torn = false;
  return status::ok;
}

status device_level1::observe(view<const observed_rows, 1> rows_of, std::int32_t layer, tap_kind kind,
                              const_tensor<2> rows, stream_ref stream, std::int64_t*, fault* error) noexcept {
  const device_guard guard(options_.device);
  if (stream.is_host())
    return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, error);
  if (const status code = check_rows(rows, error); code != status::ok) return code;
  const hidden_tensor from{rows.data, rows.type, rows.stride[0]};
  for (std::size_t k = 0; k < key_rows_.size(); ++k) {
    if (kind != tap_kind::hidden || context_->key_sources[k].layer != layer) continue;
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

status device_level1::observe_step(const step_rows& step, std::int32_t layer, const_tensor<2> rows,
                                   stream_ref stream, fault* error) noexcept {
  if (const status code = check_rows(rows, error); code != status::ok) return code;
  const hidden_tensor from{rows.data, rows.type, rows.stride[0]};
  const kv_geometry& geometry = context_->geometry;
  key_page page;
  page.key_bytes = geometry.key_bytes;
  page.page_keys = static_cast<std::int32_t>(geometry.keys_per_chunk());
  page.planar = geometry.keys == key_layout::planar;
  const auto keep_step = [&](const kept_rows& kept) {
    return check(
        launch_keep_step(kept, step.places, step.positions, step.rows, step.tokens, from, stream.cuda()),
        "observe", error);
  };
  for (std::size_t k = 0; k < key_rows_.size(); ++k) {
    if (context_->key_sources[k].layer != layer) continue;
    if (const status code = keep_step(key_rows_[k]); code != status::ok) return code;
    for (const std::int32_t key_stream : context_->key_sources[k].streams)
      if (const status code = check(
              launch_encode_step_keys(encoder_of(key_stream), key_rows_[k], step.places, step.positions,
                                      step.keys + std::int64_t{key_stream} * step.rows * step.keys_per_row,
                                      step.rows, step.keys_per_row, page, stream.cuda()),
              "encode_keys", error);
          code != status::ok)
        return code;
  }
  for (std::size_t q = 0; q < query_rows_.size(); ++q)
    if (context_->query_sources[q].layer == layer && context_->query_sources[q].kind == tap_kind::hidden)
      if (const status code = keep_step(query_rows_[q]); code != status::ok) return code;
  return status::ok;
}

void device_level1::advance_step(served_sequence& s, std::int64_t position, std::int64_t tokens,
                                 const std::uint8_t* observed) const noexcept {
  for (std::size_t q = 0; q < s.queries.size(); ++q)
    if (observed[context_->query_sources[q].layer]) s.queries[q].advance(position, tokens);
  for (std::size_t k = 0; k < s.keys.size(); ++k)
    if (observed[context_->key_sources[k].layer]) s.keys[k].ring.advance(position, tokens);
}

std::int64_t device_level1::width_of(std::int32_t layer) const noexcept {
  for (const auto& source : context_->query_sources)
    if (source.layer == layer) return source.width;
  for (const auto& source : context_->key_sources)
    if (source.layer == layer) return source.width;
  return -1;
}

std::byte* device_level1::row_address(const served_sequence& s, kept_row row,
                                      std::size_t* bytes) const noexcept {
  const kept_rows& rows = row.key ? key_rows_[row.source] : query_rows_[row.source];
  *bytes = static_cast<std::size_t>(rows.width) * size_of(rows.type);
  return rows.data + static_cast<std::size_t>(s.place * rows.capacity + row.token % rows.capacity) * *bytes;
}

void device_level1::copy_rows(const served_sequence& from, served_sequence& to) {
  const device_guard guard(options_.device);
  ask(cudaDeviceSynchronize(), "attach_fork");
  const auto copy = [&](const kept_rows& rows) {
    const std::size_t bytes = static_cast<std::size_t>(rows.capacity * rows.width) * size_of(rows.type);
    ask(cudaMemcpy(rows.data + static_cast<std::size_t>(to.place) * bytes,
                   rows.data + static_cast<std::size_t>(from.place) * bytes, bytes, cudaMemcpyDeviceToDevice),
        "attach_fork");
  };
  for (const auto& rows : query_rows_) copy(rows);
  for (const auto& rows : key_rows_) copy(rows);
  ask(cudaDeviceSynchronize(), "attach_fork");
}

void device_level1::read_row(const served_sequence& s, kept_row row, float* out) {
  const device_guard guard(options_.device);
  ask(cudaDeviceSynchronize(), "save_state");
  std::size_t bytes;
  const std::byte* const at = row_address(s, row, &bytes);
  std::vector<std::byte> raw(bytes);
  ask(cudaMemcpy(raw.data(), at, bytes, cudaMemcpyDeviceToHost), "save_state");
  for (std::size_t i = 0; i < bytes / size_of(options_.rows); ++i)
    out[i] = flashmemory::detail::load_float(raw.data(), options_.rows, static_cast<std::int64_t>(i));
}

void device_level1::write_row(served_sequence& s, kept_row row, const float* values) {
  const device_guard guard(options_.device);
  ask(cudaDeviceSynchronize(), "load_state");
  std::size_t bytes;
  std::byte* const at = row_address(s, row, &bytes);
  std::vector<std::byte> raw(bytes);
  for (std::size_t i = 0; i < bytes / size_of(options_.rows); ++i)
    flashmemory::detail::store_float(raw.data(), options_.rows, static_cast<std::int64_t>(i), values[i]);
  ask(cudaMemcpy(at, raw.data(), bytes, cudaMemcpyHostToDevice), "load_state");
  ask(cudaStreamSynchronize(nullptr), "load_state");  // it may only have begun
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
