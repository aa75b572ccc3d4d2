// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "model.hpp"

namespace replay {

/// The structure that is planted in otherwise random keys, so that selection has something to find. While a sequence is
/// at topic t its queries point at `planted` chunks of its prompt; from one topic to the next `drift` of them are left
/// behind and as many come in. In a chunk of the topic one entry's index keys, of every layer, point back.
///
/// Candidates are put in a random order; topic t has those with places [t * drift, t * drift + planted).
struct topic_rule {
  std::int32_t planted = 0;
  std::int32_t drift = 0;
  std::int32_t topics = 0;
  std::int32_t chunk_entries = 0;

  /// The entry of the chunk at `place` that carries `topic`; different topics of a chunk have different ones.
  REPLAY_HD std::int32_t entry_of(std::int32_t place, std::int32_t topic) const noexcept {
    return (7 * place + topic) % chunk_entries;
  }

  /// First and last topic of the chunk at `place`; none if first > last.
  REPLAY_HD std::int32_t first_topic(std::int32_t place) const noexcept {
    return place < planted ? 0 : (place - planted) / drift + 1;
  }
  REPLAY_HD std::int32_t last_topic(std::int32_t place) const noexcept {
    return place / drift < topics ? place / drift : topics - 1;
  }

  /// The topic that an entry of the chunk at `place` carries, -1 if none.
  REPLAY_HD std::int32_t topic_of(std::int32_t place, std::int32_t entry) const noexcept {
    if (place < 0) return -1;
    const std::int32_t first = first_topic(place);
    const std::int32_t ahead =
        ((entry - entry_of(place, first)) % chunk_entries + chunk_entries) % chunk_entries;
    return first + ahead <= last_topic(place) ? first + ahead : -1;
  }
};

/// A sequence's planted chunks.
class topic_plan {
 public:
  /// \param first, end  candidates: chunks [first, end) of the prompt
  /// \throws std::invalid_argument if the rule cannot work: fewer candidates than all topics need, more topics in a
  ///     chunk than it has entries
  topic_plan(const topic_rule& rule, std::int32_t first, std::int32_t end, std::uint64_t seed);

  const topic_rule& rule() const noexcept { return rule_; }

  /// Place of every chunk below `end` in the random order, -1 for those that are no candidates; what topic_rule takes.
  const std::vector<std::int32_t>& places() const noexcept { return places_; }

  /// Whether `topic` is planted in a chunk.
  bool has(std::int32_t topic, std::int32_t chunk) const noexcept;

  /// The chunks of a topic, in no particular order.
  std::vector<std::int32_t> chunks_of(std::int32_t topic) const;

 private:
  topic_rule rule_;
  std::vector<std::int32_t> order_;   ///< chunk of each place
  std::vector<std::int32_t> places_;  ///< place of each chunk
};

}  // namespace replay
