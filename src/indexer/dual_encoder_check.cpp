// SPDX-License-Identifier: MIT
#include <cmath>
#include <flashmemory/error.hpp>
#include <set>

#include "src/core/format.hpp"
#include "src/indexer/dual_encoder_impl.hpp"
#include "src/indexer/kernels.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

[[noreturn]] void refuse(status code, const std::string& what) { throw argument_error(code, what); }

void check_tensor(const retriever_weights& retriever, const char* name, const std::vector<float>& values,
                  std::int64_t rows, std::int64_t columns) {
  if (static_cast<std::int64_t>(values.size()) != rows * columns) {
    refuse(status::bad_shape, formatted("dual encoder: retriever '{}': {} has {} values, expected {} x {}",
                                        retriever.name, name, values.size(), rows, columns));
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      refuse(status::not_finite, formatted("dual encoder: retriever '{}': {} has {} at element {}",
                                           retriever.name, name, values[i], i));
    }
  }
}

}  // namespace

namespace detail {

void validate(const dual_encoder_config& c) {
  const auto need = [](bool good, const char* field, const auto& value, const char* wanted) {
    if (!good) {
      refuse(status::bad_argument, formatted("dual encoder: {} is {}, expected {}", field, value, wanted));
    }
  };
  constexpr std::int32_t most = 1 << 20;
  need(c.hidden > 0 && c.hidden <= most, "hidden", c.hidden, "1 to 2^20");
  need(c.rank > 0 && c.rank <= most, "rank", c.rank, "1 to 2^20");
  need(c.heads > 0 && c.heads <= 65536, "heads", c.heads, "1 to 65536");
  need(std::isfinite(c.q_norm_eps) && c.q_norm_eps >= 0, "q_norm_eps", c.q_norm_eps, "a number >= 0");
  need(c.tokens_per_key > 0 && c.tokens_per_key <= most, "tokens_per_key", c.tokens_per_key, "1 to 2^20");
  need(c.key_window >= c.tokens_per_key && c.key_window <= most, "key_window", c.key_window,
       "tokens_per_key to 2^20");
  need(std::isfinite(c.key_scale_floor) && c.key_scale_floor > 0, "key_scale_floor", c.key_scale_floor,
       "a number > 0");
  need(c.combine == ensemble::max || c.combine == ensemble::mean, "combine", static_cast<int>(c.combine),
       "an ensemble");
  need(c.reduce == key_reduction::max || c.reduce == key_reduction::count_positive ||
           c.reduce == key_reduction::sum,
       "reduce", static_cast<int>(c.reduce), "a key_reduction");

  const rope_options& r = c.rope;
  need(r.dim == 0 || r.dim == rope_dim, "rope.dim", r.dim, "0 or 64");
  need(std::isfinite(r.base) && r.base > 1, "rope.base", r.base, "a number > 1");
  need(std::isfinite(r.factor) && r.factor >= 1, "rope.factor", r.factor, "a number >= 1");
  need(r.original_length > 0, "rope.original_length", r.original_length, "a positive number");
  need(std::isfinite(r.beta_slow) && r.beta_slow > 0, "rope.beta_slow", r.beta_slow, "a number > 0");
  need(std::isfinite(r.beta_fast) && r.beta_fast >= r.beta_slow, "rope.beta_fast", r.beta_fast,
       "a number >= rope.beta_slow");
  need(r.max_positions > 0, "rope.max_positions", r.max_positions, "a positive number");

  need(!c.retrievers.empty() && c.retrievers.size() <= static_cast<std::size_t>(max_retrievers),
       "number of retrievers", c.retrievers.size(), "1 to 64");
  std::set<std::string> names;
  const bool has_keys = !c.retrievers.front().wk.empty();
  for (const retriever_weights& retriever : c.retrievers) {
    if (retriever.name.empty() || retriever.name.find('.') != std::string::npos) {
      refuse(status::bad_argument,
             formatted("dual encoder: '{}' cannot name a retriever: empty or with a dot", retriever.name));
    }
    if (!names.insert(retriever.name).second) {
      refuse(status::bad_argument, formatted("dual encoder: retriever '{}' stands twice", retriever.name));
    }
    if (retriever.query_layer < 0 || retriever.key_layer < 0) {
      refuse(status::bad_argument,
             formatted("dual encoder: retriever '{}': layers {} and {} must not be negative", retriever.name,
                       retriever.query_layer, retriever.key_layer));
    }
    check_tensor(retriever, "wq_a", retriever.wq_a, c.rank, c.hidden);
    check_tensor(retriever, "q_norm", retriever.q_norm, c.rank, 1);
    check_tensor(retriever, "wq_b", retriever.wq_b, std::int64_t{c.heads} * index_key_dim, c.rank);
    check_tensor(retriever, "weights_proj", retriever.weights_proj, c.heads, c.hidden);
    if (has_keys != !retriever.wk.empty()) {
      refuse(status::bad_argument,
             formatted("dual encoder: retriever '{}' {} wk, but '{}' {}", retriever.name,
                       has_keys ? "has no" : "has", c.retrievers.front().name, has_keys ? "has" : "has not"));
    }
    if (has_keys) check_tensor(retriever, "wk", retriever.wk, index_key_dim, c.hidden);
    if (!std::isfinite(retriever.logit_offset)) {
      refuse(status::not_finite, formatted("dual encoder: retriever '{}': logit_offset is {}", retriever.name,
                                           retriever.logit_offset));
    }
  }
}

}  // namespace detail

}  // namespace v0
}  // namespace flashmemory
