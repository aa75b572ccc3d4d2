// SPDX-License-Identifier: MIT
// flashmemory behind an unpatched llama.cpp, by its public callback alone. Made to be copied into an engine together with
// graph_reader, graph_names, model_facts, indexer_choice and pass_trace.
#pragma once

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <string>
#include <vector>

#include "graph_reader.hpp"
#include "model_facts.hpp"
#include "pass_trace.hpp"

namespace llama_flashmemory {

/// Set-up of an adapter.
struct adapter_options {
  std::string policy = "full";              ///< see indexer_choice.hpp; "full" keeps everything resident
  flashmemory::selection_policy selection;  ///< budget, interval, chunks always kept; not read by "full"
  std::string indexer;                      ///< file of a trained one, for "lsa"
  std::int64_t max_tokens = 0;            ///< of one sequence; 0 = the context that the model was trained for
  std::int32_t max_sequences = 1;         ///< their ids are 0 to max_sequences - 1
  std::int32_t max_rollback_tokens = 64;  ///< how far seq_rm() may go back in a model with window layers
  std::string backing_path;  ///< file for what is not resident, which must not exist; empty = memory
  std::string
      trace_path;  ///< file that what is chosen and looked at is written to, for trace_view; empty = none
  bool self_test = false;    ///< prove store and attention when it is made
  std::string model_tag;     ///< names the weights in sessions, e.g. a hash of the file
  bool any_version = false;  ///< go on with another llama.cpp than tested_llama_version
  flashmemory::thread_hook threads = flashmemory::default_threads();
};

/// What a sequence occupies now.
struct adapter_footprint {
  std::int64_t tokens = 0;
  std::int64_t chunks = 0;  ///< the open one included
  std::int64_t resident_chunks = 0;
  std::size_t resident_bytes = 0;  ///< K and V in the fast tier
  std::size_t index_bytes = 0;     ///< index keys and tables
  std::size_t all_bytes = 0;       ///< K and V of all chunks
  std::int64_t refreshes = 0;
};

/// A llama.cpp context whose full-attention layers keep their K and V in a flashmemory store. The context itself is
/// small: it holds the tokens of one pass, and of layers with a sliding window what the window still sees. Prompts and
/// decoding attend over the store.
///
/// In place of llama_decode() and the llama_memory_ functions an engine calls decode(), seq_rm() and seq_cp(); sampling
/// and everything else go on with context(). One thread at a time.
///
/// Whether tokens are part of a prompt follows from whose logits an engine asks for: a sequence is in its prompt until
/// the first pass that asks for its last token's, and again from a pass that does not, or that has more than
/// flashmemory::most_decode_tokens of its tokens. Prompts attend to everything, decoding to what is resident.
class adapter {
 public:
  /// Makes the context: `params` with cb_eval, n_ctx, n_seq_max, flash attention, one stream of sequences and full-size
  /// window caches set. n_ubatch is the largest pass. A pass of one token checks the graph's names and shapes.
  /// \throws flashmemory::error and its kinds: unsupported for a model, cache type or llama.cpp that it does not serve,
  ///     naming it; argument_error for options that cannot work; admission_error; io_failure, format_error for files
  adapter(llama_model* model, llama_context_params params, const adapter_options& options);
  ~adapter();
  adapter(const adapter&) = delete;
  adapter& operator=(const adapter&) = delete;

  /// For logits, sampling, threads. Its memory is the adapter's.
  llama_context* context() const noexcept { return context_.get(); }
  /// What is known of the model.
  const model_facts& facts() const noexcept { return facts_; }
  /// The store, for counters and traces.
  const flashmemory::tiered_chunk_store& store() const noexcept { return *store_; }
  /// Who chooses; null for "full".
  const flashmemory::selector* chooser() const noexcept { return selector_.get(); }
  /// Where to add to the trace; null without adapter_options::trace_path.
  flashmemory::selection_trace* trace() const noexcept { return trace_ ? &trace_->lines() : nullptr; }
  /// Most tokens of one decode().
  std::int32_t most_tokens() const noexcept { return most_tokens_; }

  /// llama_decode() of up to most_tokens() tokens: of each sequence a run of consecutive positions that starts where the
  /// sequence ends, one sequence id a token. On error nothing has changed.
  /// A refresh that the backing store's medium fails is no error: the old set stays, selector::counters() has it.
  /// \throws flashmemory::error: argument_error for a batch that is not like that, else what failed, by its name
  void decode(const llama_batch& batch);

  /// A whole prompt in passes of most_tokens(), logits of its last token only.
  /// \throws as decode(); what went before stays
  void prompt(llama_seq_id sequence, const std::vector<llama_token>& tokens);

  /// Tokens of a sequence; 0 if it is empty.
  std::int64_t tokens(llama_seq_id sequence) const;
  /// The handle of a sequence in store(); a default one if it is empty.
  flashmemory::sequence_handle handle(llama_seq_id sequence) const;
  /// What it occupies.
  adapter_footprint footprint(llama_seq_id sequence) const;

  /// Drops the tokens from `first` on; `end` must be -1 or the sequence's length.
  /// \throws flashmemory::error of code unsupported for anything in the middle, and for going back further than window
  ///     layers can follow
  void seq_rm(llama_seq_id sequence, llama_pos first, llama_pos end);
  /// Makes `to`, which must be empty, a copy of `from`: chunks are shared. `first` and `end` must name the whole
  /// sequence, or be -1.
  /// \throws flashmemory::error of code unsupported for a part; argument_error, admission_error
  void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos first, llama_pos end);
  /// Always refused: moving tokens along (context shift) would rotate keys that are stored and shared.
  /// \throws flashmemory::error of code unsupported
  [[noreturn]] void seq_add(llama_seq_id sequence, llama_pos first, llama_pos end, llama_pos delta);

  /// Puts a sequence in a file, and brings it back into an empty one, which decodes on bit for bit.
  /// \throws as flashmemory::save_session() and load_session(); format_error for a file whose windows are missing
  void save(llama_seq_id sequence, const std::string& path) const;
  void load(llama_seq_id sequence, const std::string& path);

 private:
  struct context_free {
    void operator()(llama_context* c) const noexcept { llama_free(c); }
  };
  struct slot {  ///< one sequence id
    flashmemory::sequence_handle handle;
    std::int64_t tokens = 0;
    bool in_prompt = true;
    llama_pos window_from = 0;  ///< first token that llama.cpp still has
  };
  struct part {  ///< of a pass: neighbouring items that attend alike
    flashmemory::batch items;
    std::int64_t first_row = 0, rows = 0;
    bool everything = false;
  };
  struct probe;

  static bool on_node(ggml_tensor* node, bool ask, void* self) noexcept;
  bool node(ggml_tensor* node, bool ask);
  void attend(const ggml_tensor* output, std::int32_t layer);
  void look(llama_context_params params);
  void build_store();
  slot& slot_of(llama_seq_id sequence);
  const slot& slot_of(llama_seq_id sequence) const;
  void open(slot& s);
  void take(const llama_batch& batch);
  void pass(const llama_batch& batch);
  void forget_pass() noexcept;
  void finish_pass(const llama_batch& batch);
  void note_tokens(const llama_batch& batch);
  void trim(llama_seq_id sequence);
  llama_memory_t memory() const noexcept { return llama_get_memory(context_.get()); }
  void require(flashmemory::status code, const char* what) const;

  llama_model* model_;
  adapter_options options_;
  model_facts facts_;
  std::unique_ptr<llama_context, context_free> context_;
  std::int32_t most_tokens_ = 0;
  graph_reader reader_;
  std::vector<std::int32_t> store_layer_;  ///< [layers], -1 for window layers
  std::unique_ptr<probe> probe_;           ///< while the constructor looks at the graph
  std::vector<bool> has_input_;            ///< [layers], whether the graph names the attention block's input
  std::int32_t query_heads_ = 0;
  float softmax_scale_ = 0;
  flashmemory::kv_geometry geometry_;
  flashmemory::sequence_options sequence_options_;
  std::unique_ptr<flashmemory::indexer> indexer_;
  std::unique_ptr<flashmemory::tiered_chunk_store> store_;
  std::unique_ptr<pass_trace> trace_;
  std::unique_ptr<flashmemory::selector> selector_;
  std::vector<std::byte> scratch_;

  std::vector<slot> slots_;  ///< [max_sequences]
  // Of the pass under way.
  std::vector<flashmemory::batch_item> items_;
  std::vector<llama_seq_id> item_sequences_;
  std::vector<bool> asks_;      ///< whether an item's last token wants logits
  std::vector<bool> was_open_;  ///< before the pass
  std::vector<part> parts_;
  std::int32_t layers_done_ = 0;
  std::string failure_;
  flashmemory::status failure_code_ = flashmemory::status::ok;
};

}  // namespace llama_flashmemory
