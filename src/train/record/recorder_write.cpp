// SPDX-License-Identifier: MIT
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <flashmemory/error.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/io/atomic_file.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/train/record/recorder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

using detail::column;
using detail::waiting_document;

namespace {

/// The tensors of a shard that is being put together: their entries, and where their bytes wait.
class shard_builder {
 public:
  shard_builder(const recording_geometry& geometry, dtype rows, const std::string& follows)
      : geometry_(geometry), rows_(rows), follows_(follows) {}

  void add_part(const waiting_document& doc) {
    prefix_ = formatted("{}.{}.", doc.entry.number, doc.entry.parts.size());
    const tensor_type rows = rows_ == dtype::f32 ? tensor_type::f32 : tensor_type::bf16;
    add("positions", tensor_type::i64, 0, doc.positions);
    for (std::size_t i = 0; i < doc.queries.size(); ++i)
      add(formatted("queries.{}", i), rows, geometry_.queries[i].width, doc.queries[i]);
    for (std::size_t i = 0; i < doc.keys.size(); ++i) {
      const recorded_key_stream& stream = geometry_.keys[i];
      add(formatted("keys.{}", i), stream.native() ? tensor_type::u8 : rows,
          stream.native() ? stream.key_bytes : stream.width, doc.keys[i]);
    }
    add("attention.positions", tensor_type::i64, 0, doc.attended);
    add("attention.items", tensor_type::i64, 0, doc.items);
    add("attention.layer", tensor_type::u16, 0, doc.layer);
    add("attention.head", tensor_type::u16, 0, doc.head);
    add("attention.entry", tensor_type::u32, 0, doc.entries);
    add("attention.mass", tensor_type::f32, 0, doc.mass);
    add("evidence", tensor_type::i64, 4, doc.evidence);
  }

  bool empty() const noexcept { return tensors_.empty(); }

  /// Writes the file; its size and checksum.
  detail::shard_entry write(const std::string& path, std::int64_t number) const {
    const std::string preamble =
        flashmemory::detail::safetensors_preamble(path, tensors_,
                                                  {{"format", "flashmemory recordings"},
                                                   {"shard", std::to_string(number)},
                                                   {detail::follows_field, follows_}});
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(),
                                                                               XXH3_freeState);
    if (!hash) throw std::bad_alloc();
    XXH3_64bits_reset(hash.get());
    detail::shard_entry made;
    made.number = number;
    flashmemory::detail::atomic_file file(path);
    const auto put = [&](const void* data, std::size_t bytes) {
      file.write(data, bytes);
      XXH3_64bits_update(hash.get(), data, bytes);
      made.bytes += bytes;
    };
    put(preamble.data(), preamble.size());
    for (const column* c : columns_) c->each_block(put);
    file.commit();
    made.checksum = XXH3_64bits_digest(hash.get());
    return made;
  }

 private:
  void add(const std::string& name, tensor_type type, std::int64_t width, const column& from) {
    if (from.empty()) return;
    tensor_entry t;
    t.name = prefix_ + name;
    t.type = type;
    t.bytes = from.bytes();
    const std::size_t row = size_of(type) * static_cast<std::size_t>(std::max<std::int64_t>(width, 1));
    t.shape = {static_cast<std::int64_t>(from.bytes() / row)};
    if (width > 0) t.shape.push_back(width);
    tensors_.push_back(std::move(t));
    columns_.push_back(&from);
  }

  const recording_geometry& geometry_;
  dtype rows_;
  const std::string& follows_;
  std::string prefix_;
  std::vector<tensor_entry> tensors_;
  std::vector<const column*> columns_;
};

std::size_t bytes_of(waiting_document& doc) {
  std::size_t bytes = 0;
  doc.each_column([&](const column& c) { bytes += c.bytes(); });
  return bytes;
}

}  // namespace

void recorder::impl::write_out(bool finished_only) {
  if (::getpid() != owner)
    throw io_failure(
        status::io_error,
        formatted("{}: the recorder of '{}' belongs to the process that made it", folder, options.writer));
  detail::manifest next = listed;
  shard_builder shard(geometry, options.rows, in_force);
  std::vector<waiting_document*> written;
  for (auto& [number, doc] : documents) {
    if ((finished_only && !doc.finished) || bytes_of(doc) == 0) continue;
    shard.add_part(doc);
    written.push_back(&doc);
  }
  // Numbers of shards are used once: one that a failure kept from being listed may still have got its name.
  const std::int64_t number = listed.next_shard;
  const std::string path = detail::shard_path(folder, options.writer, number);
  if (!written.empty()) {
    listed.next_shard = next.next_shard = number + 1;
    orphans.push_back(path);
    next.shards.push_back(shard.write(path, number));
  }
  std::int64_t finished = 0;
  for (auto& [id, doc] : documents) {
    if (!doc.finished) continue;
    detail::manifest_document entry = doc.entry;
    if (std::find(written.begin(), written.end(), &doc) != written.end()) {
      entry.parts.push_back(number);
      entry.info.bytes += bytes_of(doc);
    }
    const auto at =
        std::lower_bound(next.documents.begin(), next.documents.end(), id,
                         [](const detail::manifest_document& d, std::int64_t n) { return d.number < n; });
    next.documents.insert(at, std::move(entry));
    ++finished;
  }
  if (written.empty() && finished == 0) return;
  next.next_document = next_document;
  detail::write_manifest(folder, next);
  in_force = detail::digest_of(next);

  if (!written.empty()) {
    orphans.pop_back();
    counters.bytes_written += next.shards.back().bytes;
  }
  for (const std::string& orphan : orphans) ::unlink(orphan.c_str());
  orphans.clear();
  listed = std::move(next);
  for (waiting_document* doc : written) {
    doc->entry.parts.push_back(number);
    doc->entry.info.bytes += bytes_of(*doc);
    doc->each_column([&](column& c) {
      waiting -= c.allocated();
      c.clear();
    });
  }
  for (auto at = documents.begin(); at != documents.end();)
    at = at->second.finished ? documents.erase(at) : std::next(at);
}

void recorder::impl::take(const std::vector<detail::pending_write>& writes) {
  const auto growth = [&] {
    std::size_t bytes = 0;
    for (const auto& w : writes) bytes += w.to->growth(w.bytes);
    return bytes;
  };
  if (waiting + growth() > options.memory_budget) {
    write_out(false);
    if (const std::size_t needed = growth(); needed > options.memory_budget)
      throw admission_error(
          status::budget_exceeded,
          formatted("recorder: {} bytes at once, the memory budget is {}", needed, options.memory_budget));
  }
  for (const auto& w : writes) {
    waiting -= w.to->allocated();
    try {
      w.to->reserve(w.bytes);
    } catch (...) {
      waiting += w.to->allocated();
      throw;
    }
    waiting += w.to->allocated();
  }
  for (const auto& w : writes) w.to->append(w.data, w.bytes);
  counters.peak_bytes = std::max(counters.peak_bytes, waiting);
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
