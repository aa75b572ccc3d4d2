// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/io/output_file.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/train/learn/trainer.hpp>
#include <flashmemory/train/start/start.hpp>
#include <stdexcept>

#include "src/train/program/commands.hpp"
#include "src/train/program/interruption.hpp"
#include "src/train/program/progress.hpp"
#include "src/train/program/ranges.hpp"

namespace indexer_program {
namespace {

namespace fm = flashmemory;
namespace ft = flashmemory::train;

struct arguments {
  std::string recordings, out, json, checkpoint, from;
  std::string device = "cpu";
  std::vector<std::string> retrievers;
  std::int32_t rank = 0;
  std::int32_t heads = 8;
  float q_norm_eps = 1e-6f;
  float key_scale_floor = 1e-4f;
  bool bf16_queries = false;
  std::int64_t checkpoint_every = 100;
  std::int64_t memory_mib = 2048;
  std::int32_t serving_recent = -1;
  bool serial = false;
  std::int64_t validate_every = 200;
  label_arguments labels;
  evaluation_arguments evaluation;
  ft::start_options start;
  ft::trainer_options trainer;
};

fm::dual_encoder_config architecture(const arguments& a, const ft::recording_geometry& g) {
  fm::dual_encoder_config c;
  if (g.queries.empty() || g.keys.empty()) {
    throw fm::argument_error(fm::status::bad_argument, "the recordings hold no query vectors or no keys");
  }
  c.hidden = g.queries.front().width;
  c.rank = a.rank > 0 ? a.rank : c.hidden;
  c.heads = a.heads;
  c.q_norm_eps = a.q_norm_eps;
  c.bf16_rounding = a.bf16_queries;
  c.tokens_per_key = g.keys.front().tokens_per_key;
  c.key_window = g.keys.front().native() ? c.tokens_per_key : g.keys.front().window;
  c.key_scale_floor = a.key_scale_floor;
  c.model_fingerprint = g.model_fingerprint;
  for (const std::string& text : a.retrievers) c.retrievers.push_back(parse_retriever(text));
  if (c.retrievers.empty()) {  // one per recorded query layer, on the first index-key lane
    for (const fm::query_tap& tap : g.queries) {
      c.retrievers.push_back(parse_retriever(fmt::format("{}:{}", tap.layer, g.keys.front().layer)));
    }
  }
  for (const fm::retriever_weights& r : c.retrievers) {
    const auto reads = [](std::int32_t layer) {
      return [layer](const auto& of) { return of.layer == layer; };
    };
    if (std::none_of(g.queries.begin(), g.queries.end(), reads(r.query_layer)))
      throw CLI::ValidationError("--retriever",
                                 fmt::format("no query vectors of layer {} are recorded", r.query_layer));
    if (std::none_of(g.keys.begin(), g.keys.end(), reads(r.key_layer)))
      throw CLI::ValidationError("--retriever", fmt::format("no keys of layer {} are recorded", r.key_layer));
  }
  return c;
}

/// What can be known to fail before anything is worked out, does.
void check_outputs(const arguments& a) {
  const std::pair<const char*, std::string> outputs[] = {
      {"--out", a.out}, {"--json", a.json}, {"--checkpoint", a.checkpoint}};
  for (std::size_t i = 0; i < std::size(outputs); ++i) {
    if (outputs[i].second.empty()) continue;
    fm::check_output_file(outputs[i].second);
    for (std::size_t j = 0; j < i; ++j)
      if (outputs[i].second == outputs[j].second)
        throw CLI::ValidationError(outputs[i].first, fmt::format("the same file as {}", outputs[j].first));
  }
}

/// The trained indexer's description, calibrated and looked at on held-out recordings where there are some.
std::string finish(const arguments& a, const ft::document_source& source,
                   const ft::evaluation_options& options, fm::dual_encoder_config& config,
                   ft::training_record& record) {
  if (a.evaluation.recall > 0 || a.evaluation.footprint > 0) {
    const ft::calibration_goal goal{a.evaluation.recall, a.evaluation.footprint, !a.evaluation.one_offset};
    record.calibration = ft::calibrate(source, config, options, goal);
    record.calibrated = true;
  }
  const ft::evaluation result = ft::evaluate(source, config, options);
  record.evaluation = ft::to_json(result);
  record.calibrated_on = record.recordings;
  return ft::to_table(result);
}

void train(arguments& a) {
  check_outputs(a);
  a.trainer.backend = parse_device(a.device);
  const ft::recordings data(a.recordings);
  const ft::recordings_source source(data);
  a.labels.check(data.geometry());
  const bool resume = !a.checkpoint.empty() && std::filesystem::exists(a.checkpoint);
  fm::dual_encoder_config start =
      a.from.empty() ? architecture(a, data.geometry()) : fm::load_dual_encoder(a.from);
  a.labels.find_heads(source);
  a.trainer.labels = a.start.labels = a.labels.rule;
  a.trainer.windows = a.start.windows = a.labels.windows(data.geometry());
  a.start.loss = a.trainer.loss;
  a.start.seed = a.trainer.seed;
  a.start.tokens_per_step = a.trainer.tokens_per_step;
  a.start.windows_per_document = a.trainer.windows_per_document;
  a.start.needing_share = a.trainer.needing_share;
  a.start.memory_budget = a.trainer.memory_budget = static_cast<std::size_t>(a.memory_mib) << 20;
  if (a.serial) a.trainer.threads = a.start.threads = fm::serial_threads();
  ft::validate(a.trainer);
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  if (!a.from.empty()) {
    a.trainer.start = "the indexer of weights " + ft::weights_digest(start);
  } else {
    const char* kinds[] = {"random", "bilinear", "attention", "embeddings"};
    a.trainer.start = kinds[static_cast<int>(a.start.kind)];
    // What a checkpoint brings need not be worked out.
    if (resume) a.start.kind = ft::start_kind::random;
    start = ft::start_indexer(source, start, a.start);
  }
  ft::trainer trainer(source, start, a.trainer);
  if (resume) trainer.load_checkpoint(a.checkpoint);
  fmt::print(stderr, "{} documents, {} retrievers, start after {:.1f} s{}\n", data.documents().size(),
             start.retrievers.size(), seconds(),
             resume ? fmt::format(", going on after step {}", trainer.steps_done()) : "");
  // A run that stops without a checkpoint of its own leaves one beside its output.
  const std::string rescue = a.checkpoint.empty() ? a.out + ".checkpoint" : a.checkpoint;
  bool held_out = false;
  for (const ft::document_info& d : data.documents()) held_out |= d.split == ft::dataset_split::validation;
  const ft::evaluation_options options = a.evaluation.options(a.labels, data.geometry());
  int stopped = 0;
  try {
    const interruption stop;
    progress_bar bar;
    ft::evaluation_options glance = options;
    glance.budgets = {0.1};
    glance.max_windows = 32;
    glance.max_documents = 8;
    glance.threads = a.trainer.threads;
    trainer.run(
        [&](const ft::step_report& r) {
          bar.show(r);
          if (held_out && a.validate_every > 0 && r.step % a.validate_every == 0 && r.step != r.steps) {
            const ft::group_result g = ft::evaluate(source, trainer.config(), glance).groups.front();
            bar.note(fmt::format(
                "step {}: held out: recall@10% {:.3f}, logit > 0 finds {:.3f} and keeps {:.2f}%", r.step,
                g.budgets.front().recall, g.threshold_recall, 100 * g.threshold_footprint));
          }
          return !stop.asked();
        },
        a.checkpoint, a.checkpoint_every);
    stopped = stop.exit_code();
  } catch (const std::exception& e) {
    if (trainer.steps_done() == 0) throw;
    trainer.save_checkpoint(rescue);
    throw std::runtime_error(
        fmt::format("{}; what {} steps have learned is in {}", e.what(), trainer.steps_done(), rescue));
  }
  if (!trainer.done()) {
    if (a.checkpoint.empty()) trainer.save_checkpoint(rescue);
    fmt::print(stderr, "stopped after step {}; the same command {}goes on\n", trainer.steps_done(),
               a.checkpoint.empty() ? fmt::format("with --checkpoint {} ", rescue) : "");
    throw CLI::RuntimeError(stopped);
  }
  const double trained = seconds();
  fm::dual_encoder_config config = trainer.config();
  ft::training_record record;
  record.windows = a.trainer.windows;
  if (a.serving_recent >= 0) record.windows.recent_chunks = a.serving_recent;
  record.run = trainer.describe();
  record.start = trainer.start();
  record.recordings = data.fingerprint();
  std::string report;
  try {
    if (held_out) report = finish(a, source, options, config, record);
  } catch (const std::exception& e) {
    ft::training_record uncalibrated = record;
    uncalibrated.calibrated = false;
    ft::save_artifact(trainer.config(), uncalibrated, a.out);
    throw std::runtime_error(fmt::format("{}; what was trained is in {}, not calibrated", e.what(), a.out));
  }
  ft::save_artifact(config, record, a.out);
  if (!a.json.empty()) fm::write_file(a.json, record.evaluation + "\n");
  fmt::print("{}{} written: trained in {:.1f} s, {:.1f} s in all, at most {:.0f} MiB of documents\n", report,
             a.out, trained, seconds(), static_cast<double>(trainer.peak_document_bytes()) / (1 << 20));
}

}  // namespace

std::int32_t parse_integer(const std::string& option, const std::string& text) {
  std::int32_t value = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end)
    throw CLI::ValidationError(option, fmt::format("'{}' is no whole number", text));
  return value;
}

fm::retriever_weights parse_retriever(const std::string& text) {
  const auto colon = text.find(':');
  fm::retriever_weights w;
  try {
    w.query_layer = parse_integer("--retriever", text.substr(0, colon));
    w.key_layer =
        colon == std::string::npos ? w.query_layer : parse_integer("--retriever", text.substr(colon + 1));
  } catch (const CLI::ValidationError&) {
    throw CLI::ValidationError("--retriever", "'" + text + "' is not QUERY_LAYER:KEY_LAYER");
  }
  w.name = fmt::format("l{}k{}", w.query_layer, w.key_layer);
  return w;
}

void add_train(CLI::App& app) {
  auto a = std::make_shared<arguments>();
  a->evaluation.recall = 0.9;
  CLI::App& cmd = *app.add_subcommand("train", "Train an indexer from recordings, calibrate it and save it");
  cmd.add_option("recordings", a->recordings, "Folder that a recorder wrote")->required();
  cmd.add_option("-o,--out", a->out, "Indexer file to write")->required();
  cmd.add_option("--json", a->json, "Write the held-out evaluation there too");
  cmd.add_option("--checkpoint", a->checkpoint, "File to save the run in, and to go on from if it is there");
  cmd.add_option("--checkpoint-every", a->checkpoint_every, "Steps between checkpoints")
      ->check(at_least<std::int64_t>(1))
      ->capture_default_str();
  cmd.add_option("--from", a->from, "Go on training this indexer instead of making a start")
      ->check(CLI::ExistingFile);
  cmd.add_option(
      "-r,--retriever", a->retrievers,
      "QUERY_LAYER:KEY_LAYER, once per retriever; default: every recorded query layer on the first keys");
  cmd.add_option("--rank", a->rank, "Rows of wq_a; 0 = hidden size")
      ->check(within(0, 65536))
      ->capture_default_str();
  cmd.add_option("--heads", a->heads, "Query heads")->check(within(1, 1024))->capture_default_str();
  cmd.add_option("--q-norm-eps", a->q_norm_eps, "Of the query norm")->check(weight())->capture_default_str();
  cmd.add_option("--key-scale-floor", a->key_scale_floor, "Smallest amax of a quantised key")
      ->check(positive())
      ->capture_default_str();
  cmd.add_flag("--bf16-queries", a->bf16_queries, "Round queries to bf16 as the published scorer does");
  a->labels.add_to(cmd);
  cmd.add_option("--serving-recent", a->serving_recent,
                 "Newest chunks that engines are to keep, as the file says; default: --recent, which labels "
                 "leave out")
      ->check(within(0, 1 << 20));
  a->evaluation.add_to(cmd, true);
  using kind = ft::start_kind;
  cmd.add_option("--start", a->start.kind, "Where training starts")
      ->transform(CLI::CheckedTransformer(std::map<std::string, kind>{{"random", kind::random},
                                                                      {"bilinear", kind::bilinear},
                                                                      {"attention", kind::attention},
                                                                      {"embeddings", kind::embeddings}}))
      ->default_str("bilinear");
  cmd.add_option("--ridge", a->start.ridge, "Of the start's whitening")
      ->check(weight())
      ->capture_default_str();
  cmd.add_option("--convex-steps", a->start.convex_steps, "Steps on the bilinear map itself")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  cmd.add_option("--tensors", a->start.tensors, "Safetensors file with the model's matrices")
      ->check(CLI::ExistingFile);
  cmd.add_option("--embedding", a->start.embedding, "Its embedding tensor, for --start embeddings");
  cmd.add_option_function<std::vector<std::string>>(
      "--attention-head",
      [a](const std::vector<std::string>& all) {
        for (const std::string& text : all) {
          std::vector<std::string> parts = CLI::detail::split(text, ',');
          if (parts.size() != 5)
            throw CLI::ValidationError("--attention-head", "expected Q,K,HEAD,KV_HEAD,HEAD_DIM");
          a->start.heads.push_back({parts[0], parts[1], parse_integer("--attention-head", parts[2]),
                                    parse_integer("--attention-head", parts[3]),
                                    parse_integer("--attention-head", parts[4])});
        }
      },
      "QUERY_TENSOR,KEY_TENSOR,HEAD,KV_HEAD,HEAD_DIM, once or per retriever, for --start attention");
  ft::trainer_options& t = a->trainer;
  cmd.add_option("--layer-steps", t.layer_steps, "Steps of every retriever on its own loss")
      ->check(within<std::int64_t>(0, 1000000000))
      ->capture_default_str();
  cmd.add_option("--ensemble-steps", t.ensemble_steps, "Then steps through the ensemble's maximum")
      ->check(within<std::int64_t>(0, 1000000000))
      ->capture_default_str();
  cmd.add_option("--rate", t.optimiser.rate, "Learning rate")->check(positive())->capture_default_str();
  cmd.add_option("--ensemble-rate", t.ensemble_rate, "Second stage's, as a share of it")
      ->check(positive())
      ->capture_default_str();
  cmd.add_option("--warm-up", t.optimiser.warm_up, "Steps")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  cmd.add_option("--decay", t.optimiser.decay, "Weight decay")->check(weight())->capture_default_str();
  cmd.add_option("--clip", t.optimiser.clip, "Largest gradient norm; 0 = unlimited")
      ->check(weight())
      ->capture_default_str();
  using schedule = ft::rate_schedule;
  cmd.add_option("--schedule", t.optimiser.schedule, "How the rate falls")
      ->transform(CLI::CheckedTransformer(std::map<std::string, schedule>{
          {"cosine", schedule::cosine}, {"linear", schedule::linear}, {"constant", schedule::constant}}))
      ->default_str("cosine");
  cmd.add_option("--focal", t.loss.focal, "Weight of the focal loss")->check(weight())->capture_default_str();
  cmd.add_option("--focal-gamma", t.loss.focal_gamma)->check(weight())->capture_default_str();
  cmd.add_option("--focal-alpha", t.loss.focal_alpha)->check(within(0.0, 1.0))->capture_default_str();
  cmd.add_option("--bce", t.loss.bce, "Weight of binary cross entropy")
      ->check(weight())
      ->capture_default_str();
  cmd.add_option("--negatives", t.loss.negatives_per_positive, "Drawn per positive for both; 0 = all")
      ->check(weight())
      ->capture_default_str();
  cmd.add_option("--contrastive", t.loss.contrastive, "Weight of InfoNCE over chunks")
      ->check(weight())
      ->capture_default_str();
  cmd.add_option("--temperature", t.loss.contrastive_temperature, "Of InfoNCE")
      ->check(positive())
      ->capture_default_str();
  cmd.add_option("--ranking", t.loss.ranking, "Weight of the ranking loss on hard negatives")
      ->check(weight())
      ->capture_default_str();
  cmd.add_option("--ranking-negatives", t.loss.ranking_negatives, "Hardest negatives per window")
      ->check(at_least(1))
      ->capture_default_str();
  cmd.add_flag("--weighted-positives", t.loss.weighted_positives, "Weigh positives by their label");
  cmd.add_option("--tokens-per-step", t.tokens_per_step, "Documents drawn for a step have so many tokens")
      ->check(at_least<std::int64_t>(1))
      ->capture_default_str();
  cmd.add_option("--windows", t.windows_per_document, "Windows drawn per document")
      ->check(within(1, 65536))
      ->capture_default_str();
  cmd.add_option("--needing-share", t.needing_share,
                 "Share of windows that need something; < 0 = as recorded")
      ->check(within(-1.0, 1.0))
      ->capture_default_str();
  cmd.add_option("--device", a->device, "Where steps are computed: cpu, cuda or cuda:ORDINAL")
      ->capture_default_str();
  using precision = ft::precision;
  cmd.add_option("--precision", t.operands, "Of the operands of matrix products; sums and weights are f32")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, precision>{{"f32", precision::f32}, {"bf16", precision::bf16}}))
      ->default_str("f32");
  cmd.add_option("--seed", t.seed)->capture_default_str();
  cmd.add_option("--memory", a->memory_mib, "MiB of documents kept between steps")
      ->check(within<std::int64_t>(1, 1 << 24))
      ->capture_default_str();
  cmd.add_option("--validate-every", a->validate_every,
                 "Steps between looks at held-out documents; 0 = at the end")
      ->check(at_least<std::int64_t>(0))
      ->capture_default_str();
  cmd.add_flag("--serial", a->serial,
               "One thread, e.g. on a machine that is busy with other things; same result");
  cmd.callback([a] { train(*a); });
}

}  // namespace indexer_program
