// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <random>
#include <string>
#include <vector>

/// Recordings with a known answer: every chunk hides a code in one of its keys; some query positions ask for the
/// code of one chunk, through a fixed linear map, and the token after them attends to that key.
namespace planted {

namespace fm = flashmemory;
namespace ft = flashmemory::train;

inline constexpr std::int32_t width = 32;
inline constexpr std::int32_t code_width = 8;
inline constexpr std::int32_t entries_per_chunk = 16;
inline constexpr std::int32_t tokens_per_key = 4;

inline ft::recording_geometry geometry() {
  ft::recording_geometry g;
  g.layers = 2;
  g.heads = 2;
  g.entries_per_chunk = entries_per_chunk;
  g.queries = {{1, fm::tap_kind::hidden, width}};
  g.keys = {{0, width, tokens_per_key, tokens_per_key, 0}};
  g.model_fingerprint = "planted";
  return g;
}

inline ft::window_options windows() {
  ft::window_options w = ft::window_options_for(geometry());
  w.tau = 16;
  return w;
}

/// From a code to a key input and to a query [width, code_width], the same for all documents.
struct maps {
  maps() : to_key(width * code_width), to_query(width * code_width) {
    std::normal_distribution<float> normal;
    std::mt19937 fixed(12345);
    for (float& v : to_key) v = normal(fixed) / std::sqrt(float(code_width));
    for (float& v : to_query) v = normal(fixed) / std::sqrt(float(code_width));
  }
  std::vector<float> to_key, to_query;
};

inline std::vector<float> transposed(const std::vector<float>& map) {
  std::vector<float> out;
  for (std::int32_t j = 0; j < code_width; ++j) {
    for (std::int32_t i = 0; i < width; ++i) out.push_back(map[std::size_t(i * code_width + j)]);
  }
  return out;
}

inline ft::document make(std::uint32_t seed, std::int64_t chunks, ft::dataset_split split,
                         const std::string& tag = "planted") {
  std::normal_distribution<float> normal;
  const maps fixed;
  const std::vector<float>&to_key = fixed.to_key, &to_query = fixed.to_query;
  std::mt19937 random(seed);
  ft::document doc = ft::empty_document(geometry(), fm::dtype::f32);
  doc.tag = tag;
  doc.split = split;
  doc.tokens = chunks * entries_per_chunk;
  std::vector<std::vector<float>> codes;
  std::vector<std::int64_t> place;
  for (std::int64_t c = 0; c < chunks; ++c) {
    std::vector<float> code(code_width);
    for (float& v : code) v = normal(random);
    codes.push_back(code);
    const std::int64_t keys = entries_per_chunk / tokens_per_key;
    place.push_back(c * keys + std::int64_t(random() % std::uint64_t(keys)));
    for (std::int64_t k = c * keys; k < (c + 1) * keys; ++k) {
      std::vector<float> row(width);
      for (float& v : row) v = 0.3f * normal(random);
      for (std::int32_t i = 0; i < width * code_width && k == place.back(); ++i) {
        row[std::size_t(i / code_width)] += to_key[std::size_t(i)] * code[std::size_t(i % code_width)];
      }
      doc.keys[0].inputs.append(row.data());
      ++doc.keys[0].keys;
    }
  }
  for (std::int64_t position = 6 * entries_per_chunk - 1; position + 1 < doc.tokens; position += 17) {
    const std::int64_t complete = (position + 1) / entries_per_chunk;
    const bool needs = random() % 4 != 0;
    const auto wanted = std::int64_t(1 + random() % std::uint64_t(complete - 3));
    std::vector<float> row(width);
    for (float& v : row) v = 0.3f * normal(random);
    for (std::int32_t i = 0; i < width * code_width && needs; ++i) {
      row[std::size_t(i / code_width)] +=
          to_query[std::size_t(i)] * codes[std::size_t(wanted)][std::size_t(i % code_width)];
    }
    row[0] += 1;  // a direction that is always there, as a normed hidden state has one
    doc.positions.push_back(position);
    doc.queries[0].append(row.data());
    ft::attention_table& t = doc.attention;
    t.positions.push_back(position + 1);
    t.layer.push_back(1);
    t.head.push_back(0);
    t.entry.push_back(std::uint32_t(needs ? place[std::size_t(wanted)] * tokens_per_key + 1 : 0));
    t.mass.push_back(needs ? 0.9f : 0.2f);
    t.offsets.push_back(std::int64_t(t.entry.size()));
  }
  return doc;
}

inline std::vector<ft::document> many(std::uint32_t seed, int training, int validation, std::int64_t chunks) {
  std::vector<ft::document> out;
  for (int i = 0; i < training + validation; ++i) {
    out.push_back(make(seed + std::uint32_t(i), chunks,
                       i < training ? ft::dataset_split::train : ft::dataset_split::validation,
                       i % 2 ? "odd" : "even"));
  }
  return out;
}

inline fm::dual_encoder_config architecture(int retrievers = 1) {
  fm::dual_encoder_config c;
  c.hidden = width;
  c.rank = width;
  c.heads = 4;
  c.tokens_per_key = tokens_per_key;
  c.key_window = tokens_per_key;
  c.model_fingerprint = "planted";
  for (int r = 0; r < retrievers; ++r) {
    fm::retriever_weights w;
    w.name = std::to_string(r);
    w.query_layer = 1;
    w.key_layer = 0;
    c.retrievers.push_back(w);
  }
  return c;
}

}  // namespace planted
