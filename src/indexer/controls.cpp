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

indexer_taps named(const char* name) {
  indexer_taps taps;
  taps.name = name;
  return taps;
}

}  // namespace

recency_indexer::recency_indexer() : indexer(named("recency")) {}

status recency_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  if (const status code = check(request, scores); code != status::ok) return code;
  for (std::int64_t c = 0; c < request.chunks; ++c) scores(c) = static_cast<float>(c);
  return status::ok;
}

random_indexer::random_indexer(std::uint64_t seed) : indexer(named("random")), seed_(seed) {}

status random_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  if (const status code = check(request, scores); code != status::ok) return code;
  const std::uint64_t draw =
      mix(mix(seed_ ^
              mix((std::uint64_t{request.sequence.generation & 0xfffff} << 32) | request.sequence.index)) +
          static_cast<std::uint64_t>(request.position));
  // 24 bits make an exact float in [0, 1).
  for (std::int64_t c = 0; c < request.chunks; ++c)
    scores(c) = static_cast<float>(mix(draw + static_cast<std::uint64_t>(c)) >> 40) * 0x1p-24f;
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
