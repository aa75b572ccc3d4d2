// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/parallel.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/learn/loss.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// Where training starts. None knows anything of a task.
enum class start_kind : std::int32_t {
  /// Normal weights. Learns which chunks are needed by anybody, but matching a query's content to a chunk's is a
  /// saddle that it leaves slowly or never.
  random,
  /// The bilinear map that best tells what recorded windows needed: whitened cross-moments of hidden states and
  /// of the keys that were paid most attention, then a convex refinement, then a factorisation.
  bilinear,
  /// The model's own query and key maps of some heads.
  attention,
  /// Directions of the largest variance of the model's embeddings, and ridge regressions onto them: of key
  /// inputs onto those of the lowest recorded index-key lane, of hidden states onto the keys that they needed.
  embeddings,
};

/// A head of the model whose maps the attention start takes over.
struct attention_head {
  std::string queries;         ///< tensor [heads * head_dim, hidden]
  std::string keys;            ///< tensor [kv_heads * head_dim, hidden]
  std::int32_t head = 0;       ///< among the query heads
  std::int32_t kv_head = 0;    ///< among the key heads
  std::int32_t head_dim = 64;  ///< at most 128
};

/// How a start is made.
struct start_options {
  start_kind kind = start_kind::bilinear;
  std::uint64_t seed = 1;
  label_rule labels;
  window_options windows;
  loss_options loss;               ///< of the convex refinement
  double ridge = 0.02;             ///< added to moments' eigenvalues, as a share of their mean
  std::int64_t convex_steps = 0;   ///< bilinear: steps on the map itself; 0 = closed form alone
  double convex_rate = 0.03;       ///< Adam's rate there, as a share of the map's standard deviation
  double noise = 0.02;             ///< parts heads of one sign from each other, as a share of their deviation
  std::int64_t max_documents = 0;  ///< for moments; 0 = all of the training split
  std::int64_t tokens_per_step = 16384;
  std::int64_t windows_per_document = 96;
  double needing_share = -1;  ///< of the windows drawn, as far as there are so many; < 0: uniform draws
  std::size_t memory_budget = std::size_t{2} << 30;  ///< bytes of documents kept between passes
  std::string tensors;                ///< attention, embeddings: safetensors file with the model's matrices
  std::vector<attention_head> heads;  ///< attention: per retriever one; one for all if there is only one
  std::string embedding;              ///< embeddings: tensor [vocabulary, hidden]
  thread_hook threads = default_threads();
};

/// Gives `architecture` weights. Its hidden size, layers, keys and roundings stay; weights that it has are
/// replaced. Query heads come in pairs of opposite sign whose gates have opposite sign too, so that the relu of
/// a pair adds up to a linear map; then gates and offset are fitted, by a logistic regression of "needed" on
/// chunk scores, so that logits are log-odds from the first step on.
///
/// A bilinear map of rank <= 128 becomes: wq_b and wk hold its factors, wq_a is the identity where rank ==
/// hidden, and the query factor otherwise.
/// \throws argument_error naming what does not fit; format_error for tensors; what document_source::load()
///     throws; argument_error if no training window needs anything (start_kind::random then works still)
FLASHMEMORY_API dual_encoder_config start_indexer(const document_source& source,
                                                  dual_encoder_config architecture,
                                                  const start_options& options);

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
