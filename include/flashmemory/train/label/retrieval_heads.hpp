// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// A head with what it does on recordings.
struct ranked_head {
  model_head head;
  /// Mean over recorded tokens of the largest mass that it gives one chunk which is not resident anyway, in
  /// [0, 1].
  double mass = 0;
};

/// Ranks the model's heads by how much they look for: over the recorded tokens of the training split, the mean of
/// the largest mass given to a complete chunk outside sink and recent. A head that retrieves gives such a chunk
/// most of its mass, one that looks at the sink, at neighbours or at everything a little does not. Nothing is
/// known of tasks.
/// \param max_documents  as many of the training split at most, evenly spaced; 0 = all
/// \returns all heads, heaviest first; of equal ones the lower layer, then the lower head
/// \throws argument_error if no token of the training split has recorded attention; what document_source::load()
///     throws
FLASHMEMORY_API std::vector<ranked_head> rank_retrieval_heads(const document_source& source,
                                                              const window_options& options,
                                                              std::int64_t max_documents = 32);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
