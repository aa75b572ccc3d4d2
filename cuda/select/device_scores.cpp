// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "cuda/core/error.hpp"
#include "cuda/select/device_dual_encoder.hpp"
#include "cuda/select/device_level1.hpp"
#include "cuda/select/device_pooled_keys.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

status device_level1::enqueue_scores(const launch_list& device, device_scoring call, stream_ref stream,
                                     fault* error) noexcept {
  const cudaStream_t cuda = stream.cuda();
  const std::int64_t count = call.due.shape[0];
  for (std::size_t q = 0; q < query_rows_.size(); ++q)
    if (const status code = check(
            launch_gather_rows(query_rows_[q], device.places, device.positions,
                               device.oldest + static_cast<std::int64_t>(q) * context_->options.max_sequences,
                               count, context_->query_sources[q].tokens, gathered_[q], cuda),
            "gather", error);
        code != status::ok)
      return code;
  for (std::size_t t = 0; t < queries_.size(); ++t) {
    const auto source = static_cast<std::size_t>(context_->source_of_tap[t]);
    const std::int64_t width = query_rows_[source].width, kept = context_->query_sources[source].tokens;
    const std::int64_t wanted = taps().queries[t].tokens;
    queries_[t] = const_tensor<2>(
        gathered_[source] + static_cast<std::size_t>((kept - wanted) * width) * size_of(rows_type_),
        rows_type_, count, wanted * width);
    queries_[t].stride[0] = kept * width;
  }
  call.queries = queries_.data();
  call.positions = device.positions;
  call.table = device.table;
  status code = index_.score(call, stream, error);
  for (std::int64_t i = 0; code == status::ok && i < count; ++i) {
    const device_score_request& request = call.due(i);
    code = check(cudaMemcpyAsync(scores_of(pinned_scores_, good_[static_cast<std::size_t>(i)]->place),
                                 request.scores, static_cast<std::size_t>(request.chunks) * sizeof(float),
                                 cudaMemcpyDeviceToHost, cuda),
                 "copy of scores", error);
  }
  return code;
}

status device_level1::start(view<served_sequence* const, 1> due, stream_ref stream, fault* error) noexcept {
  const device_guard guard(device_.ordinal);
  if (stream.is_host())
    return refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, error);
  const level1_context& context = *context_;
  const std::int32_t lanes = taps().reads.lanes;
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

  if (const fault f = context.store.order(stream); f.code != status::ok) {
    *error = f;
    return f.code;
  }

  // What cannot be scored is left out and told by poll().
  good_.clear();
  for (std::int64_t i = 0; i < due.shape[0]; ++i) {
    served_sequence& s = *due(i);
    scored_place& place = scored_[static_cast<std::size_t>(s.place)];
    place = {part, generation, fault{}};
    for (std::int32_t r = 0; r < lanes && place.failure.code == status::ok; ++r) {
      index_key_pages pages;
      if (const status code = context.store.index_keys(s.handle, r, &pages); code != status::ok) {
        place.failure = context.store.last_fault();
        place.failure.code = code;
      } else if (pages.keys / context.geometry.index_keys_per_chunk() < s.flight.chunks) {
        place.failure.code =
            refuse(status::index_keys_missing, "index keys",
                   s.flight.chunks * context.geometry.index_keys_per_chunk(), pages.keys, &place.failure);
        place.failure.lane = r;
      }
      place.failure.sequence = s.handle.index;
    }
    if (place.failure.code == status::ok) good_.push_back(&s);
  }
  const auto count = static_cast<std::int64_t>(good_.size());
  if (count == 0) return status::ok;
  requests_.clear();
  for (std::int64_t i = 0; i < count; ++i) {
    const served_sequence& s = *good_[static_cast<std::size_t>(i)];
    host.places[i] = s.place;
    host.positions[i] = s.flight.position;
    for (std::size_t q = 0; q < s.queries.size(); ++q)
      host.oldest[static_cast<std::int64_t>(q) * context.options.max_sequences + i] = s.queries[q].first();
    requests_.push_back({s.handle, s.flight.position, s.flight.chunks, scores_of(device_scores_, s.place)});
  }
  device_scoring call;
  call.reader = &context.store;
  call.due = view<const device_score_request, 1>(requests_.data(), count);
  call.table = host.table;
  if (const status code = index_.fill_table(call, error); code != status::ok) return code;
  status code = check(launch_fetch(staged, lists_.as<std::byte>(), list_bytes(), stream.cuda()),
                      "scoring tables", error);
  if (code == status::ok) code = enqueue_scores(device, call, stream, error);
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
  const device_guard guard(device_.ordinal);
  return answer(fences_[place.part].query(), s, error);
}

status device_level1::wait(served_sequence& s, fault* error) noexcept {
  status code = poll(s, error);
  if (code != status::pending) return code;
  const device_guard guard(device_.ordinal);
  code = answer(fences_[scored_[static_cast<std::size_t>(s.place)].part].wait(context_->options.deadline), s,
                error);
  if (code != status::pending) return code;
  code = refuse(status::timed_out, "scores", context_->options.deadline.count(), -1, error);
  error->sequence = s.handle.index;
  return code;
}

view<const float, 1> device_level1::scores(const served_sequence& s) const noexcept {
  return view<const float, 1>(scores_of(pinned_scores_, s.place), s.flight.chunks);
}

}  // namespace detail

std::unique_ptr<selector> make_selector(tiered_chunk_store& store, const dual_encoder_config& config,
                                        const selection_policy& policy, const selector_options& options,
                                        const device_selector_options& device) {
  const dual_encoder_indexer checked(config);  // its constructor names whatever is wrong with the weights
  return std::make_unique<selector>(
      std::make_unique<detail::device_level1>(
          context_of(store), std::make_unique<detail::device_dual_encoder>(config, device.weights),
          device.rows),
      store, policy, options);
}

std::unique_ptr<selector> make_selector(tiered_chunk_store& store, const pooled_keys_config& config,
                                        const selection_policy& policy, const selector_options& options,
                                        dtype rows) {
  return std::make_unique<selector>(
      std::make_unique<detail::device_level1>(context_of(store),
                                              std::make_unique<detail::device_pooled_keys>(config), rows),
      store, policy, options);
}

std::unique_ptr<selector> make_selector(tiered_chunk_store& store, device_indexer& index,
                                        const selection_policy& policy, const selector_options& options,
                                        dtype rows) {
  return std::make_unique<selector>(std::make_unique<detail::device_level1>(context_of(store), index, rows),
                                    store, policy, options);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
