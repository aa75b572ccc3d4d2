// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/memory.hpp>
#include <flashmemory/view.hpp>

#include "src/select/buffer.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {

/// What a share `hold` of a score's probability is as a score, or of the score itself where scores are no log-odds. What
/// is not above 0 then keeps nothing: a share of it would be more than it was.
float decayed_score(float score, float hold, bool log_odds) noexcept;

/// The scores that selection_policy::hold keeps of one sequence from refresh to refresh. Those of a refresh under way
/// wait beside the ones in force, so that a refresh that fails leaves no trace.
class held_scores {
 public:
  /// Room for `chunks` chunks; forgets what was there.
  /// \throws admission_error
  void reserve(const memory_resource& memory, std::int64_t chunks);

  /// Chunks from `chunk` on are others now.
  void forget_from(std::int64_t chunk) noexcept;

  /// What a selection goes by: the new score of each chunk or what is left of the one that it had, whichever is more. One
  /// that is no number stays so for this refresh, and what the chunk had goes on to the next.
  /// \param[out] out  [scores]
  void apply(view<const float, 1> scores, float hold, bool log_odds, float* out) noexcept;

  /// A refresh begins, or has ended without a new set.
  void drop_pending() noexcept { pending_ = false; }

  /// The set that was chosen by apply() is in force.
  void commit() noexcept;

  std::int64_t count() const noexcept { return count_; }
  float operator[](std::int64_t chunk) const noexcept { return now_[chunk]; }

  /// For forks and sessions: appends one, if there is room.
  void push(float score) noexcept {
    if (count_ < capacity_) now_[count_++] = score;
  }

 private:
  buffer memory_;
  std::int64_t capacity_ = 0;
  float* now_ = nullptr;   ///< [count_]
  float* next_ = nullptr;  ///< [next_count_]
  std::int64_t count_ = 0, next_count_ = 0;
  bool pending_ = false;
};

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
