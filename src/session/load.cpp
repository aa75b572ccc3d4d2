// SPDX-License-Identifier: MIT
#include "src/session/load.hpp"

#include <algorithm>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <vector>

#include "src/core/format.hpp"
#include "src/session/session_header.hpp"

namespace flashmemory {
inline namespace v0 {

namespace {

/// Closes the sequence, and lets the selector forget it, unless everything went well.
class unfinished {
 public:
  unfinished(chunk_store& store, selector* select, sequence_handle sequence)
      : store_(store), select_(select), sequence_(sequence) {}
  ~unfinished() {
    if (finished_) return;
    if (select_ != nullptr) select_->detach(sequence_);
    static_cast<void>(store_.close(sequence_));
  }
  unfinished(const unfinished&) = delete;
  unfinished& operator=(const unfinished&) = delete;
  sequence_handle finish() noexcept {
    finished_ = true;
    return sequence_;
  }

 private:
  chunk_store& store_;
  selector* select_;
  sequence_handle sequence_;
  bool finished_ = false;
};

class loader {
 public:
  loader(detail::byte_source& in, chunk_store& store) : in_(in), store_(store) {}

  [[noreturn]] void reject(const std::string& what) const {
    throw format_error(status::bad_argument, formatted("{}: {}", in_.name(), what));
  }

  /// What the store says about what the file holds. Damage is the file's, a failing medium is not.
  void require(status code, const char* what) const {
    if (code == status::ok) return;
    fault f = store_.last_fault();
    if (f.code != code) f = fault{};
    f.code = code;
    const std::string message = formatted("{}: {}: {}", in_.name(), what, describe(f));
    if (code == status::io_error) throw io_failure(code, message);
    if (code == status::bad_shape || code == status::bad_argument || code == status::out_of_range ||
        code == status::out_of_order || code == status::not_finite || code == status::sequence_full)
      throw format_error(code, message);
    throw error(code, message);
  }

  void section(void* data, std::size_t bytes, const char* field) const {
    in_.read(data, bytes, field);
    std::uint64_t checksum;
    in_.read(&checksum, sizeof checksum, field);
    if (detail::section_checksum(data, bytes) != checksum)
      reject(formatted("the checksum of {} does not match", field));
  }

  std::vector<chunk_id> resident(const detail::session_header& h) const {
    std::vector<chunk_id> ids(static_cast<std::size_t>(h.resident));
    section(ids.data(), ids.size() * sizeof(chunk_id), "the resident set");
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] < 0 || ids[i] >= h.complete_chunks() || (i > 0 && ids[i] <= ids[i - 1]))
        reject(formatted("resident chunk {} is out of place", ids[i]));
    return ids;
  }

  void chunks(const detail::session_header& h, sequence_handle sequence) const {
    std::vector<std::byte> chunk(chunk_layout(h.geometry).chunk_bytes());
    for (std::int64_t left = h.tokens; left > 0; left -= h.geometry.tokens_per_chunk()) {
      section(chunk.data(), chunk.size(), "a chunk");
      require(store_.append_chunk(sequence, view<const std::byte, 1>(chunk.data(), chunk.size()),
                                  std::min(left, h.geometry.tokens_per_chunk())),
              "append_chunk");
    }
  }

  void recall(const std::vector<chunk_id>& ids, sequence_handle sequence) const {
    // A store may move only so many chunks at a time; go on as long as that brings some in.
    std::int64_t refused = static_cast<std::int64_t>(ids.size()) + 1;
    for (;;) {
      recall_report report;
      require(store_.recall(sequence, view<const chunk_id, 1>(ids.data(), ids.size()), &report,
                            stream_ref::host()),
              "recall");
      if (report.refused == 0 || report.refused >= refused) return;
      refused = report.refused;
    }
  }

 private:
  detail::byte_source& in_;
  chunk_store& store_;
};

}  // namespace

sequence_handle detail::load_session_from(byte_source& in, chunk_store& store, selector* select,
                                          const sequence_options& options) {
  const loader load(in, store);
  const session_header h = read_header(in, store.geometry());
  const std::vector<chunk_id> resident = load.resident(h);
  std::vector<std::byte> state(static_cast<std::size_t>(h.state_bytes));
  load.section(state.data(), state.size(), "the selector's state");
  if (options.max_tokens != 0 && options.max_tokens < h.tokens)
    throw argument_error(status::bad_argument, formatted("{}: holds {} tokens, options.max_tokens is {}",
                                                         in.name(), h.tokens, options.max_tokens));
  std::vector<std::vector<std::byte>> keys(h.keys.size());
  for (std::size_t s = 0; s < keys.size(); ++s) {
    keys[s].resize(static_cast<std::size_t>(h.keys[s]) *
                   static_cast<std::size_t>(h.geometry.index_keys.bytes()));
    load.section(keys[s].data(), keys[s].size(), "index keys");
  }

  const bool saved = options.max_tokens == 0;
  sequence_handle sequence;
  try {
    sequence = store.open(saved ? h.options : options);
  } catch (const argument_error& e) {
    if (!saved) throw;
    load.reject(formatted("the saved options cannot work: {}", e.what()));
  }
  unfinished guard(store, select, sequence);
  load.chunks(h, sequence);
  for (std::size_t s = 0; s < keys.size(); ++s)
    load.require(store.append_index_keys(
                     sequence, static_cast<std::int32_t>(s), 0,
                     view<const std::byte, 2>(keys[s].data(), h.keys[s], h.geometry.index_keys.bytes()),
                     stream_ref::host()),
                 "append_index_keys");
  load.recall(resident, sequence);
  if (select != nullptr) {
    if (state.empty())
      select->attach(sequence);
    else
      select->load_state(sequence, state.data(), state.size());
  }
  return guard.finish();
}

sequence_handle load_session(chunk_store& store, const std::string& path, selector* select,
                             const sequence_options& options) {
  if (select != nullptr && &select->store() != &store)
    throw argument_error(status::bad_argument, "load_session: the selector serves another store");
  detail::file_source in(path);
  return detail::load_session_from(in, store, select, options);
}

}  // namespace v0
}  // namespace flashmemory
