// SPDX-License-Identifier: MIT
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <flashmemory/error.hpp>
#include <limits>
#include <map>
#include <set>
#include <string_view>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/indexer/dual_encoder_file.hpp"
#include "src/indexer/dual_encoder_impl.hpp"
#include "src/io/safetensors_header.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

using json = nlohmann::json;

constexpr std::string_view prefix = "retrievers.";

[[noreturn]] void refuse(const std::string& file, const std::string& what,
                         status code = status::bad_argument) {
  throw format_error(code, formatted("{}: {}", file, what));
}

// One JSON object of the artifact's description. Every field must be there, of its type and in its range; a
// field that nobody asked for is refused, because it would mean something that this version does not do.
class fields {
 public:
  fields(const std::string& file, std::string where, const json& object)
      : file_(file), where_(std::move(where)), object_(object) {
    if (!object.is_object()) refuse(file_, formatted("{} is not an object", where_));
  }

  template <class T>
  T integer(const char* name) {
    const json& value = at(name);
    if (value.is_number_integer()) {
      const bool fits =
          value.is_number_unsigned()
              ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<T>::max())
              : value.get<std::int64_t>() >= std::numeric_limits<T>::min();
      if (fits) return value.get<T>();
    }
    bad(name, "an integer in range");
  }

  double number(const char* name) {
    const json& value = at(name);
    if (!value.is_number()) bad(name, "a number");
    return value.get<double>();
  }

  float single(const char* name) {
    const double value = number(name);
    if (!(std::fabs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) bad(name, "a float");
    return static_cast<float>(value);
  }

  bool boolean(const char* name) {
    const json& value = at(name);
    if (!value.is_boolean()) bad(name, "true or false");
    return value.get<bool>();
  }

  std::string string(const char* name) {
    const json& value = at(name);
    if (!value.is_string()) bad(name, "a string");
    return value.get<std::string>();
  }

  const json& at(const char* name) {
    const auto found = object_.find(name);
    if (found == object_.end()) refuse(file_, formatted("{} has no '{}'", where_, name));
    asked_.insert(name);
    return *found;
  }

  [[noreturn]] void bad(const char* name, const char* wanted) const {
    refuse(file_, formatted("{}: '{}' is not {}", where_, name, wanted));
  }

  void finish() const {
    for (const auto& item : object_.items()) {
      if (asked_.count(item.key()) == 0) {
        refuse(file_, formatted("{}: unknown field '{}'", where_, detail::printable(item.key())));
      }
    }
  }

 private:
  const std::string& file_;
  std::string where_;
  const json& object_;
  std::set<std::string> asked_;
};

// Everything but the weights, from the metadata of our own artifact.
dual_encoder_config read_description(const safetensors_file& file) {
  const auto& metadata = file.metadata();
  const auto version = metadata.find("version");
  if (version == metadata.end()) refuse(file.name(), "__metadata__ has no 'version'");
  if (version->second != detail::artifact_version) {
    refuse(file.name(), formatted("artifact version '{}', this library reads '{}'",
                                  detail::printable(version->second), detail::artifact_version));
  }
  const auto text = metadata.find("config");
  if (text == metadata.end()) refuse(file.name(), "__metadata__ has no 'config'");
  const json document = json_or_discarded(text->second);
  if (document.is_discarded()) refuse(file.name(), "__metadata__ 'config' is not JSON");

  dual_encoder_config config;
  fields top(file.name(), "config", document);
  config.hidden = top.integer<std::int32_t>("hidden");
  config.rank = top.integer<std::int32_t>("rank");
  config.heads = top.integer<std::int32_t>("heads");
  config.q_norm_eps = top.single("q_norm_eps");
  config.bf16_rounding = top.boolean("bf16_rounding");
  fields rope(file.name(), "config.rope", top.at("rope"));
  config.rope.dim = rope.integer<std::int32_t>("dim");
  config.rope.base = rope.number("base");
  config.rope.factor = rope.number("factor");
  config.rope.original_length = rope.integer<std::int64_t>("original_length");
  config.rope.beta_fast = rope.number("beta_fast");
  config.rope.beta_slow = rope.number("beta_slow");
  config.rope.max_positions = rope.integer<std::int64_t>("max_positions");
  rope.finish();
  config.tokens_per_key = top.integer<std::int32_t>("tokens_per_key");
  config.key_window = top.integer<std::int32_t>("key_window");
  config.key_scale_floor = top.single("key_scale_floor");
  const std::string combine = top.string("ensemble");
  if (combine != "max" && combine != "mean") top.bad("ensemble", "'max' or 'mean'");
  config.combine = combine == "max" ? ensemble::max : ensemble::mean;
  const std::string reduce = top.string("reduction");
  if (reduce == "max") {
    config.reduce = key_reduction::max;
  } else if (reduce == "count_positive") {
    config.reduce = key_reduction::count_positive;
  } else if (reduce == "sum") {
    config.reduce = key_reduction::sum;
  } else {
    top.bad("reduction", "'max', 'count_positive' or 'sum'");
  }
  config.model_fingerprint = top.string("model_fingerprint");
  const json& retrievers = top.at("retrievers");
  if (!retrievers.is_array()) top.bad("retrievers", "a list");
  for (const json& item : retrievers) {
    fields one(file.name(), formatted("config.retrievers[{}]", config.retrievers.size()), item);
    retriever_weights retriever;
    retriever.name = one.string("name");
    retriever.query_layer = one.integer<std::int32_t>("query_layer");
    retriever.key_layer = one.integer<std::int32_t>("key_layer");
    one.finish();
    config.retrievers.push_back(std::move(retriever));
  }
  top.finish();
  return config;
}

std::string tensor_name(const retriever_weights& retriever, const char* tensor) {
  return formatted("{}{}.{}", prefix, retriever.name, tensor);
}

const tensor_entry& find_matrix(const safetensors_file& file, const std::string& name) {
  const tensor_entry* entry = file.find(name);
  if (!entry) refuse(file.name(), formatted("no tensor '{}'", name));
  if (entry->shape.size() != 2 || entry->shape[0] < 1 || entry->shape[1] < 1 ||
      std::max(entry->shape[0], entry->shape[1]) > std::numeric_limits<std::int32_t>::max()) {
    refuse(file.name(),
           formatted("tensor '{}' has shape [{}], expected a matrix", name, fmt::join(entry->shape, ", ")),
           status::bad_shape);
  }
  return *entry;
}

// The reference's checkpoint states nothing but tensors: names give the layers, shapes the dimensions.
dual_encoder_config infer_description(const safetensors_file& file,
                                      const std::vector<std::int32_t>& layer_of_id) {
  std::map<std::int32_t, std::string> ids;
  for (const tensor_entry& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    if (name.substr(0, prefix.size()) != prefix) continue;
    const std::string_view rest = name.substr(prefix.size());
    const std::string_view retriever = rest.substr(0, rest.find('.'));
    std::int32_t id = -1;
    const char* end = retriever.data() + retriever.size();
    const auto parsed = retriever.size() > 1 && retriever[0] == 'l'
                            ? std::from_chars(retriever.data() + 1, end, id)
                            : std::from_chars_result{nullptr, std::errc::invalid_argument};
    if (parsed.ec != std::errc() || parsed.ptr != end || id < 0) {
      refuse(file.name(), formatted("tensor '{}' is not of a retriever l{{ID}}, and there is no metadata",
                                    detail::printable(name)));
    }
    const auto [known, added] = ids.emplace(id, retriever);
    if (!added && known->second != retriever) {
      refuse(file.name(), formatted("retrievers '{}' and '{}' are the same", known->second, retriever));
    }
  }
  if (ids.empty()) {
    refuse(file.name(),
           formatted("neither metadata of a {} nor tensors 'retrievers.l{{ID}}.*'", detail::artifact_format));
  }
  if (!layer_of_id.empty() && layer_of_id.size() != ids.size()) {
    throw argument_error(status::bad_argument, formatted("{} has {} retrievers, layer_of_id {} layers",
                                                         file.name(), ids.size(), layer_of_id.size()));
  }
  dual_encoder_config config;
  config.rope.dim = detail::rope_dim;
  for (const auto& [id, name] : ids) {
    retriever_weights retriever;
    retriever.name = name;
    retriever.query_layer = layer_of_id.empty() ? id : layer_of_id[config.retrievers.size()];
    retriever.key_layer = retriever.query_layer;
    config.retrievers.push_back(std::move(retriever));
  }
  const retriever_weights& first = config.retrievers.front();
  const tensor_entry& wq_a = find_matrix(file, tensor_name(first, "wq_a.weight"));
  config.rank = static_cast<std::int32_t>(wq_a.shape[0]);
  config.hidden = static_cast<std::int32_t>(wq_a.shape[1]);
  const tensor_entry& wq_b = find_matrix(file, tensor_name(first, "wq_b.weight"));
  if (wq_b.shape[0] % index_key_dim != 0) {
    refuse(file.name(),
           formatted("tensor '{}' has {} rows, expected a multiple of {}", wq_b.name, wq_b.shape[0],
                     index_key_dim),
           status::bad_shape);
  }
  config.heads = static_cast<std::int32_t>(wq_b.shape[0] / index_key_dim);
  return config;
}

}  // namespace

namespace detail {

dual_encoder_config read_dual_encoder(const safetensors_file& file,
                                      const std::vector<std::int32_t>& layer_of_id) {
  const auto format = file.metadata().find("format");
  const bool ours = format != file.metadata().end() && format->second.rfind("flashmemory.", 0) == 0;
  if (ours && format->second != artifact_format) {
    refuse(file.name(), formatted("a '{}', expected a '{}'", printable(format->second), artifact_format));
  }
  dual_encoder_config config = ours ? read_description(file) : infer_description(file, layer_of_id);

  std::set<std::string> known;
  for (retriever_weights& retriever : config.retrievers) {
    const auto name_of = [&](const char* tensor) {
      return *known.insert(tensor_name(retriever, tensor)).first;
    };
    const auto read = [&](const char* tensor, const std::vector<std::int64_t>& shape) {
      return to_floats(file, file.require(name_of(tensor), shape));
    };
    retriever.wq_a = read("wq_a.weight", {config.rank, config.hidden});
    retriever.q_norm = read("q_norm_weight", {config.rank});
    retriever.wq_b = read("wq_b.weight", {std::int64_t{config.heads} * index_key_dim, config.rank});
    retriever.weights_proj = read("weights_proj.weight", {config.heads, config.hidden});
    if (file.find(name_of("wk.weight"))) retriever.wk = read("wk.weight", {index_key_dim, config.hidden});
    if (const tensor_entry* offset = file.find(name_of("logit_offset"))) {
      // A scalar or a list of one.
      const std::vector<std::int64_t> shape(offset->shape.empty() ? 0 : 1, 1);
      retriever.logit_offset = to_floats(file, file.require(offset->name, shape)).front();
    }
    name_of("freqs_cis");  // a table in some checkpoints, worked out here instead
  }
  for (const tensor_entry& tensor : file.tensors()) {
    const bool of_a_retriever = tensor.name.compare(0, prefix.size(), prefix) == 0;
    if ((ours || of_a_retriever) && known.count(tensor.name) == 0) {
      refuse(file.name(), formatted("unexpected tensor '{}'", printable(tensor.name)));
    }
  }
  try {
    validate(config);
  } catch (const argument_error& e) {
    refuse(file.name(), e.what(), e.code());
  }
  return config;
}

}  // namespace detail

dual_encoder_config load_dual_encoder(const std::string& path, const std::vector<std::int32_t>& layer_of_id) {
  return detail::read_dual_encoder(safetensors_file(path), layer_of_id);
}

selection_policy recommended_policy(const std::string& path) {
  const safetensors_file file(path);
  selection_policy policy;
  const auto found = file.metadata().find("training");
  if (found == file.metadata().end()) return policy;
  const json record = json::parse(found->second, nullptr, false);
  if (record.is_discarded()) refuse(file.name(), "__metadata__ 'training' is not JSON");
  fields training(file.name(), "training", record);
  policy.interval = training.integer<std::int32_t>("tau");
  policy.sink_chunks = training.integer<std::int32_t>("sink_chunks");
  policy.recent_chunks = training.integer<std::int32_t>("recent_chunks");
  if (policy.interval < 1 || policy.sink_chunks < 0 || policy.recent_chunks < 0)
    refuse(file.name(), formatted("trained for an interval of {}, {} sink and {} recent chunks",
                                  policy.interval, policy.sink_chunks, policy.recent_chunks));
  return policy;
}

}  // namespace v0
}  // namespace flashmemory
