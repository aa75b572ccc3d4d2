// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>
#include <flashmemory/error.hpp>
#include <flashmemory/io/output_file.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/train/label/retrieval_heads.hpp>

#include "src/train/program/commands.hpp"
#include "src/train/program/ranges.hpp"

namespace indexer_program {
namespace {

namespace fm = flashmemory;
namespace ft = flashmemory::train;

struct arguments {
  std::string recordings, indexer, out, json;
  label_arguments labels;
  evaluation_arguments evaluation;
};

void describe(const ft::training_record& r) {
  fmt::print("library {}; trained on recordings {}; start {}\n", r.library_version,
             r.recordings.empty() ? "?" : r.recordings, r.start.empty() ? "?" : r.start);
  fmt::print("tau {}, {} sink and {} recent chunks of {} entries x {} tokens\n", r.windows.tau,
             r.windows.sink_chunks, r.windows.recent_chunks, r.windows.entries_per_chunk,
             r.windows.tokens_per_entry);
  if (r.calibrated) {
    fmt::print("calibrated: recall {:.4f} at a footprint of {:.2f}% ({} windows, {} positives), offsets",
               r.calibration.recall, 100 * r.calibration.footprint, r.calibration.windows,
               r.calibration.positives);
    for (const double offset : r.calibration.offsets) fmt::print(" {:+.3f}", offset);
    fmt::print(", on recordings {}\n", r.calibrated_on.empty() ? "?" : r.calibrated_on);
  }
  if (!r.run.empty()) fmt::print("run {}\n", r.run);
}

/// A layer whose attention makes labels, -1 = all of them.
CLI::Validator labelled_layer() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        std::int32_t layer = 0;
        if (CLI::detail::lexical_cast(text, layer) && layer >= -1) return {};
        return fmt::format("{} is no layer that can be labelled by, nor -1 for all", text);
      },
      "-1 or a layer");
}

}  // namespace

void label_arguments::add_to(CLI::App& app) {
  using kind = ft::label_kind;
  app.add_option("--labels", rule.kind, "What makes a chunk needed")
      ->transform(CLI::CheckedTransformer(std::map<std::string, kind>{
          {"nucleus", kind::nucleus_votes}, {"max-mass", kind::max_mass}, {"evidence", kind::needed_set}}))
      ->default_str("max-mass");
  app.add_option("--min-mass", rule.min_mass, "max-mass: attention mass of a needed chunk")
      ->check(fraction())
      ->capture_default_str();
  app.add_option("--min-tokens", rule.min_tokens, "max-mass: tokens of the window that must pay it")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--nucleus", rule.nucleus, "nucleus: cumulative mass")
      ->check(fraction())
      ->capture_default_str();
  app.add_option("--votes", rule.votes, "nucleus: layers that must agree")
      ->check(at_least(1))
      ->capture_default_str();
  app.add_option("--label-layer", rule.layer, "Only this layer's attention; -1 = all")
      ->check(labelled_layer())
      ->capture_default_str();
  app.add_option("--label-heads", label_heads,
                 "max-mass: only so many heads count, those that look for most by the recordings; 0 = all")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  app.add_option("--tau", tau, "Tokens that a window looks ahead")
      ->check(within<std::int64_t>(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--sink", sink_chunks, "First chunks, always resident")
      ->check(within(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--recent", recent_chunks, "Newest complete chunks, always resident")
      ->check(within(0, 1 << 20))
      ->capture_default_str();
}

void label_arguments::check(const ft::recording_geometry& geometry) const {
  if (rule.layer >= geometry.layers)
    throw CLI::ValidationError(
        "--label-layer", fmt::format("layer {} of a recording of {} layers", rule.layer, geometry.layers));
  if (label_heads > std::int64_t{geometry.layers} * geometry.heads)
    throw CLI::ValidationError("--label-heads", fmt::format("the model has {} heads",
                                                            std::int64_t{geometry.layers} * geometry.heads));
}

void label_arguments::find_heads(const ft::document_source& source) {
  if (label_heads == 0) return;
  const auto ranked = ft::rank_retrieval_heads(source, windows(source.geometry()));
  if (label_heads > static_cast<std::int64_t>(ranked.size()))
    throw CLI::ValidationError("--label-heads", fmt::format("the model has {} heads", ranked.size()));
  rule.heads.clear();
  std::string text;
  for (std::size_t i = 0; i < ranked.size(); ++i) {
    const bool counts = static_cast<std::int64_t>(i) < label_heads;
    if (counts) rule.heads.push_back(ranked[i].head);
    if (static_cast<std::int64_t>(i) < label_heads + 3)
      text += fmt::format("{}{}.{} {:.3f}{}", i == 0 ? "" : ", ", ranked[i].head.layer, ranked[i].head.head,
                          ranked[i].mass, counts ? "" : " (not used)");
  }
  fmt::print(stderr, "retrieval heads (layer.head, mean mass of the chunk they look at): {}\n", text);
}

ft::window_options label_arguments::windows(const ft::recording_geometry& geometry) const {
  ft::window_options w = ft::window_options_for(geometry);
  w.tau = tau;
  w.sink_chunks = sink_chunks;
  w.recent_chunks = recent_chunks;
  return w;
}

void evaluation_arguments::add_to(CLI::App& app, bool goal) {
  app.add_option("--eval-windows", max_windows, "Windows looked at per held-out document; 0 = all")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  app.add_option("--eval-documents", max_documents, "Held-out documents looked at; 0 = all")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  if (!goal) return;
  auto* by_recall = app.add_option("--recall", recall, "Calibrate: recall that the threshold reaches")
                        ->check(fraction())
                        ->capture_default_str();
  app.add_option_function<double>(
         "--footprint",
         [this](double value) {
           footprint = value;
           recall = 0;
         },
         "Calibrate: mean share of chunks that the threshold keeps")
      ->check(fraction())
      ->excludes(by_recall);
  app.add_flag("--one-offset", one_offset, "Calibrate: the same shift for every retriever");
}

ft::evaluation_options evaluation_arguments::options(const label_arguments& labels,
                                                     const ft::recording_geometry& geometry) const {
  ft::evaluation_options o;
  o.labels = labels.rule;
  o.windows = labels.windows(geometry);
  o.max_windows = max_windows;
  o.max_documents = max_documents;
  return o;
}

void add_calibrate(CLI::App& app) {
  auto a = std::make_shared<arguments>();
  a->evaluation.recall = 0.9;
  CLI::App& cmd = *app.add_subcommand("calibrate", "Choose an indexer's threshold on held-out recordings");
  cmd.add_option("recordings", a->recordings, "Folder that a recorder wrote")->required();
  cmd.add_option("indexer", a->indexer, "Indexer file")->required();
  cmd.add_option("-o,--out", a->out, "Indexer file to write; default: the same");
  a->labels.add_to(cmd);
  a->evaluation.add_to(cmd, true);
  cmd.callback([a] {
    fm::check_output_file(a->out.empty() ? a->indexer : a->out);
    const ft::recordings data(a->recordings);
    const ft::recordings_source source(data);
    a->labels.check(data.geometry());
    a->labels.find_heads(source);
    fm::dual_encoder_config config = fm::load_dual_encoder(a->indexer);
    ft::training_record record;
    try {
      record = ft::load_training_record(a->indexer);
    } catch (const fm::format_error&) {  // an indexer of other making
    }
    const ft::evaluation_options options = a->evaluation.options(a->labels, data.geometry());
    record.windows = options.windows;
    record.calibration = ft::calibrate(
        source, config, options, {a->evaluation.recall, a->evaluation.footprint, !a->evaluation.one_offset});
    record.calibrated = true;
    const ft::evaluation result = ft::evaluate(source, config, options);
    record.evaluation = ft::to_json(result);
    record.calibrated_on = data.fingerprint();
    ft::save_artifact(config, record, a->out.empty() ? a->indexer : a->out);
    fmt::print("{}", ft::to_table(result));
    describe(record);
  });
}

void add_report(CLI::App& app) {
  auto a = std::make_shared<arguments>();
  CLI::App& cmd = *app.add_subcommand("report", "Look at an indexer on held-out recordings");
  cmd.add_option("recordings", a->recordings, "Folder that a recorder wrote")->required();
  cmd.add_option("indexer", a->indexer, "Indexer file")->required();
  cmd.add_option("--json", a->json, "Write the figures there too");
  a->labels.add_to(cmd);
  a->evaluation.add_to(cmd, false);
  cmd.callback([a] {
    if (!a->json.empty()) fm::check_output_file(a->json);
    const ft::recordings data(a->recordings);
    const ft::recordings_source source(data);
    a->labels.check(data.geometry());
    a->labels.find_heads(source);
    const ft::evaluation result = ft::evaluate(source, fm::load_dual_encoder(a->indexer),
                                               a->evaluation.options(a->labels, data.geometry()));
    fmt::print("{}", ft::to_table(result));
    if (!a->json.empty()) fm::write_file(a->json, ft::to_json(result) + "\n");
  });
}

void add_show(CLI::App& app) {
  auto path = std::make_shared<std::string>();
  CLI::App& cmd = *app.add_subcommand("show", "Tell how an indexer was trained and calibrated");
  cmd.add_option("indexer", *path, "Indexer file")->required();
  cmd.callback([path] { describe(ft::load_training_record(*path)); });
}

}  // namespace indexer_program
