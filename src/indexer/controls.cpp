// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/controls.hpp>

namespace flashmemory {
inline namespace v0 {

namespace {

/// The finaliser of splitmix64: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

status check(const score_request& request, view<float, 1> scores) noexcept {
  if (request.chunks < 0 || scores.shape[0] < request.chunks) return status::bad_shape;
  if (request.chunks > 0 && scores.data == nullptr) return status::null_data;
  return status::ok;
}

}  // namespace

const char* recency_indexer::name() const noexcept { return "recency"; }
view<const query_tap, 1> recency_indexer::query_taps() const noexcept { return {}; }
view<const key_tap, 1> recency_indexer::key_taps() const noexcept { return {}; }
std::int32_t recency_indexer::key_streams() const noexcept { return 0; }
bool recency_indexer::log_odds() const noexcept { return false; }

std::size_t recency_indexer::workspace_bytes(const kv_geometry&, std::int64_t, std::int64_t) const noexcept {
  return 0;
}

status recency_indexer::encode_keys(std::int32_t, view<const float, 2>, view<std::byte, 2>, workspace,
                                    thread_hook) const noexcept {
  return status::unsupported;
}

status recency_indexer::score(const score_request& request, view<float, 1> scores, workspace, thread_hook,
                              stream_ref) noexcept {
  if (const status code = check(request, scores); code != status::ok) return code;
  for (std::int64_t c = 0; c < request.chunks; ++c) scores(c) = static_cast<float>(c);
  return status::ok;
}

const char* random_indexer::name() const noexcept { return "random"; }
view<const query_tap, 1> random_indexer::query_taps() const noexcept { return {}; }
view<const key_tap, 1> random_indexer::key_taps() const noexcept { return {}; }
std::int32_t random_indexer::key_streams() const noexcept { return 0; }
bool random_indexer::log_odds() const noexcept { return false; }

std::size_t random_indexer::workspace_bytes(const kv_geometry&, std::int64_t, std::int64_t) const noexcept {
  return 0;
}

status random_indexer::encode_keys(std::int32_t, view<const float, 2>, view<std::byte, 2>, workspace,
                                   thread_hook) const noexcept {
  return status::unsupported;
}

status random_indexer::score(const score_request& request, view<float, 1> scores, workspace, thread_hook,
                             stream_ref) noexcept {
  if (const status code = check(request, scores); code != status::ok) return code;
  const std::uint64_t draw =
      mix(mix(seed_ ^ mix((std::uint64_t{request.sequence.generation} << 32) | request.sequence.index)) +
          static_cast<std::uint64_t>(request.position));
  // 24 bits make an exact float in [0, 1).
  for (std::int64_t c = 0; c < request.chunks; ++c)
    scores(c) = static_cast<float>(mix(draw + static_cast<std::uint64_t>(c)) >> 40) * 0x1p-24f;
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
