// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/version.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

using json = nlohmann::json;

constexpr const char* note = "training";
constexpr int record_version = 1;

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw format_error(status::bad_argument, formatted("{}: training record: {}", path, what));
}

// Fields must be there and of their type; the library writes all of them.
template <class T>
void read(const std::string& path, const json& from, const char* name, T& out) {
  try {
    from.at(name).get_to(out);
  } catch (const json::exception&) {
    refuse(path, formatted("'{}' is missing or of another type", name));
  }
}

}  // namespace

std::string weights_digest(const dual_encoder_config& config) {
  std::uint64_t sum = 0;
  const auto mix = [&](const std::vector<float>& values) {
    for (const float v : values) {
      std::uint32_t bits;
      std::memcpy(&bits, &v, sizeof bits);
      sum = detail::scatter(sum ^ bits);
    }
  };
  for (const retriever_weights& w : config.retrievers) {
    for (const auto* part : {&w.wq_a, &w.q_norm, &w.wq_b, &w.weights_proj, &w.wk}) mix(*part);
    mix({w.logit_offset});
  }
  return formatted("{:016x}", sum);
}

void save_artifact(const dual_encoder_config& config, training_record record, const std::string& path) {
  record.library_version =
      formatted("{}.{}.{}", FLASHMEMORY_VERSION_MAJOR, FLASHMEMORY_VERSION_MINOR, FLASHMEMORY_VERSION_PATCH);
  const window_options& w = record.windows;
  json all = {{"version", record_version},
              {"library", record.library_version},
              {"weights", weights_digest(config)},
              {"tau", w.tau},
              {"sink_chunks", w.sink_chunks},
              {"recent_chunks", w.recent_chunks},
              {"entries_per_chunk", w.entries_per_chunk},
              {"tokens_per_entry", w.tokens_per_entry},
              {"run", record.run},
              {"start", record.start},
              {"recordings", record.recordings},
              {"calibrated_on", record.calibrated_on},
              {"evaluation", record.evaluation},
              {"calibration", nullptr}};
  if (record.calibrated) {
    const calibration& c = record.calibration;
    all["calibration"] = {{"goal_recall", c.goal.recall},  {"goal_footprint", c.goal.footprint},
                          {"per_layer", c.goal.per_layer}, {"recall", c.recall},
                          {"footprint", c.footprint},      {"offsets", c.offsets},
                          {"windows", c.windows},          {"positives", c.positives}};
  }
  try {
    save_dual_encoder(config, path, {{note, json_text(all)}});
  } catch (const json::exception&) {
    throw argument_error(status::bad_argument, formatted("{}: the training record is not UTF-8", path));
  }
}

training_record load_training_record(const std::string& path) {
  std::string text;
  {
    const safetensors_file file(path);
    const auto found = file.metadata().find(note);
    if (found == file.metadata().end()) refuse(path, "there is none");
    text = found->second;
  }
  const json all = json_or_discarded(text);
  if (!all.is_object()) refuse(path, "not a JSON object");
  int version = 0;
  read(path, all, "version", version);
  if (version != record_version) {
    refuse(path, formatted("version {}, this library reads {}", version, record_version));
  }
  std::string weights;
  read(path, all, "weights", weights);
  if (weights != weights_digest(load_dual_encoder(path))) refuse(path, "it belongs to other weights");
  training_record record;
  read(path, all, "library", record.library_version);
  read(path, all, "tau", record.windows.tau);
  read(path, all, "sink_chunks", record.windows.sink_chunks);
  read(path, all, "recent_chunks", record.windows.recent_chunks);
  read(path, all, "entries_per_chunk", record.windows.entries_per_chunk);
  read(path, all, "tokens_per_entry", record.windows.tokens_per_entry);
  try {
    validate(record.windows);
  } catch (const argument_error& e) {
    refuse(path, e.what());
  }
  read(path, all, "run", record.run);
  read(path, all, "start", record.start);
  read(path, all, "recordings", record.recordings);
  if (all.contains("calibrated_on")) read(path, all, "calibrated_on", record.calibrated_on);
  read(path, all, "evaluation", record.evaluation);
  json c;
  read(path, all, "calibration", c);
  record.calibrated = !c.is_null();
  if (record.calibrated) {
    calibration& to = record.calibration;
    read(path, c, "goal_recall", to.goal.recall);
    read(path, c, "goal_footprint", to.goal.footprint);
    read(path, c, "per_layer", to.goal.per_layer);
    read(path, c, "recall", to.recall);
    read(path, c, "footprint", to.footprint);
    read(path, c, "offsets", to.offsets);
    read(path, c, "windows", to.windows);
    read(path, c, "positives", to.positives);
  }
  return record;
}

void check_compatible(const training_record& record, const kv_geometry& geometry) {
  const auto same = [](const char* field, std::int64_t trained, std::int64_t engine) {
    if (trained == engine) return;
    throw argument_error(
        status::bad_shape,
        formatted("the indexer was trained with {} = {}, the store has {}", field, trained, engine));
  };
  same("entries_per_chunk", record.windows.entries_per_chunk, geometry.entries_per_chunk);
  same("tokens_per_entry", record.windows.tokens_per_entry, geometry.tokens_per_entry);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
