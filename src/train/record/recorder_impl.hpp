// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/train/record/recorder.hpp>
#include <map>
#include <string>
#include <vector>

#include "src/train/record/column.hpp"
#include "src/train/record/key_pool.hpp"
#include "src/train/record/manifest.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Who makes the keys of a stream.
enum class key_feed { none, hidden, engine };

/// A document that is not in the manifest yet: what waits of it, and where what was written lies.
struct waiting_document {
  manifest_document entry;  ///< counts include what waits; parts are those written
  bool finished = false;

  column positions;             ///< i64
  std::vector<column> queries;  ///< per tap
  std::vector<column> keys;     ///< per stream
  column attended, items;       ///< per token: i64 position, i64 number of items
  column layer, head, entries, mass;
  column evidence;  ///< i64 x 4, filled when it is finished

  std::int64_t last_query = -1;
  std::int64_t last_attended = -1;
  std::vector<evidence_range> needs;
  std::vector<std::int64_t> key_count;  ///< per stream, written ones included
  std::vector<key_feed> feeds;          ///< per stream
  std::map<std::int32_t, key_pool> pools;

  /// Calls f(column&) for all of them.
  template <class F>
  void each_column(F&& f) {
    f(positions);
    for (column& c : queries) f(c);
    for (column& c : keys) f(c);
    for (column* c : {&attended, &items, &layer, &head, &entries, &mass, &evidence}) f(*c);
  }
};

/// Bytes on their way into a column. A list of them names no column twice.
struct pending_write {
  column* to;
  const void* data;
  std::size_t bytes;
};

/// Keeps others from writing under the same name, until it goes.
class folder_lock {
 public:
  folder_lock(const std::string& folder, const std::string& writer);
  ~folder_lock();
  folder_lock(const folder_lock&) = delete;
  folder_lock& operator=(const folder_lock&) = delete;

 private:
  int descriptor_ = -1;
};

/// The manifest this writer left, or a new one; what a crash left behind is removed. \throws as recorder's constructor
manifest resume_manifest(const std::string& folder, const recording_geometry& geometry,
                         const recorder_options& options);

/// Replaces the writer's manifest as a whole. \throws io_failure
void write_manifest(const std::string& folder, const manifest& m);

}  // namespace detail

struct recorder::impl {
  impl(const std::string& path, const recording_geometry& g, const recorder_options& o);

  detail::waiting_document& find(recording_id id);
  detail::waiting_document& find_open(recording_id id);

  /// Takes all of `writes`, writing out what waits first if they do not fit the budget.
  void take(const std::vector<detail::pending_write>& writes);

  /// Writes a shard of what waits of finished documents, or of all, and lists them.
  void write_out(bool finished_only);

  std::string folder;
  recording_geometry geometry;
  recorder_options options;
  detail::folder_lock lock;
  detail::manifest listed;
  std::string in_force;  ///< digest of the manifest as it lies in the folder
  std::map<std::int64_t, detail::waiting_document> documents;
  std::vector<std::string> orphans;  ///< shards that a failure kept from being listed
  std::int64_t next_document = 0;
  int owner;                ///< the process; a forked child's copy writes nothing
  std::size_t waiting = 0;  ///< bytes that columns take
  recorder_counters counters;
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
