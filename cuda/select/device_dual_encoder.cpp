// SPDX-License-Identifier: MIT
#include "cuda/select/device_dual_encoder.hpp"

#include <algorithm>
#include <flashmemory/error.hpp>

#include "cuda/core/carver.hpp"
#include "cuda/core/error.hpp"
#include "cuda/select/dual_key_encoders.hpp"
#include "cuda/select/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

void device_indexer::reserve(const device_indexer_capacity&) {}
std::size_t device_indexer::table_bytes(std::int32_t) const noexcept { return 0; }
status device_indexer::fill_table(const device_scoring&, fault*) noexcept { return status::ok; }

namespace detail {

device_dual_encoder::device_dual_encoder(const dual_encoder_config& config, dtype weights)
    : library_indexer(taps_of(config)),
      config_(config),
      weights_(weights),
      retrievers_(static_cast<std::int32_t>(config.retrievers.size())),
      fused_(config.reduce == key_reduction::max && (config.combine == ensemble::max || retrievers_ == 1)) {
  for (const retriever_weights& r : config.retrievers) {
    const auto same_layer = [&](const query_tap& tap) { return tap.layer == r.query_layer; };
    tap_of_.push_back(static_cast<std::int32_t>(
        std::find_if(taps().queries.begin(), taps().queries.end(), same_layer) - taps().queries.begin()));
  }
  hidden_.resize(static_cast<std::size_t>(retrievers_));
}

std::unique_ptr<key_encoders> device_dual_encoder::make_encoders(const memory_resource& memory) const {
  if (taps().index_keys.empty()) return nullptr;
  return std::make_unique<dual_key_encoders>(config_, memory);
}

void device_dual_encoder::reserve(const device_indexer_capacity& capacity) {
  const std::int64_t keys = capacity.max_chunks * capacity.geometry.index_keys_per_chunk();
  const std::int64_t stride = fused_ ? 0 : (keys + 63) / 64 * 64;
  memory_block logits;
  if (stride > 0)
    logits = memory_block(block_kind::device, capacity.device.memory,
                          std::size_t(retrievers_ * stride) * sizeof(float), "logits of index keys");
  if (!encoder_) {
    query_encoder_options encode;
    encode.weights = weights_;
    encode.max_rows = capacity.max_sequences;
    encoder_.emplace(config_, capacity.device, encode);
    for (auto& r : config_.retrievers) {
      r.wq_a = {};
      r.wq_b = {};
      r.q_norm = {};
      r.weights_proj = {};
      r.wk = {};
    }
    const auto lay_out = [&](std::byte* base) {
      carver at(base);
      encoded_.queries =
          at.take<std::byte>(std::int64_t{retrievers_} * capacity.max_sequences * config_.heads * 128);
      encoded_.weights = at.take<float>(std::int64_t{retrievers_} * capacity.max_sequences * config_.heads);
      encode_scratch_ = {at.take<std::byte>(static_cast<std::int64_t>(encoder_->workspace_bytes())),
                         encoder_->workspace_bytes()};
      return at.bytes();
    };
    scratch_ = memory_block(block_kind::device, capacity.device.memory, lay_out(nullptr), "level-1 scratch");
    lay_out(scratch_.as<std::byte>());
    capacity_ = capacity;
    load_kernels();
  }
  capacity_ = capacity;
  logits_block_ = std::move(logits);
  logits_ = logits_block_.as<float>();
  logit_stride_ = stride;
}

/// The products of different numbers of sequences have kernels of their own, and the first launch of a kernel may wait
/// for the device. Better now than in a step.
void device_dual_encoder::load_kernels() {
  const std::int64_t most = capacity_.max_sequences, width = config_.hidden;
  const memory_block rows(
      block_kind::device, capacity_.device.memory,
      std::size_t(most * width) * sizeof(float) + std::size_t(most) * sizeof(std::int64_t), "level-1 start");
  ask(cudaMemset(rows.as<void>(), 0, rows.bytes()), "level 1");
  ask(cudaDeviceSynchronize(), "level 1");
  cudaStream_t stream = nullptr;
  ask(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "level 1");
  const auto* const positions = rows.as<std::int64_t>();
  const auto* const values = reinterpret_cast<const float*>(positions + most);
  status code = status::ok;
  fault why;
  for (std::int64_t count = 1; code == status::ok; count *= 2) {
    count = std::min(count, most);
    for (auto& h : hidden_) h = const_tensor<2>(values, dtype::f32, count, width);
    code = encoder_->encode(hidden_.data(), positions, count, encoded_, encode_scratch_, stream_ref(stream),
                            &why);
    if (count == most) break;
  }
  const cudaError_t done = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  ask(done, "level 1");
  if (code != status::ok) throw error(code, describe(why));
}

std::size_t device_dual_encoder::table_bytes(std::int32_t max_sequences) const noexcept {
  return static_cast<std::size_t>(max_sequences) * static_cast<std::size_t>(retrievers_) * sizeof(score_job);
}

/// One job for each sequence and retriever: [due, retrievers].
status device_dual_encoder::fill_table(const device_scoring& call, fault* error) noexcept {
  auto* const jobs = reinterpret_cast<score_job*>(call.table);
  const std::int64_t count = call.due.shape[0];
  for (std::int64_t i = 0; i < count; ++i) {
    const device_score_request& s = call.due(i);
    for (std::int32_t r = 0; r < retrievers_; ++r) {
      index_key_pages pages;
      if (const status code = call.reader->index_keys(s.sequence, r, &pages); code != status::ok)
        return refuse(code, "index keys", -1, -1, error);
      score_job job;
      job.queries = encoded_.queries + (std::int64_t{r} * count + i) * config_.heads * 128;
      job.weights = encoded_.weights + (std::int64_t{r} * count + i) * config_.heads;
      job.keys = pages.data;
      job.count = s.chunks * capacity_.geometry.index_keys_per_chunk();
      job.offset = config_.retrievers[static_cast<std::size_t>(r)].logit_offset;
      if (fused_)
        job.chunk_max = s.scores;
      else
        job.logits = logits_ + r * logit_stride_;
      jobs[i * retrievers_ + r] = job;
    }
  }
  return status::ok;
}

status device_dual_encoder::score(const device_scoring& call, stream_ref stream, fault* error) noexcept {
  const auto* const jobs = reinterpret_cast<const score_job*>(call.table);
  const std::int64_t count = call.due.shape[0];
  for (std::size_t r = 0; r < hidden_.size(); ++r) hidden_[r] = call.queries[tap_of_[r]];
  status code =
      encoder_->encode(hidden_.data(), call.positions, count, encoded_, encode_scratch_, stream, error);
  if (code != status::ok) return code;
  score_options scoring;
  scoring.heads = config_.heads;
  scoring.keys_per_page = static_cast<std::int32_t>(capacity_.geometry.index_keys_per_chunk());
  scoring.layout = capacity_.geometry.index_keys.layout;
  scoring.chunk_max = fused_;
  scoring.num_sms = capacity_.device.num_sms;
  if (fused_)
    return cuda::score(scoring, jobs, static_cast<std::int32_t>(retrievers_ * count), {}, stream, error);
  for (std::int64_t i = 0; code == status::ok && i < count; ++i) {
    code = cuda::score(scoring, jobs + i * retrievers_, retrievers_, {}, stream, error);
    if (code == status::ok)
      code = check(
          launch_reduce_chunks(logits_, retrievers_, logit_stride_, call.due(i).chunks, scoring.keys_per_page,
                               config_.combine, config_.reduce, call.due(i).scores, stream.cuda()),
          "reduce_chunks", error);
  }
  return code;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
