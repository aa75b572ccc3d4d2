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

class file_output final : public detail::output {
 public:
  explicit file_output(detail::atomic_file& file) : file_(file) {}
  void write(const void* data, std::size_t bytes) override { file_.write(data, bytes); }

 private:
  detail::atomic_file& file_;
};

class sink_output final : public detail::output {
 public:
  explicit sink_output(const byte_sink& sink) : sink_(sink) {
    if (sink.write == nullptr) throw argument_error(status::null_data, "byte_sink::write is null");
  }
  void write(const void* data, std::size_t bytes) override {
    if (!sink_.write(sink_.context, data, bytes))
      throw io_failure(status::io_error,
                       formatted("byte sink: it did not take {} bytes after {}", bytes, written_));
    written_ += bytes;
  }

 private:
  byte_sink sink_;
  std::uint64_t written_ = 0;
};

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
                g.index_keys_per_chunk(), g.index_keys.bytes(), false, g.index_keys.scale_bytes());
  }
  return rows;
}

/// What of a sequence is asked for before anything is written, so that what cannot be saved touches no file.
struct saved_parts {
  detail::session_header header;
  std::vector<chunk_id> resident;
  std::vector<std::byte> state;
  std::vector<index_key_pages> streams;
};

saved_parts collect(const chunk_store& store, sequence_handle sequence, const selector* select,
                    const session_options& session) {
  if (session.model_tag.size() > detail::max_name_bytes)
    throw argument_error(status::bad_argument,
                         formatted("session_options::model_tag has {} bytes, at most {} are kept",
                                   session.model_tag.size(), detail::max_name_bytes));
  detail::require_keys_in_host_memory(store, "saving");
  saved_parts parts;
  detail::session_header& header = parts.header;
  sequence_info info;
  require(store.info(sequence, &info), sequence, store, "info");
  header.geometry = store.geometry();
  header.options = info.options;
  header.tokens = info.tokens;
  header.id = detail::fresh_file_id();
  header.model_tag = session.model_tag;

  resident_set set;
  require(store.resident(sequence, 0, &set), sequence, store, "resident");
  for (std::int64_t i = 0; i < set.count; ++i)
    if (set.chunks[i].id < info.complete_chunks) parts.resident.push_back(set.chunks[i].id);
  header.resident = static_cast<std::int64_t>(parts.resident.size());

  selection_report served;
  if (select != nullptr && select->report(sequence, &served) == status::ok) {
    parts.state = select->save_state(sequence);
    header.encoder = select->taps().index_key_fingerprint;
    header.encoder_name = std::string(select->taps().name).substr(0, detail::max_name_bytes);
  }
  header.state_bytes = static_cast<std::int64_t>(parts.state.size());

  parts.streams.resize(static_cast<std::size_t>(header.geometry.index_keys.lanes));
  for (std::size_t s = 0; s < parts.streams.size(); ++s) {
    index_key_pages& pages = parts.streams[s];
    require(store.index_keys(sequence, static_cast<std::int32_t>(s), &pages), sequence, store, "keys");
    if (pages.keys > info.tokens / header.geometry.index_keys.tokens_per_key)
      throw error(status::out_of_order,
                  formatted("saving sequence {}: stream {} holds {} keys at {} tokens: a forward pass is not "
                            "finished",
                            sequence.index, s, pages.keys, info.tokens));
    header.keys.push_back(pages.keys);
  }
  return parts;
}

void write(detail::output& to, const saved_parts& parts, const chunk_store& store, sequence_handle sequence) {
  const detail::session_header& header = parts.header;
  detail::section_writer out(to, header.id);
  out.header(detail::encode_header(header));
  out.section(parts.resident.data(), parts.resident.size() * sizeof(chunk_id));
  std::vector<std::byte> chunk(chunk_layout(header.geometry).chunk_bytes());
  for (std::int64_t c = 0; c < header.chunks(); ++c) {
    require(
        store.read_chunk(sequence, static_cast<chunk_id>(c), view<std::byte, 1>(chunk.data(), chunk.size())),
        sequence, store, "read_chunk");
    out.section(chunk.data(), chunk.size());
  }
  for (const index_key_pages& pages : parts.streams) {
    const std::vector<std::byte> rows = key_rows(header.geometry, pages);
    out.section(rows.data(), rows.size());
  }
  out.section(parts.state.data(), parts.state.size());
  out.finish();
}

}  // namespace

void save_session(const chunk_store& store, sequence_handle sequence, const std::string& path,
                  const selector* select, const session_options& session) {
  const saved_parts parts = collect(store, sequence, select, session);
  detail::atomic_file file(path, session.permissions);
  file_output out(file);
  write(out, parts, store, sequence);
  file.commit();
}

void save_session(const chunk_store& store, sequence_handle sequence, const byte_sink& sink,
                  const selector* select, const session_options& session) {
  sink_output out(sink);
  write(out, collect(store, sequence, select, session), store, sequence);
}

}  // namespace v0
}  // namespace flashmemory
