// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/train/start.hpp>
#include <flashmemory/train/trainer.hpp>

#include "support/planted_documents.hpp"

/// Runs over planted documents that take a moment.
namespace planted {

inline ft::trainer_options quick_run(std::int64_t layer_steps, std::int64_t ensemble_steps,
                                     std::int64_t tokens_per_step) {
  ft::trainer_options o;
  o.windows = windows();
  o.layer_steps = layer_steps;
  o.ensemble_steps = ensemble_steps;
  o.tokens_per_step = tokens_per_step;
  o.windows_per_document = 24;
  o.optimiser.warm_up = 3;
  o.threads = fm::serial_threads();
  return o;
}

inline ft::start_options start_of(ft::start_kind kind, std::int64_t convex_steps = 0) {
  ft::start_options o;
  o.kind = kind;
  o.windows = windows();
  o.convex_steps = convex_steps;
  o.tokens_per_step = 1000;
  o.threads = fm::serial_threads();
  return o;
}

/// Every parameter that training may change.
inline std::vector<float> weights_of(const fm::dual_encoder_config& c) {
  std::vector<float> all;
  for (const fm::retriever_weights& w : c.retrievers) {
    for (const auto* part : {&w.wq_a, &w.q_norm, &w.wq_b, &w.weights_proj, &w.wk}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    all.push_back(w.logit_offset);
  }
  return all;
}

}  // namespace planted
