// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// What training minimises: a weighted sum of losses on the logits z of a window's candidate chunks, y = 1 for
/// those that the window needs. A weight of 0 leaves a loss out.
struct loss_options {
  /// Lin et al., arXiv 1708.02002: -a (1 - p)^gamma log p for positives, -(1 - a) p^gamma log(1 - p) for
  /// negatives, with p = sigmoid(z); summed and divided by the number of positives in the batch, at least 1.
  double focal = 1;
  double focal_gamma = 2;
  double focal_alpha = 0.75;  ///< a, in (0, 1)

  /// Binary cross entropy, summed and divided as the focal loss is.
  double bce = 0;
  double bce_positive_weight = 1;  ///< of a positive's term

  /// Negatives that focal and BCE see per positive, drawn anew at every step; at least this many also in a
  /// window without positives. 0 = all candidates.
  double negatives_per_positive = 0;

  /// InfoNCE over the chunks of the window's document: -log softmax(z / temperature) of a positive, averaged
  /// over the window's positives, then over windows that have any.
  double contrastive = 0.5;
  double contrastive_temperature = 1;
  bool contrastive_against_negatives = false;  ///< leave the other positives out of a positive's softmax

  /// softplus(margin - z+ + z-) of every positive against the window's hardest negatives under the current
  /// model; averaged per window, then over windows that have positives.
  double ranking = 0;
  double ranking_margin = 1;
  std::int32_t ranking_negatives = 8;

  /// Weigh a positive by its label's weight (how clearly it was needed) instead of 1.
  bool weighted_positives = false;
};

/// \throws argument_error naming the field that cannot work
FLASHMEMORY_API void validate(const loss_options& options);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
