// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace flashmemory_test::reference {

/// One entry that a query attends to.
struct entry {
  std::vector<double> key;
  std::vector<double> value;
};

struct attention_result {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
  std::vector<double> weights;  ///< of the entries
};

/// Attention of one query over some entries, in double precision: a line for each line of the formula. A soft
/// cap of 0 is none.
inline attention_result attention(const std::vector<double>& query, const std::vector<entry>& entries,
                                  std::int64_t value_dim, double scale, double soft_cap,
                                  std::optional<double> sink_logit) {
  const double sink = sink_logit.value_or(-std::numeric_limits<double>::infinity());
  std::vector<double> logits;
  for (const entry& e : entries) {
    double dot = 0;
    for (std::size_t i = 0; i < query.size(); ++i) dot += query[i] * e.key[i];
    double logit = scale * dot;
    if (soft_cap > 0) logit = soft_cap * std::tanh(logit / soft_cap);
    logits.push_back(logit);
  }

  attention_result result;
  result.out.assign(std::size_t(value_dim), 0);
  if (entries.empty() && std::isinf(sink)) return result;

  double max = sink;
  for (const double logit : logits) max = std::fmax(max, logit);
  double denominator = std::exp(sink - max);
  for (const double logit : logits) denominator += std::exp(logit - max);
  for (std::size_t e = 0; e < entries.size(); ++e) {
    const double weight = std::exp(logits[e] - max) / denominator;
    result.weights.push_back(weight);
    for (std::size_t i = 0; i < result.out.size(); ++i) result.out[i] += weight * entries[e].value[i];
  }
  result.lse = max + std::log(denominator);
  return result;
}

}  // namespace flashmemory_test::reference
