// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/train/record/document.hpp>
#include <random>
#include <set>
#include <string>

namespace support {

namespace train = flashmemory::train;

inline train::recording_geometry small_geometry(int tokens_per_entry = 1) {
  train::recording_geometry g;
  g.layers = 3;
  g.heads = 2;
  g.tokens_per_entry = tokens_per_entry;
  g.entries_per_chunk = 8;
  g.queries = {{1, flashmemory::tap_kind::hidden, 6}, {2, flashmemory::tap_kind::queries, 10}};
  g.keys = {{0, 6, 4, 16, 0}, {2, 0, 4, 4, 132}, {0, 6, 2, 2, 0}};
  g.model_fingerprint = "a model";
  return g;
}

/// A document whose every part differs with `seed`; values are bf16, so that either storage holds them.
inline train::document random_document(const train::recording_geometry& g, std::uint64_t seed,
                                       std::int64_t max_tokens = 90, std::int64_t min_tokens = 0) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  const auto value = [&] {
    return flashmemory::round_to_bf16(std::uniform_real_distribution<float>(-3, 3)(random));
  };
  train::document doc = train::empty_document(g, flashmemory::dtype::bf16);
  doc.tag = "kind " + std::to_string(pick(0, 3));
  doc.split = pick(0, 3) == 0 ? train::dataset_split::validation : train::dataset_split::train;
  doc.tokens = pick(min_tokens, max_tokens);
  for (std::int64_t t = 0; t < doc.tokens; ++t) {
    if (pick(0, 3) == 0) {
      doc.positions.push_back(t);
      for (auto& rows : doc.queries) {
        std::vector<float> row(static_cast<std::size_t>(rows.width()));
        for (float& x : row) x = value();
        rows.append(row.data());
      }
    }
    if (pick(0, 1) == 0) continue;
    auto& a = doc.attention;
    a.positions.push_back(t);
    const std::int64_t visible = (t + 1) / g.tokens_per_entry;
    for (int layer = 0; layer < g.layers; ++layer)
      for (int head = 0; head < g.heads; ++head) {
        std::set<std::int64_t> entries;
        for (std::int64_t i = pick(0, 4); i > 0 && visible > 0; --i) entries.insert(pick(0, visible - 1));
        std::vector<float> mass;
        for (std::size_t i = 0; i < entries.size(); ++i)
          mass.push_back(std::uniform_real_distribution<float>(0.01f, 0.9f)(random) /
                         static_cast<float>(entries.size()));
        std::sort(mass.rbegin(), mass.rend());
        std::size_t i = 0;
        for (const std::int64_t entry : entries) {
          a.layer.push_back(static_cast<std::uint16_t>(layer));
          a.head.push_back(static_cast<std::uint16_t>(head));
          a.entry.push_back(static_cast<std::uint32_t>(entry));
          a.mass.push_back(mass[i++]);
        }
      }
    a.offsets.push_back(a.items());
  }
  for (std::size_t s = 0; s < g.keys.size(); ++s) {
    auto& keys = doc.keys[s];
    keys.keys = doc.tokens / g.keys[s].tokens_per_key;
    for (std::int64_t k = 0; k < keys.keys; ++k) {
      if (!g.keys[s].native()) {
        std::vector<float> row(static_cast<std::size_t>(g.keys[s].width));
        for (float& x : row) x = value();
        keys.inputs.append(row.data());
        continue;
      }
      float key[128];
      for (float& x : key) x = value();
      std::byte bytes[132];
      flashmemory::quantise_key(key, bytes, 1e-4f);
      keys.native.insert(keys.native.end(), bytes, bytes + 132);
    }
  }
  const std::int64_t entries = doc.tokens / g.tokens_per_entry;
  for (std::int64_t n = entries > 1 ? pick(0, 4) : 0; n > 0; --n) {
    train::evidence_range need;
    need.token_begin = pick(0, doc.tokens - 1);
    need.token_end = pick(need.token_begin + 1, doc.tokens);
    need.entry_begin = pick(0, entries - 1);
    need.entry_end = pick(need.entry_begin + 1, entries);
    doc.evidence.push_back(need);
  }
  std::stable_sort(doc.evidence.begin(), doc.evidence.end(),
                   [](const auto& a, const auto& b) { return a.token_begin < b.token_begin; });
  return doc;
}

/// Byte for byte.
inline bool same(const train::document& a, const train::document& b) {
  const auto same_rows = [](const train::row_matrix& x, const train::row_matrix& y) {
    return x.rows() == y.rows() && x.to_floats() == y.to_floats();
  };
  if (a.tag != b.tag || a.split != b.split || a.tokens != b.tokens || a.positions != b.positions)
    return false;
  if (a.queries.size() != b.queries.size() || a.keys.size() != b.keys.size()) return false;
  for (std::size_t i = 0; i < a.queries.size(); ++i)
    if (!same_rows(a.queries[i], b.queries[i])) return false;
  for (std::size_t i = 0; i < a.keys.size(); ++i)
    if (a.keys[i].keys != b.keys[i].keys || a.keys[i].native != b.keys[i].native ||
        !same_rows(a.keys[i].inputs, b.keys[i].inputs))
      return false;
  const auto &x = a.attention, &y = b.attention;
  if (x.positions != y.positions || x.offsets != y.offsets || x.layer != y.layer || x.head != y.head ||
      x.entry != y.entry || x.mass != y.mass || a.evidence.size() != b.evidence.size())
    return false;
  for (std::size_t i = 0; i < a.evidence.size(); ++i)
    if (std::memcmp(&a.evidence[i], &b.evidence[i], sizeof a.evidence[i]) != 0) return false;
  return true;
}

}  // namespace support
