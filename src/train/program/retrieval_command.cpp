// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <flashmemory/io/output_file.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/train/exchange/retrieval.hpp>

#include "src/train/program/commands.hpp"
#include "src/train/program/ranges.hpp"

namespace indexer_program {
namespace {

namespace fm = flashmemory;
namespace ft = flashmemory::train;

struct export_arguments {
  std::string recordings, out;
  label_arguments labels;
  ft::retrieval_export_options options;
  bool only_needing = false;
};

struct import_arguments {
  std::string recordings, out;
  std::vector<std::string> files;
  label_arguments labels;
  std::string prefix;
  float q_norm_eps = 1e-6f;
  bool bf16_queries = false;
};

void import_files(const import_arguments& a) {
  fm::check_output_file(a.out);
  const ft::recordings data(a.recordings);
  const ft::recording_geometry& g = data.geometry();
  fm::dual_encoder_config base;
  base.q_norm_eps = a.q_norm_eps;
  base.bf16_rounding = a.bf16_queries;
  base.model_fingerprint = g.model_fingerprint;
  if (!g.keys.empty()) {
    base.tokens_per_key = g.keys.front().tokens_per_key;
    base.key_window = g.keys.front().native() ? base.tokens_per_key : g.keys.front().window;
  }
  std::vector<ft::retrieval_import> files;
  for (const std::string& text : a.files) {
    const auto equals = text.find('=');
    if (equals == std::string::npos) {
      throw CLI::ValidationError("--file", "'" + text + "' is not QUERY_LAYER:KEY_LAYER=FILE");
    }
    const fm::retriever_weights taps = parse_retriever(text.substr(0, equals));
    ft::retrieval_import one;
    one.path = text.substr(equals + 1);
    one.prefix = a.prefix;
    one.name = taps.name;
    one.query_layer = taps.query_layer;
    one.key_layer = taps.key_layer;
    files.push_back(std::move(one));
  }
  ft::training_record record;
  record.windows = a.labels.windows(g);
  record.start = "imported";
  record.recordings = data.fingerprint();
  const fm::dual_encoder_config config = ft::import_dual_encoder(files, base);
  ft::save_artifact(config, record, a.out);
  fmt::print("{} retrievers, rank {}, {} heads, written to {}; calibrate it before use\n",
             config.retrievers.size(), config.rank, config.heads, a.out);
}

}  // namespace

void add_export(CLI::App& app) {
  auto a = std::make_shared<export_arguments>();
  CLI::App& cmd = *app.add_subcommand("export", "Write recordings as (query, positives, negatives) rows");
  cmd.add_option("recordings", a->recordings, "Folder that a recorder wrote")->required();
  cmd.add_option("-o,--out", a->out, "Folder to write")->required();
  a->labels.add_to(cmd);
  cmd.add_option("--query-tap", a->options.query_tap, "Number of the recorded query vector")
      ->check(within(0, 65535))
      ->capture_default_str();
  cmd.add_option("--key-stream", a->options.key_stream, "Number of the recorded index-key lane")
      ->check(within(0, 65535))
      ->capture_default_str();
  cmd.add_option("--negatives", a->options.negatives, "Per row")
      ->check(within(0, 1 << 20))
      ->capture_default_str();
  cmd.add_flag("--only-needing", a->only_needing, "Leave out windows that need nothing old");
  cmd.add_option("--seed", a->options.seed)->capture_default_str();
  cmd.callback([a] {
    fm::check_output_folder(a->out);
    const ft::recordings data(a->recordings);
    a->labels.check(data.geometry());
    a->labels.find_heads(ft::recordings_source(data));
    a->options.rule = a->labels.rule;
    a->options.windows = a->labels.windows(data.geometry());
    a->options.keep_windows_without_positives = !a->only_needing;
    const ft::retrieval_export_counts n = ft::export_retrieval(data, a->options, a->out);
    fmt::print("{} rows of {} documents with {} positives and {} negatives in {}\n", n.rows, n.documents,
               n.positives, n.negatives, a->out);
  });
}

void add_import(CLI::App& app) {
  auto a = std::make_shared<import_arguments>();
  CLI::App& cmd =
      *app.add_subcommand("import", "Make an indexer of encoders that a retrieval framework saved");
  cmd.add_option("recordings", a->recordings, "Folder whose rows they were trained on")->required();
  cmd.add_option("-f,--file", a->files, "QUERY_LAYER:KEY_LAYER=FILE, once per retriever")->required();
  cmd.add_option("-o,--out", a->out, "Indexer file to write")->required();
  cmd.add_option("--prefix", a->prefix, "Of the tensors' names");
  cmd.add_option("--q-norm-eps", a->q_norm_eps, "Of the query norm")->check(weight())->capture_default_str();
  cmd.add_flag("--bf16-queries", a->bf16_queries, "Round queries to bf16 as the published scorer does");
  a->labels.add_to(cmd);
  cmd.callback([a] { import_files(*a); });
}

}  // namespace indexer_program
