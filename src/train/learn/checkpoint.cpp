// SPDX-License-Identifier: MIT
#include <charconv>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/train/learn/trainer_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

using json = nlohmann::json;

constexpr const char* checkpoint_format = "flashmemory.train_checkpoint";
constexpr const char* checkpoint_version = "1";

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw format_error(status::bad_argument, formatted("{}: {}", path, what));
}

const std::string& field(const safetensors_file& file, const char* name) {
  const auto found = file.metadata().find(name);
  if (found == file.metadata().end()) refuse(file.name(), formatted("a checkpoint without '{}'", name));
  return found->second;
}

std::int64_t number(const safetensors_file& file, const char* name) {
  const std::string& text = field(file, name);
  std::int64_t value = -1;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < 0) {
    refuse(file.name(), formatted("'{}' is no number", name));
  }
  return value;
}

}  // namespace

namespace detail {

std::string describe_run(const trainer_options& o, const dual_encoder_config& c) {
  json retrievers = json::array();
  for (const retriever_weights& r : c.retrievers) retrievers.push_back({r.name, r.query_layer, r.key_layer});
  const optimiser_options& a = o.optimiser;
  json heads = json::array();
  for (const model_head& h : o.labels.heads) heads.push_back({h.layer, h.head});
  const json all = {{"architecture",
                     {{"hidden", c.hidden},
                      {"rank", c.rank},
                      {"heads", c.heads},
                      {"retrievers", retrievers},
                      {"tokens_per_key", c.tokens_per_key},
                      {"key_window", c.key_window},
                      {"q_norm_eps", c.q_norm_eps},
                      {"bf16_rounding", c.bf16_rounding},
                      {"rope_dim", c.rope.dim},
                      {"key_scale_floor", c.key_scale_floor}}},
                    {"labels",
                     {{"kind", o.labels.kind == label_kind::max_mass        ? "max_mass"
                               : o.labels.kind == label_kind::nucleus_votes ? "nucleus_votes"
                                                                            : "needed_set"},
                      {"nucleus", o.labels.nucleus},
                      {"votes", o.labels.votes},
                      {"min_mass", o.labels.min_mass},
                      {"min_tokens", o.labels.min_tokens},
                      {"layer", o.labels.layer},
                      {"heads", heads}}},
                    {"windows",
                     {{"tau", o.windows.tau},
                      {"sink_chunks", o.windows.sink_chunks},
                      {"recent_chunks", o.windows.recent_chunks},
                      {"entries_per_chunk", o.windows.entries_per_chunk},
                      {"tokens_per_entry", o.windows.tokens_per_entry}}},
                    {"loss",
                     {{"focal", o.loss.focal},
                      {"focal_gamma", o.loss.focal_gamma},
                      {"focal_alpha", o.loss.focal_alpha},
                      {"bce", o.loss.bce},
                      {"bce_positive_weight", o.loss.bce_positive_weight},
                      {"negatives_per_positive", o.loss.negatives_per_positive},
                      {"contrastive", o.loss.contrastive},
                      {"contrastive_temperature", o.loss.contrastive_temperature},
                      {"contrastive_against_negatives", o.loss.contrastive_against_negatives},
                      {"ranking", o.loss.ranking},
                      {"ranking_margin", o.loss.ranking_margin},
                      {"ranking_negatives", o.loss.ranking_negatives},
                      {"weighted_positives", o.loss.weighted_positives}}},
                    {"optimiser",
                     {{"rate", a.rate},
                      {"final_rate", a.final_rate},
                      {"schedule", a.schedule == rate_schedule::cosine   ? "cosine"
                                   : a.schedule == rate_schedule::linear ? "linear"
                                                                         : "constant"},
                      {"warm_up", a.warm_up},
                      {"beta1", a.beta1},
                      {"beta2", a.beta2},
                      {"eps", a.eps},
                      {"decay", a.decay},
                      {"clip", a.clip}}},
                    {"operands", o.operands == precision::bf16 ? "bf16" : "f32"},
                    {"layer_steps", o.layer_steps},
                    {"ensemble_steps", o.ensemble_steps},
                    {"ensemble_rate", o.ensemble_rate},
                    {"tokens_per_step", o.tokens_per_step},
                    {"windows_per_document", o.windows_per_document},
                    {"needing_share", o.needing_share},
                    {"window_weight_free", o.window_weight_free},
                    {"seed", o.seed}};
  return json_text(all);
}

}  // namespace detail

void trainer::save_checkpoint(const std::string& path) const {
  const impl& t = *impl_;
  training_state state = t.backend->read();
  state.first_moment.resize(state.parameters.size());
  state.second_moment.resize(state.parameters.size());
  std::vector<tensor_source> tensors;
  const auto add = [&](const char* name, const std::vector<float>& values) {
    tensor_source tensor;
    tensor.name = name;
    tensor.shape = {static_cast<std::int64_t>(values.size())};
    tensor.data = reinterpret_cast<const std::byte*>(values.data());
    tensor.bytes = values.size() * sizeof(float);
    tensors.push_back(std::move(tensor));
  };
  add("parameters", state.parameters);
  add("first_moment", state.first_moment);
  add("second_moment", state.second_moment);
  write_safetensors(path, tensors,
                    {{"format", checkpoint_format},
                     {"version", checkpoint_version},
                     {"run", describe()},
                     {"recordings", t.source.fingerprint()},
                     {"start", t.options.start},
                     {"step", std::to_string(t.step)},
                     {"updates", std::to_string(state.updates)},
                     {"documents_drawn", std::to_string(t.documents.drawn)}});
}

void trainer::load_checkpoint(const std::string& path) {
  impl& t = *impl_;
  const safetensors_file file(path);
  if (field(file, "format") != checkpoint_format) refuse(path, "not a checkpoint of the trainer");
  if (field(file, "version") != checkpoint_version) {
    refuse(path, formatted("checkpoint of another version than {}", checkpoint_version));
  }
  json theirs = json_or_discarded(field(file, "run"));
  if (theirs.is_object() && !theirs.contains("operands")) theirs["operands"] = "f32";  // as it was before
  theirs = theirs.is_object() ? theirs.flatten() : json::object();
  const json mine = parse_json(describe()).flatten();
  if (theirs != mine) {
    std::string which = "its description is damaged";
    for (const auto& item : mine.items()) {
      if (theirs.contains(item.key()) && theirs[item.key()] == item.value()) continue;
      which = formatted("'{}' is {} now", item.key(), json_text(item.value()));
      break;
    }
    refuse(path, formatted("checkpoint of another run: {}", which));
  }
  if (field(file, "recordings") != t.source.fingerprint())
    refuse(path, "checkpoint of a run on other recordings");
  const std::vector<std::int64_t> shape = {t.model.retrievers() * t.model.map.count};
  training_state state;
  state.parameters = to_floats(file, file.require("parameters", shape));
  state.first_moment = to_floats(file, file.require("first_moment", shape));
  state.second_moment = to_floats(file, file.require("second_moment", shape));
  const std::int64_t step = number(file, "step");
  state.updates = number(file, "updates");
  const std::int64_t drawn = number(file, "documents_drawn");
  if (step > t.steps()) refuse(path, formatted("it has made {} of {} steps", step, t.steps()));
  const auto start = file.metadata().find("start");
  std::string started_from = start == file.metadata().end() ? std::string() : start->second;
  t.backend->write(state);
  t.options.start = std::move(started_from);
  t.step = step;
  t.documents.drawn = drawn;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
