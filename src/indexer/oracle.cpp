// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <unordered_map>
#include <vector>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {

struct oracle_indexer::impl {
  struct entry {
    std::int64_t position = 0;
    std::vector<float> mass;
  };
  std::int64_t horizon = 0;
  std::unordered_map<std::uint32_t, std::vector<entry>> recorded;  ///< ascending by position

  static bool earlier(const entry& e, std::int64_t position) noexcept { return e.position < position; }
};

namespace {

indexer_taps oracle_taps() {
  indexer_taps taps;
  taps.name = "oracle";
  return taps;
}

}  // namespace

oracle_indexer::oracle_indexer(std::int32_t horizon)
    : indexer(oracle_taps()), impl_(std::make_unique<impl>()) {
  if (horizon < 1)
    throw argument_error(status::bad_argument,
                         formatted("oracle_indexer: horizon must be at least 1, it is {}", horizon));
  impl_->horizon = horizon;
}

oracle_indexer::~oracle_indexer() = default;

void oracle_indexer::record(std::uint32_t sequence_index, std::int64_t position, view<const float, 1> mass) {
  if (position < 0 || mass.shape[0] < 0 || (mass.shape[0] > 0 && mass.data == nullptr))
    throw argument_error(
        status::bad_argument,
        formatted("oracle_indexer: position {} and {} chunks cannot be recorded", position, mass.shape[0]));
  impl::entry made;
  made.position = position;
  made.mass.reserve(static_cast<std::size_t>(mass.shape[0]));
  for (std::int64_t c = 0; c < mass.shape[0]; ++c) made.mass.push_back(mass(c));
  auto& list = impl_->recorded[sequence_index];
  const auto at = std::lower_bound(list.begin(), list.end(), position, impl::earlier);
  if (at != list.end() && at->position == position)
    *at = std::move(made);
  else
    list.insert(at, std::move(made));
}

void oracle_indexer::forget(std::uint32_t sequence_index) { impl_->recorded.erase(sequence_index); }

status oracle_indexer::score(const score_request& request, view<float, 1> scores) noexcept {
  if (request.chunks < 0 || scores.shape[0] < request.chunks) return status::bad_shape;
  if (request.chunks > 0 && scores.data == nullptr) return status::null_data;
  for (std::int64_t c = 0; c < request.chunks; ++c) scores(c) = 0;
  const auto found = impl_->recorded.find(request.sequence.index);
  if (found == impl_->recorded.end()) return status::ok;
  const auto& list = found->second;
  for (auto e = std::lower_bound(list.begin(), list.end(), request.position + 1, impl::earlier);
       e != list.end() && e->position - request.position <= impl_->horizon; ++e) {
    const std::int64_t known =
        std::min<std::int64_t>(request.chunks, static_cast<std::int64_t>(e->mass.size()));
    for (std::int64_t c = 0; c < known; ++c) {
      const float mass = e->mass[static_cast<std::size_t>(c)];
      if (std::isnan(mass) || mass > scores(c)) scores(c) = mass;
    }
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
