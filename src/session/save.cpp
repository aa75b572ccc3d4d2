// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/session.hpp>
#include <vector>

#include "src/core/format.hpp"
#include "src/io/atomic_file.hpp"
#include "src/session/session_header.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

void require(status code, sequence_handle sequence, const chunk_store& store, const char* what) {
  if (code == status::ok) return;
  fault f = store.last_fault();
  if (f.code != code) f = fault{};
  f.code = code;
  throw error(code, formatted("saving sequence {} (generation {}): {}: {}", sequence.index,
                              sequence.generation, what, describe(f)));
}

void write_section(detail::atomic_file& out, const void* data, std::size_t bytes) {
  if (bytes > 0) out.write(data, bytes);
  const std::uint64_t checksum = detail::section_checksum(data, bytes);
  out.write(&checksum, sizeof checksum);
}

/// One stream's keys as rows, whatever layout the store keeps.
std::vector<std::byte> key_rows(const kv_geometry& g, const index_key_pages& pages) {
  const auto key_bytes = static_cast<std::size_t>(g.index_keys.bytes());
  std::vector<std::byte> rows(static_cast<std::size_t>(pages.keys) * key_bytes);
  if (rows.empty()) return rows;
  if (g.index_keys.layout == index_key_layout::interleaved) {
    std::memcpy(rows.data(), pages.data, rows.size());
    return rows;
  }
  for (std::int64_t key = 0; key < pages.keys; key += g.index_keys_per_chunk()) {
    const std::size_t at = static_cast<std::size_t>(key) * key_bytes;
    repack_keys(pages.data + at, rows.data() + at, std::min(g.index_keys_per_chunk(), pages.keys - key),
                g.index_keys_per_chunk(), g.index_keys.bytes(), false);
  }
  return rows;
}

}  // namespace

void save_session(const chunk_store& store, sequence_handle sequence, const std::string& path,
                  const selector* select) {
  sequence_info info;
  require(store.info(sequence, &info), sequence, store, "info");
  detail::session_header header;
  header.geometry = store.geometry();
  header.options = info.options;
  header.tokens = info.tokens;

  std::vector<chunk_id> resident;
  resident_set set;
  require(store.resident(sequence, 0, &set), sequence, store, "resident");
  for (std::int64_t i = 0; i < set.count; ++i)
    if (set.chunks[i].id < info.complete_chunks) resident.push_back(set.chunks[i].id);
  header.resident = static_cast<std::int64_t>(resident.size());

  std::vector<std::byte> state;
  selection_report served;
  if (select != nullptr && select->report(sequence, &served) == status::ok)
    state = select->save_state(sequence);
  header.state_bytes = static_cast<std::int64_t>(state.size());

  std::vector<index_key_pages> streams(static_cast<std::size_t>(header.geometry.index_keys.lanes));
  for (std::size_t s = 0; s < streams.size(); ++s) {
    require(store.index_keys(sequence, static_cast<std::int32_t>(s), &streams[s]), sequence, store, "keys");
    if (streams[s].keys > info.tokens / header.geometry.index_keys.tokens_per_key)
      throw error(status::out_of_order,
                  formatted("saving sequence {}: stream {} holds {} keys at {} tokens: a forward pass is not "
                            "finished",
                            sequence.index, s, streams[s].keys, info.tokens));
    header.keys.push_back(streams[s].keys);
  }

  detail::atomic_file out(path);
  const std::vector<std::byte> head = detail::encode_header(header);
  out.write(head.data(), head.size());
  write_section(out, resident.data(), resident.size() * sizeof(chunk_id));
  write_section(out, state.data(), state.size());
  for (const index_key_pages& pages : streams) {
    const std::vector<std::byte> rows = key_rows(header.geometry, pages);
    write_section(out, rows.data(), rows.size());
  }
  std::vector<std::byte> chunk(chunk_layout(header.geometry).chunk_bytes());
  for (std::int64_t c = 0; c < header.chunks(); ++c) {
    require(
        store.read_chunk(sequence, static_cast<chunk_id>(c), view<std::byte, 1>(chunk.data(), chunk.size())),
        sequence, store, "read_chunk");
    write_section(out, chunk.data(), chunk.size());
  }
  out.commit();
}

}  // namespace v0
}  // namespace flashmemory
