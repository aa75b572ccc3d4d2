// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/indexer/dual_encoder.hpp>

#include "tests/support/toy_engine.hpp"

namespace toy {

/// Three retrievers with made-up weights; two read keys from layer 0, through an overlapping window.
inline fm::dual_encoder_config small_dual_encoder(std::uint64_t seed) {
  fm::dual_encoder_config c;
  c.hidden = width;
  c.rank = 8;
  c.heads = 2;
  c.key_window = 16;
  for (std::int32_t r = 0; r < 3; ++r) {
    const auto draw = [&, tensor = 0](std::int64_t count) mutable {
      ++tensor;
      std::vector<float> values;
      for (std::int64_t i = 0; i < count; ++i)
        values.push_back(number(seed, std::uint64_t(r), std::uint64_t(tensor), std::uint64_t(i)));
      return values;
    };
    auto make = draw;
    fm::retriever_weights w;
    w.name = std::to_string(r);
    w.query_layer = r == 2 ? 0 : 1;
    w.key_layer = r == 1 ? 1 : 0;
    w.wq_a = make(c.rank * c.hidden);
    w.q_norm = make(c.rank);
    w.wq_b = make(c.heads * 128 * c.rank);
    w.weights_proj = make(c.heads * c.hidden);
    w.wk = make(128 * c.hidden);
    w.logit_offset = -0.5f;
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

}  // namespace toy
