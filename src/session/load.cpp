// SPDX-License-Identifier: MIT
#include "src/session/load.hpp"

#include <algorithm>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <vector>

#include "src/core/format.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/select/selector_impl.hpp"
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
  loader(detail::section_reader& in, chunk_store& store) : in_(in), store_(store) {}

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

  /// Keys mean something to the encoder that made them alone.
  void check_encoder(const detail::session_header& h, const selector& select) const {
    const indexer_taps& index = select.taps();
    if (h.state_bytes == 0 || h.encoder == index.index_key_fingerprint) return;
    const auto text = [](std::uint64_t print, std::string_view name) {
      return print == 0 ? formatted("no encoder ('{}')", detail::printable(name))
                        : formatted("encoder {:016x} ('{}')", print, detail::printable(name));
    };
    reject(formatted("its index keys were made by {}, the selector has {}", text(h.encoder, h.encoder_name),
                     text(index.index_key_fingerprint, index.name)));
  }

  std::vector<chunk_id> resident(const detail::session_header& h) const {
    std::vector<chunk_id> ids(static_cast<std::size_t>(h.resident));
    in_.section(ids.data(), ids.size() * sizeof(chunk_id), "the resident set");
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] < 0 || ids[i] >= h.complete_chunks() || (i > 0 && ids[i] <= ids[i - 1]))
        reject(formatted("resident chunk {} is out of place", ids[i]));
    return ids;
  }

  void chunks(const detail::session_header& h, sequence_handle sequence) const {
    std::vector<std::byte> chunk(chunk_layout(h.geometry).chunk_bytes());
    for (std::int64_t left = h.tokens; left > 0; left -= h.geometry.tokens_per_chunk()) {
      in_.section(chunk.data(), chunk.size(), "a chunk");
      require(store_.append_chunk(sequence, view<const std::byte, 1>(chunk.data(), chunk.size()),
                                  std::min(left, h.geometry.tokens_per_chunk())),
              "append_chunk");
    }
  }

  void keys(const detail::session_header& h, sequence_handle sequence) const {
    constexpr std::int64_t at_once = 1024;
    const std::int64_t key_bytes = h.geometry.index_keys.bytes();
    std::vector<std::byte> rows(static_cast<std::size_t>(at_once * key_bytes));
    for (std::size_t s = 0; s < h.keys.size(); ++s) {
      in_.begin();
      for (std::int64_t key = 0; key < h.keys[s]; key += at_once) {
        const std::int64_t count = std::min(at_once, h.keys[s] - key);
        in_.read(rows.data(), static_cast<std::size_t>(count * key_bytes), "index keys");
        require(store_.append_index_keys(sequence, static_cast<std::int32_t>(s), key,
                                         view<const std::byte, 2>(rows.data(), count, key_bytes),
                                         stream_ref::host()),
                "append_index_keys");
      }
      in_.end("index keys");
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

  void state(const detail::session_header& h, sequence_handle sequence, selector* select,
             const selection_policy* policy) const {
    constexpr const char* field = "the selector's state";
    if (select == nullptr || h.state_bytes == 0) {
      in_.skip(static_cast<std::uint64_t>(h.state_bytes), field);
      if (select != nullptr) select->attach(sequence, policy);
      return;
    }
    in_.begin();
    detail::selector_access::load_state(*select, sequence, in_, static_cast<std::uint64_t>(h.state_bytes),
                                        policy);
    in_.end(field);
  }

 private:
  detail::section_reader& in_;
  chunk_store& store_;
};

}  // namespace

sequence_handle detail::load_session_from(input& from, chunk_store& store, selector* select,
                                          const sequence_options& options, const session_options& session) {
  if (select != nullptr && &select->store() != &store)
    throw argument_error(status::bad_argument, "load_session: the selector serves another store");
  require_keys_in_host_memory(store, "loading");
  section_reader in(from);
  const loader load(in, store);
  const session_header h = read_header(in, store.geometry(), session.model_tag);
  if (select != nullptr) load.check_encoder(h, *select);
  if (options.max_tokens != 0 && options.max_tokens < h.tokens)
    throw argument_error(status::bad_argument, formatted("{}: holds {} tokens, options.max_tokens is {}",
                                                         in.name(), h.tokens, options.max_tokens));

  // Opened before anything else is read: what the store has admitted bounds everything that follows.
  const bool saved = options.max_tokens == 0;
  sequence_handle sequence;
  try {
    sequence = store.open(saved ? h.options : options);
  } catch (const argument_error& e) {
    if (!saved) throw;
    load.reject(formatted("the saved options cannot work: {}", e.what()));
  }
  unfinished guard(store, select, sequence);
  const std::vector<chunk_id> resident = load.resident(h);
  load.chunks(h, sequence);
  load.keys(h, sequence);
  load.recall(resident, sequence);
  load.state(h, sequence, select, session.policy);
  in.finish();
  return guard.finish();
}

sequence_handle load_session(chunk_store& store, const std::string& path, selector* select,
                             const sequence_options& options, const session_options& session) {
  detail::file_input in(path);
  return detail::load_session_from(in, store, select, options, session);
}

sequence_handle load_session(chunk_store& store, const byte_source& source, selector* select,
                             const sequence_options& options, const session_options& session) {
  detail::source_input in(source);
  return detail::load_session_from(in, store, select, options, session);
}

}  // namespace v0
}  // namespace flashmemory
