// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/select/device_level1.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

tap_list::tap_list(const dual_encoder_config& config)
    : retrievers_(static_cast<std::int32_t>(config.retrievers.size())),
      log_odds_(config.reduce == key_reduction::max) {
  for (const retriever_weights& r : config.retrievers) {
    const auto tap = std::find_if(query_taps_.begin(), query_taps_.end(),
                                  [&](const query_tap& t) { return t.layer == r.query_layer; });
    tap_of_.push_back(static_cast<std::int32_t>(tap - query_taps_.begin()));
    if (tap == query_taps_.end()) query_taps_.push_back({r.query_layer, tap_kind::hidden, config.hidden});
    if (!r.wk.empty())
      key_taps_.push_back({r.key_layer, config.hidden, config.tokens_per_key, config.key_window});
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
