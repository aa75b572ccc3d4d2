// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace replay {

/// Which topic a sequence is at. It moves on once per interval, together with the refreshes: the hidden state of the
/// token at which one is due asks for what the next interval needs, as a trained indexer would read from it, and level
/// 2's queries follow one step later. Until the new chunks are resident, the old set serves the new topic.
class topic_schedule {
 public:
  /// \param interval  steps between two refreshes
  /// \param topics    that there are; the last one stays
  topic_schedule(std::int64_t interval, std::int32_t topics) noexcept
      : interval_(interval), topics_(topics) {}

  /// Whether a refresh is due at the token at `position`.
  bool due(std::int64_t position) const noexcept { return due_ >= 0 && position == due_; }

  /// What the hidden states of the token at `position` ask for.
  std::int32_t hidden(std::int64_t position) const noexcept { return at(due_ >= 0 && position >= due_); }
  /// What its queries look for.
  std::int32_t queries(std::int64_t position) const noexcept { return at(due_ >= 0 && position > due_); }

  /// A refresh that scored the token at `position` has taken effect.
  void refreshed(std::int64_t position) noexcept {
    if (due_ >= 0 && position >= due_) topic_ = at(true);
    due_ = position + interval_;
  }

  /// Without refreshes the topic moves on by itself.
  void tick(std::int64_t position) noexcept {
    if (due_ < 0)
      due_ = position + interval_;
    else if (position > due_)
      refreshed(due_);
  }

 private:
  std::int32_t at(bool next) const noexcept { return next && topic_ + 1 < topics_ ? topic_ + 1 : topic_; }

  std::int64_t interval_;
  std::int32_t topics_;
  std::int32_t topic_ = 0;
  std::int64_t due_ = -1;  ///< position of the next refresh; -1 = not known yet
};

}  // namespace replay
