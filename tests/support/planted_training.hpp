// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/error.hpp>
#include <flashmemory/train/learn/trainer.hpp>
#include <flashmemory/train/start/start.hpp>
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/planted_documents.hpp"

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

/// A source whose second document turns bad after it has been checked, as a damaged disk or memory would make it.
class damaged_source final : public ft::document_source {
 public:
  damaged_source() : inner_(planted::geometry(), many(5, 3, 0, 30)) {}
  const ft::recording_geometry& geometry() const override { return inner_.geometry(); }
  const std::vector<ft::document_info>& documents() const override { return inner_.documents(); }
  std::string fingerprint() const override { return inner_.fingerprint(); }
  ft::document load(std::int64_t index) const override {
    ft::document doc = inner_.load(index);
    if (!damaged || index != 1) return doc;
    ft::row_matrix rows(fm::dtype::f32, width);
    std::vector<float> row(width, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t k = 0; k < doc.keys[0].keys; ++k) rows.append(row.data());
    doc.keys[0].inputs = rows;
    return doc;
  }
  bool damaged = false;

 private:
  ft::memory_source inner_;
};

/// A trainer that meets the damaged document stops there, names it and is as before; once the document is whole again the
/// run goes on as if nothing had been.
inline void check_that_nan_stops(damaged_source& source, const fm::dual_encoder_config& start,
                                 ft::trainer_options o) {
  o.memory_budget = 1;  // so that documents are read again
  source.damaged = true;
  ft::trainer trainer(source, start, o);
  bool stopped = false;
  for (int i = 0; i < 4 && !stopped; ++i) {
    const std::vector<float> before = weights_of(trainer.config());
    const std::int64_t steps = trainer.steps_done();
    try {
      (void)trainer.step();
    } catch (const fm::error& e) {
      stopped = true;
      CHECK(e.code() == fm::status::not_finite);
      CHECK_THAT(e.what(), Catch::Contains("odd/1"));
      CHECK(weights_of(trainer.config()) == before);
      CHECK(trainer.steps_done() == steps);
    }
  }
  CHECK(stopped);
  source.damaged = false;
  trainer.run({});
  ft::trainer other(source, start, o);
  other.run({});
  CHECK(weights_of(trainer.config()) == weights_of(other.config()));
}

}  // namespace planted
