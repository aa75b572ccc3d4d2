// SPDX-License-Identifier: MIT
#pragma once

#include <llama.h>

#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <string>
#include <vector>

namespace llama_flashmemory {

/// Writes a trace of what an adapter's passes do: beside the selector's own lines the text of chunks and tokens, and the
/// attention that decoding pays, which costs as much as attention does.
class pass_trace {
 public:
  /// \throws as flashmemory::selection_trace
  pass_trace(const std::string& path, const flashmemory::chunk_reader& store, const std::string& title,
             const llama_vocab* vocabulary, std::int32_t max_sequences, std::int32_t query_heads);

  flashmemory::selection_trace& lines() noexcept { return lines_; }

  /// A token of a pass, in order of its positions.
  void token(llama_seq_id sequence, const flashmemory::batch_item& item, std::int64_t position,
             llama_token token, bool decoding);
  /// `to` has become a copy of `from`.
  void copied(llama_seq_id from, llama_seq_id to, flashmemory::sequence_handle handle);
  /// The sequence has so many tokens left.
  void shortened(llama_seq_id sequence, std::int64_t tokens);

  /// Room for log-sum-exps of `rows` rows of a layer.
  flashmemory::view<float, 2> room(std::int64_t rows);
  /// What one layer's decoding has paid to each chunk. Layers of a pass come in ascending order.
  /// \param options  as given to sparse_attend(), with the log-sum-exps that it left
  void attended(flashmemory::batch items, std::int32_t layer, flashmemory::const_tensor<3> q,
                const flashmemory::attend_options& options);

 private:
  struct written {  ///< text of a sequence
    std::vector<std::string> chunks;
    std::int64_t tokens = 0;
  };

  const flashmemory::chunk_reader& store_;
  const llama_vocab* vocabulary_;
  std::int32_t query_heads_;
  flashmemory::selection_trace lines_;
  std::vector<written> sequences_;
  std::vector<float> lse_;
  std::vector<std::vector<float>> mass_;  ///< of the items of the part, largest over layers and heads
};

}  // namespace llama_flashmemory
