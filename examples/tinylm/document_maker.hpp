// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/train/label/attention_mass.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "document_recorder.hpp"
#include "engine.hpp"
#include "session_maker.hpp"
#include "tasks.hpp"

namespace tinylm {

/// What `tinylm record` is told.
struct record_options {
  std::string data = default_data_folder();
  std::string text, part = "0:0.6", out;
  std::vector<std::int64_t> lengths{4096, 8192, 16384};
  std::vector<std::string> kinds;
  std::vector<std::int64_t> per_kind{16};  ///< per length; one for all if there is only one
  std::uint64_t seed = 1;
  bool odd = false, greedy = false, fresh = false, progress = false;
  std::int64_t tau = 64;
  std::int64_t background = 8;
  session_options sessions;
  std::int64_t session_queries = 128;  ///< per 1024 tokens
  std::int32_t skip_sink = 0, skip_recent = 0;
  double validation = 0.125;
  std::vector<std::int32_t> query_layers, key_layers{0, 1, 2}, key_windows{16};
  std::int32_t tokens_per_key = 4;
  std::string writer = "0";
  std::int64_t share = 0, shares = 1;
  std::size_t memory_mib = 256;
  std::int32_t max_entries = 24;
  float min_mass = 0.004f;
  std::int32_t threads = 0;
};

/// The kind of documents that are sessions; the others are kinds of task.
constexpr const char* session_kind = "session";

/// A document to record.
struct record_job {
  std::string kind;
  std::int64_t length, index;
};

/// Makes documents, has the engine process them with everything resident, and shows it to a recorder.
class document_maker {
 public:
  /// All are kept by reference. `text` is what sessions are made of, `tasks` what the other kinds are
  document_maker(const record_options& options, const tokenizer& words, engine& model,
                 flashmemory::train::recorder& to, const task_maker& tasks, const haystack& text);

  /// Records one document; its tokens.
  std::int64_t record(const record_job& what);

 private:
  std::int64_t record_task(const record_job& what);
  std::int64_t record_session(const record_job& what);
  template <class Work>
  std::int64_t with_sequence(flashmemory::train::recording_id id, const std::vector<std::int64_t>& queries,
                             std::int64_t most, Work&& work);
  std::int64_t teach(const served_sequence& served, const std::vector<token_id>& prompt,
                     const std::vector<token_id>& gold, const made_task& task,
                     flashmemory::train::recording_id id);
  std::int64_t generate(const served_sequence& served, const std::vector<token_id>& prompt, std::int64_t most,
                        const std::vector<token_id>& gold, const made_task& task,
                        flashmemory::train::recording_id id);
  void add_evidence(const made_task& task, flashmemory::train::recording_id id, std::int64_t prompt,
                    std::int64_t processed);
  flashmemory::train::dataset_split split_of(std::int64_t index) const;
  std::vector<std::int64_t> background_of(const record_job& what, std::int64_t length) const;
  std::vector<std::int64_t> queries_of(const record_job& what, const session& made) const;
  std::vector<std::int64_t> windows_of(const std::vector<std::int64_t>& queries, std::int64_t tokens) const;

  const record_options& options_;
  const tokenizer& words_;
  engine& engine_;
  flashmemory::train::recorder& to_;
  const task_maker& tasks_;
  session_maker sessions_;
  std::int64_t max_tokens_ = 0;
  std::unique_ptr<flashmemory::tiered_chunk_store> store_;
  flashmemory::train::attention_mass_options mass_;
};

}  // namespace tinylm
