// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/train/record/document.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// What makes a chunk needed.
enum class label_kind : std::int32_t {
  /// Per token and layer the softmax mass, averaged over heads, is sorted; entries are kept while the
  /// cumulative mass is at most `nucleus`, and the one that crosses it, so always at least one. A chunk is
  /// needed if some token of the window has at least `votes` layers that kept an entry of it (arXiv
  /// 2606.09079, training data).
  nucleus_votes,
  /// The largest mass that any head of any layer gives the chunk at any token of the window is at least
  /// `min_mass`.
  max_mass,
  /// The recorded evidence: entries that the window's tokens are known to need.
  needed_set,
};

/// A query head of the model.
struct model_head {
  std::int32_t layer = 0;
  std::int32_t head = 0;
};

/// A label rule with its parameters; only those of its kind are read.
struct label_rule {
  label_kind kind = label_kind::max_mass;
  float nucleus = 0.6f;           ///< in (0, 1]
  std::int32_t votes = 3;         ///< layers, >= 1
  float min_mass = 0.5f;          ///< in (0, 1]
  std::int32_t min_tokens = 1;    ///< max_mass: tokens of the window at which some head must pay so much
  std::int32_t layer = -1;        ///< >= 0: only this layer's attention counts
  std::vector<model_head> heads;  ///< max_mass: only these heads count; empty = all
};

/// How windows and chunks are cut, and what the recording covers.
struct window_options {
  std::int64_t tau = 64;                ///< tokens a window looks ahead
  std::int32_t sink_chunks = 1;         ///< first chunks; resident anyway: neither positive nor negative
  std::int32_t recent_chunks = 2;       ///< newest complete chunks, likewise
  std::int32_t entries_per_chunk = 64;  ///< need not be the one of the recording
  std::int32_t tokens_per_entry = 1;    ///< the recording's
  std::int32_t layers = 1;              ///< the recording's
  std::int32_t heads = 1;               ///< the recording's; nucleus_votes averages over them
};

/// The defaults with what a recording says about chunks, entries, layers and heads.
FLASHMEMORY_API window_options window_options_for(const recording_geometry& geometry) noexcept;

/// \throws argument_error naming the field that cannot work
FLASHMEMORY_API void validate(const label_rule& rule);
/// \throws argument_error naming the field that cannot work
FLASHMEMORY_API void validate(const window_options& options);

/// A chunk that the window needs.
struct positive_chunk {
  chunk_id chunk = 0;
  /// How clearly, in (0, 1]: nucleus_votes: largest share of the layers that voted for it at one token; max_mass:
  /// the mass; needed_set: 1.
  float weight = 1;
};

/// Labels of the query at `position`: the chunks that tokens (position, position + tau] need. Candidates are
/// the complete chunks that are neither sink nor recent; a candidate that is no positive is a negative.
/// Chunks outside the candidates are neither: they are resident anyway or do not exist yet.
struct window_labels {
  std::int64_t position = 0;
  std::int64_t complete_chunks = 0;       ///< when the token at `position` has been processed
  std::int64_t first_candidate = 0;       ///< candidates are [first_candidate, end_candidate)
  std::int64_t end_candidate = 0;         ///< >= first_candidate
  std::int64_t tokens_seen = 0;           ///< tokens of the window that were recorded; 0 = nothing is known
  std::vector<positive_chunk> positives;  ///< ascending, candidates only; empty = nothing old is needed

  /// Number of candidates.
  std::int64_t candidates() const noexcept { return end_candidate - first_candidate; }
};

/// Makes the labels of one window. A window that needs nothing old comes back without positives, and is a
/// sample like any other. For needed_set all tokens of the window that exist count as seen.
/// \throws argument_error if rule or options cannot work, or `position` is outside the document
FLASHMEMORY_API window_labels label_window(const document& doc, std::int64_t position, const label_rule& rule,
                                           const window_options& options);

/// How the attention of a window was spread over chunks: per complete chunk the largest mass that any head
/// gives it (what an oracle ranks by), and the sum over tokens, layers and heads (for coverage).
struct window_mass {
  std::int64_t complete_chunks = 0;
  std::int64_t tokens_seen = 0;
  std::vector<float> max;   ///< [complete_chunks]
  std::vector<double> sum;  ///< [complete_chunks], recorded items only
};

/// \param layer >= 0: only this layer's attention counts
/// \throws argument_error as label_window()
FLASHMEMORY_API window_mass mass_of_window(const document& doc, std::int64_t position,
                                           const window_options& options, std::int32_t layer = -1);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
