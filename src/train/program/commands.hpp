// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <flashmemory/train/calibrate/calibrate.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/learn/backend.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <memory>
#include <string>

namespace indexer_program {

/// Each adds a subcommand; its callback does the work.
void add_train(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_report(CLI::App& app);
void add_show(CLI::App& app);
void add_export(CLI::App& app);
void add_import(CLI::App& app);

/// Options that say what a window needs. Chunk and layer counts come from the recordings.
struct label_arguments {
  flashmemory::train::label_rule rule;
  std::int64_t tau = 64;
  std::int32_t sink_chunks = 1;
  std::int32_t recent_chunks = 2;

  std::int64_t label_heads = 0;

  void add_to(CLI::App& app);
  /// \throws CLI::ValidationError naming the option that the recordings cannot serve
  void check(const flashmemory::train::recording_geometry& geometry) const;
  /// Where the rule counts some heads only, finds them in the recordings and tells which they are.
  void find_heads(const flashmemory::train::document_source& source);
  flashmemory::train::window_options windows(const flashmemory::train::recording_geometry& geometry) const;
};

/// Options of evaluation and calibration.
struct evaluation_arguments {
  std::int64_t max_windows = 64;
  std::int64_t max_documents = 0;
  double recall = 0;
  double footprint = 0;
  bool one_offset = false;

  void add_to(CLI::App& app, bool goal);
  flashmemory::train::evaluation_options options(
      const label_arguments& labels, const flashmemory::train::recording_geometry& geometry) const;
};

/// "7:2" = query layer 7, keys of layer 2; without weights. \throws CLI::ValidationError
flashmemory::retriever_weights parse_retriever(const std::string& text);

/// "cpu", "cuda" or "cuda:1" = where training is done; empty for the CPU. \throws CLI::ValidationError
flashmemory::train::backend_factory parse_device(const std::string& text);

}  // namespace indexer_program
