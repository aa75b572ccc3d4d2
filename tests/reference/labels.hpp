// SPDX-License-Identifier: MIT
#pragma once

// Label rules and attention mass, written down again the slow way: one loop per line of the rule, double
// precision, nothing shared with the library but the document.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <flashmemory/train/record/document.hpp>
#include <map>
#include <tuple>
#include <vector>

namespace reference {

using flashmemory::train::document;

/// All recorded items of the token at `position` as (layer, head, entry) -> mass; null if it was not recorded.
inline bool items_at(const document& doc, std::int64_t position,
                     std::map<std::tuple<int, int, std::int64_t>, double>& out) {
  const auto& a = doc.attention;
  for (std::size_t t = 0; t < a.positions.size(); ++t) {
    if (a.positions[t] != position) continue;
    for (std::int64_t i = a.offsets[t]; i < a.offsets[t + 1]; ++i) {
      const auto u = static_cast<std::size_t>(i);
      out[{a.layer[u], a.head[u], a.entry[u]}] = a.mass[u];
    }
    return true;
  }
  return false;
}

/// Chunk -> most votes that it got at one token of (position, position + tau].
inline std::map<std::int64_t, int> nucleus_votes(const document& doc, std::int64_t position, std::int64_t tau,
                                                 double p, int layers, int heads, std::int64_t chunk_entries,
                                                 int only_layer) {
  std::map<std::int64_t, int> best;
  for (std::int64_t t = position + 1; t <= position + tau && t < doc.tokens; ++t) {
    std::map<std::tuple<int, int, std::int64_t>, double> items;
    if (!items_at(doc, t, items)) continue;
    std::map<std::int64_t, int> votes;
    for (int layer = 0; layer < layers; ++layer) {
      if (only_layer >= 0 && layer != only_layer) continue;
      std::map<std::int64_t, double> mass;
      for (const auto& [key, value] : items)
        if (std::get<0>(key) == layer) mass[std::get<2>(key)] += value / heads;
      std::vector<std::pair<double, std::int64_t>> order;
      for (const auto& [entry, value] : mass) order.push_back({value, entry});
      std::sort(order.rbegin(), order.rend());
      std::map<std::int64_t, bool> kept;
      double cumulative = 0;
      for (const auto& [value, entry] : order) {
        if (cumulative > p) break;
        cumulative += value;
        kept[entry / chunk_entries] = true;
      }
      for (const auto& [chunk, yes] : kept) votes[chunk] += yes;
    }
    for (const auto& [chunk, count] : votes) best[chunk] = std::max(best[chunk], count);
  }
  return best;
}

/// Chunk -> largest mass that one head gave it at one token of the window.
inline std::map<std::int64_t, double> max_mass(const document& doc, std::int64_t position, std::int64_t tau,
                                               std::int64_t chunk_entries, int only_layer) {
  std::map<std::int64_t, double> best;
  for (std::int64_t t = position + 1; t <= position + tau && t < doc.tokens; ++t) {
    std::map<std::tuple<int, int, std::int64_t>, double> items, sums;
    items_at(doc, t, items);
    for (const auto& [key, value] : items)
      sums[{std::get<0>(key), std::get<1>(key), std::get<2>(key) / chunk_entries}] += value;
    for (const auto& [key, value] : sums)
      if (only_layer < 0 || std::get<0>(key) == only_layer)
        best[std::get<2>(key)] = std::max(best[std::get<2>(key)], value);
  }
  return best;
}

/// Chunk -> needed by a token of the window, as the evidence says.
inline std::map<std::int64_t, bool> needed(const document& doc, std::int64_t position, std::int64_t tau,
                                           std::int64_t chunk_entries) {
  std::map<std::int64_t, bool> out;
  for (std::int64_t t = position + 1; t <= position + tau && t < doc.tokens; ++t)
    for (const auto& need : doc.evidence)
      if (need.token_begin <= t && t < need.token_end)
        for (std::int64_t e = need.entry_begin; e < need.entry_end; ++e) out[e / chunk_entries] = true;
  return out;
}

/// softmax(scale * q k^T) of one head over `entries` keys, with an optional sink logit.
inline std::vector<double> softmax(const std::vector<double>& logits, const double* sink) {
  double largest = sink != nullptr ? *sink : -INFINITY;
  for (const double l : logits) largest = std::max(largest, l);
  double sum = sink != nullptr ? std::exp(*sink - largest) : 0;
  for (const double l : logits) sum += std::exp(l - largest);
  std::vector<double> out;
  for (const double l : logits) out.push_back(std::exp(l - largest) / sum);
  return out;
}

}  // namespace reference
