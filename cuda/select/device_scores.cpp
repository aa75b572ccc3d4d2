// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "cuda/core/error.hpp"
#include "cuda/select/device_level1.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

status device_level1::enqueue_scores(const launch_list& host, const launch_list& device, std::int64_t count,
                                     stream_ref stream, fault* error) noexcept {
  const level1_context& context = *context_;
  const cudaStream_t cuda = stream.cuda();
  const auto retrievers = static_cast<std::int64_t>(config_.retrievers.size());
  for (std::size_t q = 0; q < query_rows_.size(); ++q)
    if (const status code = check(
            launch_gather_rows(query_rows_[q], device.places, device.positions, count, gathered_[q], cuda),
            "gather", error);
        code != status::ok)
      return code;
  for (std::int32_t r = 0; r < retrievers; ++r) {
    const auto source =
        static_cast<std::size_t>(context.source_of_tap[static_cast<std::size_t>(taps_.tap_of(r))]);
    hidden_[static_cast<std::size_t>(r)] =
        const_tensor<2>(gathered_[source], options_.rows, count, query_rows_[source].width);
  }
  status code =
      encoder_->encode(hidden_.data(), device.positions, count, encoded_, encode_scratch_, stream, error);
  if (code != status::ok) return code;

  score_options scoring;
  scoring.heads = config_.heads;
  scoring.keys_per_page = static_cast<std::int32_t>(context.geometry.keys_per_chunk());
  scoring.layout = context.geometry.keys;
  scoring.chunk_max = fused_;
  scoring.num_sms = options_.num_sms;
  if (fused_)
    code = score(scoring, device.jobs, static_cast<std::int32_t>(retrievers * count), {}, stream, error);
  float* const on_device = device_scores_.as<float>();
  float* const on_host = pinned_scores_.as<float>();
  for (std::int64_t i = 0; code == status::ok && i < count; ++i) {
    const std::int64_t chunks = good_[static_cast<std::size_t>(i)]->flight.chunks;
    const std::int64_t at = host.places[i] * context.max_chunks;
    if (!fused_) {
      code = score(scoring, device.jobs + i * retrievers, static_cast<std::int32_t>(retrievers), {}, stream,
                   error);
      if (code == status::ok)
        code = check(launch_reduce_chunks(logits_, static_cast<std::int32_t>(retrievers), logit_stride_,
                                          chunks, scoring.keys_per_page, config_.combine, config_.reduce,
                                          on_device + at, cuda),
                     "reduce_chunks", error);
    }
    if (code == status::ok)
      code = check(
          cudaMemcpyAsync(on_host + at, on_device + at, static_cast<std::size_t>(chunks) * sizeof(float),
                          cudaMemcpyDeviceToHost, cuda),
          "copy of scores", error);
  }
  return code;
}

status device_level1::start(view<served_sequence* const, 1> due, stream_ref stream, fault* error) noexcept {
  const device_guard guard(options_.device);
  if (stream.is_host())
    return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, error);
  const level1_context& context = *context_;
  const auto retrievers = static_cast<std::int32_t>(config_.retrievers.size());
  const std::size_t part = (part_ + 1) % fences_.size();
  const bool blocks = context.options.apply == apply_mode::at_once;
  const cudaError_t free = blocks ? fences_[part].wait(context.options.deadline) : fences_[part].query();
  if (free == cudaErrorNotReady && !blocks) return status::pending;
  if (free == cudaErrorNotReady)
    return refuse(status::timed_out, "earlier refreshes on the device", -1, -1, error);
  if (free != cudaSuccess) return check(free, "earlier refreshes on the device", error);
  part_ = part;
  const std::uint64_t generation = ++generations_[part];
  std::byte* const staged = staging_.as<std::byte>() + part * list_bytes();
  const launch_list host = list_at(staged), device = list_at(lists_.as<std::byte>());

  // What cannot be scored is left out and told by poll().
  good_.clear();
  for (std::int64_t i = 0; i < due.shape[0]; ++i) {
    served_sequence& s = *due(i);
    scored_place& place = scored_[static_cast<std::size_t>(s.place)];
    place = {part, generation, fault{}};
    for (std::int32_t r = 0; r < retrievers && place.failure.code == status::ok; ++r) {
      key_pages pages;
      if (const status code = context.store.keys(s.handle, r, &pages); code != status::ok) {
        place.failure = context.store.last_fault();
        place.failure.code = code;
      } else if (pages.keys / context.geometry.keys_per_chunk() < s.flight.chunks) {
        place.failure.code =
            refuse(status::keys_missing, "index keys", s.flight.chunks * context.geometry.keys_per_chunk(),
                   pages.keys, &place.failure);
        place.failure.stream = r;
      }
      place.failure.sequence = s.handle.index;
    }
    if (place.failure.code == status::ok) good_.push_back(&s);
  }
  const auto count = static_cast<std::int64_t>(good_.size());
  if (count == 0) return status::ok;
  for (std::int64_t i = 0; i < count; ++i) {
    const served_sequence& s = *good_[static_cast<std::size_t>(i)];
    host.places[i] = s.place;
    host.positions[i] = s.flight.position;
    for (std::int32_t r = 0; r < retrievers; ++r) {
      key_pages pages;
      if (const status code = context.store.keys(s.handle, r, &pages); code != status::ok)
        return refuse(code, "keys", -1, -1, error);
      score_job job;
      job.queries = encoded_.queries + (std::int64_t{r} * count + i) * config_.heads * 128;
      job.weights = encoded_.weights + (std::int64_t{r} * count + i) * config_.heads;
      job.keys = pages.data;
      job.count = s.flight.chunks * context.geometry.keys_per_chunk();
      job.offset = config_.retrievers[static_cast<std::size_t>(r)].logit_offset;
      if (fused_)
        job.chunk_max = device_scores_.as<float>() + std::int64_t{s.place} * context.max_chunks;
      else
        job.logits = logits_ + r * logit_stride_;
      host.jobs[i * retrievers + r] = job;
    }
  }
  status code =
      check(launch_fetch(staged, lists_.as<std::byte>(), list_bytes(), stream.cuda()), "scoring jobs", error);
  if (code == status::ok) code = enqueue_scores(host, device, count, stream, error);
  if (code == status::ok)
    code = check(cudaMemcpyAsync(nan_copy_.as<void>(), nan_keys_.as<void>(), sizeof(unsigned long long),
                                 cudaMemcpyDeviceToHost, stream.cuda()),
                 "counter of keys", error);
  // Recorded in any case, since what was enqueued reads the staging memory.
  const status fenced = check(fences_[part].record(stream.cuda()), "scoring jobs", error);
  return code == status::ok ? fenced : code;
}

status device_level1::answer(cudaError_t code, const served_sequence& s, fault* error) const noexcept {
  if (code == cudaSuccess) return status::ok;
  if (code == cudaErrorNotReady) return status::pending;
  const status failed = check(code, "scores", error);
  error->sequence = s.handle.index;
  return failed;
}

status device_level1::poll(served_sequence& s, fault* error) noexcept {
  const scored_place& place = scored_[static_cast<std::size_t>(s.place)];
  if (place.failure.code != status::ok) {
    *error = place.failure;
    return error->code;
  }
  if (generations_[place.part] != place.generation) return status::ok;
  const device_guard guard(options_.device);
  return answer(fences_[place.part].query(), s, error);
}

status device_level1::wait(served_sequence& s, fault* error) noexcept {
  status code = poll(s, error);
  if (code != status::pending) return code;
  const device_guard guard(options_.device);
  code = answer(fences_[scored_[static_cast<std::size_t>(s.place)].part].wait(context_->options.deadline), s,
                error);
  if (code != status::pending) return code;
  code = refuse(status::timed_out, "scores", context_->options.deadline.count(), -1, error);
  error->sequence = s.handle.index;
  return code;
}

view<const float, 1> device_level1::scores(const served_sequence& s) const noexcept {
  return view<const float, 1>(pinned_scores_.as<float>() + std::int64_t{s.place} * context_->max_chunks,
                              s.flight.chunks);
}

}  // namespace detail

std::unique_ptr<selector> make_selector(chunk_store& store, const dual_encoder_config& config,
                                        const selection_policy& policy, const selector_options& options,
                                        const selector_device_options& device) {
  return std::make_unique<selector>(std::make_unique<detail::device_level1>(config, device), store, policy,
                                    options);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
