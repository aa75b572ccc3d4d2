// SPDX-License-Identifier: MIT
#include <fmt/ranges.h>

#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/exchange/retrieval.hpp>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

/// One file's tensors under the stated names.
class encoder_file {
 public:
  explicit encoder_file(const retrieval_import& from) : file_(from.path), prefix_(from.prefix) {}

  const tensor_entry* find(const char* name) const { return file_.find(prefix_ + name); }

  /// The extents of a matrix. \throws format_error
  std::vector<std::int64_t> extents(const char* name) const {
    const tensor_entry* t = find(name);
    if (t == nullptr)
      throw format_error(status::bad_argument,
                         formatted("{}: no tensor '{}{}'", file_.name(), prefix_, name));
    if (t->shape.size() != 2 || t->shape[0] < 1 || t->shape[1] < 1)
      throw format_error(status::bad_shape,
                         formatted("{}: tensor '{}{}' has shape [{}], expected a matrix", file_.name(),
                                   prefix_, name, fmt::join(t->shape, ", ")));
    return t->shape;
  }

  std::vector<float> values(const char* name, const std::vector<std::int64_t>& shape) const {
    return to_floats(file_, file_.require(prefix_ + name, shape));
  }

  float offset() const {
    const tensor_entry* t = find("logit_offset");
    if (t == nullptr) return 0;
    if (t->elements() != 1)
      throw format_error(status::bad_shape,
                         formatted("{}: tensor '{}logit_offset' has {} elements, expected one", file_.name(),
                                   prefix_, t->elements()));
    return to_floats(file_, *t).front();
  }

 private:
  safetensors_file file_;
  std::string prefix_;
};

}  // namespace

dual_encoder_config import_dual_encoder(const std::vector<retrieval_import>& files,
                                        dual_encoder_config base) {
  if (files.empty()) throw argument_error(status::bad_argument, "import_dual_encoder: no files");
  base.retrievers.clear();
  for (const retrieval_import& from : files) {
    const encoder_file file(from);
    const auto down = file.extents("query.down.weight"), gate = file.extents("query.gate.weight");
    constexpr std::int64_t most = 1 << 24;
    if (down[0] > most || down[1] > most || gate[0] > most)
      throw format_error(status::bad_shape, formatted("{}: extents beyond {}", from.path, most));
    const std::int64_t rank = down[0], hidden = down[1], heads = gate[0];
    if (base.retrievers.empty()) {
      base.rank = static_cast<std::int32_t>(rank);
      base.hidden = static_cast<std::int32_t>(hidden);
      base.heads = static_cast<std::int32_t>(heads);
    } else if (rank != base.rank || hidden != base.hidden || heads != base.heads) {
      throw argument_error(
          status::bad_shape,
          formatted("{}: rank {}, hidden {} and {} heads, the files before it have {}, {} and {}", from.path,
                    rank, hidden, heads, base.rank, base.hidden, base.heads));
    }
    retriever_weights r;
    r.name = from.name.empty() ? formatted("l{}k{}", from.query_layer, from.key_layer) : from.name;
    r.query_layer = from.query_layer;
    r.key_layer = from.key_layer;
    r.wq_a = file.values("query.down.weight", {rank, hidden});
    r.q_norm = file.values("query.norm.weight", {rank});
    r.wq_b = file.values("query.up.weight", {heads * index_key_dim, rank});
    r.weights_proj = file.values("query.gate.weight", {heads, hidden});
    if (file.find("key.weight") != nullptr) r.wk = file.values("key.weight", {index_key_dim, hidden});
    r.logit_offset = file.offset();
    base.retrievers.push_back(std::move(r));
  }
  const dual_encoder_indexer checked(base);
  return checked.config();
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
