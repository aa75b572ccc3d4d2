// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/session.hpp>
#include <fstream>
#include <string>

#include "tests/support/small_dual_encoder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace session_testing {

namespace fm = flashmemory;

using flashmemory_test::temporary_folder;

inline std::vector<char> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), std::streamsize(bytes.size()));
}

/// A store with a selector over the small dual encoder, and an engine in front.
struct host {
  fm::kv_geometry geometry = toy::geometry();
  std::unique_ptr<fm::tiered_chunk_store> store;
  fm::dual_encoder_indexer index{toy::small_dual_encoder(3)};
  fm::selection_policy policy;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;

  explicit host(const fm::kv_geometry& g = toy::geometry(), std::int32_t max_sequences = 8) : geometry(g) {
    store = std::make_unique<fm::tiered_chunk_store>(toy::store_options(g, max_sequences));
    policy.interval = 8;
    policy.hysteresis = 0.25f;
    fm::selector_options o;
    o.max_rollback_tokens = 8;
    o.max_sequences = max_sequences;
    select = std::make_unique<fm::selector>(*store, index, policy, o);
    engine = std::make_unique<toy::engine>(*store, *select);
  }
  fm::sequence_options options(std::int64_t tokens = 800) const {
    return fm::sequence_options_for(policy, geometry, tokens);
  }
  std::vector<std::vector<std::byte>> chunks(fm::sequence_handle s) const {
    fm::sequence_info info;
    std::vector<std::vector<std::byte>> all;
    if (store->info(s, &info) != fm::status::ok) return all;
    const auto bytes = fm::chunk_layout(geometry).chunk_bytes();
    for (std::int64_t c = 0; c < geometry.chunks_for(info.tokens); ++c) {
      all.emplace_back(bytes);
      if (store->read_chunk(s, fm::chunk_id(c), fm::view<std::byte, 1>(all.back().data(), bytes)) !=
          fm::status::ok)
        all.back().clear();
    }
    return all;
  }
};

/// What a loaded sequence must have in common with the one that was saved.
inline bool same_contents(const host& a, fm::sequence_handle x, const host& b, fm::sequence_handle y) {
  fm::sequence_info i, j;
  if (a.store->info(x, &i) != fm::status::ok || b.store->info(y, &j) != fm::status::ok) return false;
  if (i.tokens != j.tokens || i.complete_chunks != j.complete_chunks) return false;
  for (std::int32_t s = 0; s < a.geometry.index_keys.lanes; ++s)
    if (toy::key_bytes(*a.store, x, s) != toy::key_bytes(*b.store, y, s)) return false;
  return a.chunks(x) == b.chunks(y) && toy::resident_ids(*a.store, x) == toy::resident_ids(*b.store, y);
}

}  // namespace session_testing
