// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/select/policy.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {

/// Rotary position encoding of index queries (YaRN), applied to adjacent pairs of the last `dim` of 128
/// elements. Paper section "RoPE"; frequencies as DeepSeek-V4 uses them.
struct rope_options {
  std::int32_t dim = 0;  ///< 0 = none; else 64
  double base = 160000;
  double factor = 16;  ///< context extension; 1 = plain RoPE
  std::int64_t original_length = 65536;
  double beta_fast = 32;
  double beta_slow = 1;
  std::int64_t max_positions = 524288;  ///< positions at or beyond it are clamped to the last
};

/// One retriever of the ensemble: where it taps the model, and its weights (row-major f32).
struct retriever_weights {
  std::string name;              ///< of the artifact's tensors: "retrievers.<name>."
  std::int32_t query_layer = 0;  ///< engine layer whose hidden state it reads
  std::int32_t key_layer = 0;    ///< engine layer whose hidden states its keys come from; unused without wk
  std::vector<float> wq_a;       ///< [rank, hidden]
  std::vector<float> q_norm;     ///< [rank]
  std::vector<float> wq_b;       ///< [heads * 128, rank]
  std::vector<float> weights_proj;  ///< [heads, hidden]
  std::vector<float> wk;            ///< [128, hidden]; empty = the model has index keys of its own
  float logit_offset = 0;
};

/// How key logits become a chunk's score.
enum class key_reduction : std::int32_t {
  max,             ///< the best key
  count_positive,  ///< keys whose probability is above 0.5, as the reference's page recall counts them
  sum,             ///< sum of the keys' probabilities
};

/// How retrievers agree.
enum class ensemble : std::int32_t {
  max,   ///< a key is as good as the best retriever says: max of logits
  mean,  ///< mean of probabilities, expressed as log-odds
};

/// Everything that defines a dual-encoder indexer. Dimensions follow from the weights.
struct dual_encoder_config {
  std::int32_t hidden = 0;
  std::int32_t rank = 0;
  std::int32_t heads = 0;
  float q_norm_eps = 1e-6f;
  bool bf16_rounding = true;  ///< round queries to bf16 before and after RoPE, as the reference does
  rope_options rope;          ///< dim 0 for models whose keys carry no position
  std::int32_t tokens_per_key = 4;
  std::int32_t key_window = 4;    ///< tokens a key of wk sees
  float key_scale_floor = 1e-4f;  ///< smallest amax when keys are quantised; 448e-12 = scale >= 1e-12
  ensemble combine = ensemble::max;
  key_reduction reduce = key_reduction::max;
  std::string model_fingerprint;  ///< of the model it was trained for; empty = not stated
  std::vector<retriever_weights> retrievers;
};

/// The paper's memory indexer: per retriever a low-rank query encoder over one layer's hidden state, scored
/// against fp8 index keys by a gated sum of relus over heads. The arithmetic is the published scorer's, step
/// by step: both bf16 roundings, interleaved RoPE pairs on the last 64 elements with an f32 product of
/// position and frequency, Hadamard / sqrt(128), head gates scaled by 128^-0.5 * heads^-0.5, relu, sum,
/// offset.
///
/// Immutable; may be shared by any number of selectors and threads.
class FLASHMEMORY_API dual_encoder_indexer final : public indexer {
 public:
  /// \throws argument_error naming the retriever and tensor if a size disagrees or a weight is NaN or Inf
  explicit dual_encoder_indexer(dual_encoder_config config);
  ~dual_encoder_indexer() override;

  /// What it was built with.
  const dual_encoder_config& config() const noexcept;

  status score(const score_request& request, view<float, 1> scores) noexcept override;
  std::size_t workspace_bytes(const kv_geometry& geometry, std::int64_t max_chunks,
                              std::int64_t max_keys) const noexcept override;
  status encode_index_keys(std::int32_t lane, view<const float, 2> rows, view<std::byte, 2> keys,
                           workspace scratch, thread_hook threads) const noexcept override;

  /// The query side alone: hidden state -> rotated, transformed query heads and head gates of one retriever.
  /// \param[in]  hidden   [hidden]
  /// \param[out] queries  [heads, 128]
  /// \param[out] gates    [heads], scale factors included
  /// \returns out_of_range, bad_argument for a negative position, null_data, workspace_small
  status encode_query(std::int32_t retriever, const float* hidden, std::int64_t position, float* queries,
                      float* gates, workspace scratch) const noexcept;

  /// The scoring side alone: logits of `count` keys against one retriever's encoded query, offset included. A
  /// key with an e4m3 NaN or a scale that is not finite gets NaN.
  /// \param[in]  keys    pages of `page_keys` keys each in `layout`; the last may be partly filled
  /// \param[out] logits  [count]
  status score_keys(std::int32_t retriever, const float* queries, const float* gates, const std::byte* keys,
                    std::int64_t count, std::int64_t page_keys, index_key_layout layout, float* logits,
                    thread_hook threads) const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

/// Reads a dual encoder from a safetensors file: the library's own artifact, or a checkpoint in the
/// reference's tensor names without metadata ("retrievers.l{ID}." and so on; ID is then both query and key
/// layer, mapped through `layer_of_id`). f32, bf16 and f16 tensors are accepted.
/// \param layer_of_id  for files without metadata: engine layer of each ID, ascending IDs; empty = ID itself
/// \throws format_error naming file and tensor (missing, wrong shape or dtype, NaN or Inf, metadata of
///     another version or that contradicts the tensors); io_failure; argument_error if `layer_of_id` has
///     another length
FLASHMEMORY_API dual_encoder_config load_dual_encoder(const std::string& path,
                                                      const std::vector<std::int32_t>& layer_of_id = {});

/// What an artifact says it was trained for, as a policy: interval, sink and recent chunks; its threshold is 0 (log-odds),
/// which calibration has moved into the retrievers' offsets. The defaults where the file says nothing.
/// \throws io_failure, format_error naming what of it cannot be read
FLASHMEMORY_API selection_policy recommended_policy(const std::string& path);

/// Writes `config` as an artifact that load_dual_encoder() reads, atomically.
/// \throws argument_error, io_failure
/// \param notes  further metadata of the file, e.g. how it was trained; load_dual_encoder() does not look at it.
///     Not under the names "format", "version" and "config"
FLASHMEMORY_API void save_dual_encoder(const dual_encoder_config& config, const std::string& path,
                                       const std::map<std::string, std::string>& notes = {});

/// The taps of an indexer of this configuration.
/// \throws argument_error as dual_encoder_indexer's constructor, except for the weights
FLASHMEMORY_API indexer_taps taps_of(const dual_encoder_config& config);

}  // namespace v0
}  // namespace flashmemory
