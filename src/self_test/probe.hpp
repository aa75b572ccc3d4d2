// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <flashmemory/indexer/indexer.hpp>
#include <vector>

#include "src/self_test/planted.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// An indexer that wants what it is told to, and makes index keys of which every bit depends on every bit of the hidden
/// states that they stand for. Before it scores it looks at all keys of the sequence.
class probe_indexer final : public indexer {
 public:
  probe_indexer(const kv_geometry& geometry, const planted_model& model);

  /// What score() is to prefer, and next to that.
  std::int64_t wanted = 0, second = 0;

  /// The first key that score() did not find as it should be; lane -1 if there was none.
  struct wrong_key {
    std::int64_t lane = -1, key = -1;
    bool missing = false;
  };
  const wrong_key& wrong() const noexcept { return wrong_; }

  /// Keys from this token on are made anew.
  void went_back(std::int64_t tokens) noexcept {
    checked_ = std::min(checked_, tokens / geometry_.index_keys.tokens_per_key);
  }

  status score(const score_request& request, view<float, 1> scores) noexcept override;
  status encode_index_keys(std::int32_t lane, view<const float, 2> rows, view<std::byte, 2> keys,
                           workspace scratch, thread_hook threads) const noexcept override;

 private:
  void make_key(std::int32_t lane, std::uint64_t seed, std::byte* out) const noexcept;
  static std::uint64_t digest(std::uint64_t seed, float x) noexcept;

  kv_geometry geometry_;
  const planted_model& model_;
  std::vector<std::byte> expected_;
  wrong_key wrong_;
  std::int64_t checked_ =
      0;  ///< keys of all lanes that have been looked at; a sequence that grows shows new ones only
  std::uint32_t checked_sequence_ = ~0u;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
