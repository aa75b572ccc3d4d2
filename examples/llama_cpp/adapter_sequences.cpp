// SPDX-License-Identifier: MIT
// What an adapter does with sequences between passes: rollback, forks, sessions, footprint.
#include <algorithm>
#include <cstring>
#include <flashmemory/io/output_file.hpp>
#include <fstream>

#include "adapter.hpp"

namespace llama_flashmemory {

namespace fm = flashmemory;

namespace {

std::string name_of(llama_seq_id sequence) { return "sequence " + std::to_string(sequence); }

/// Behind the session of a model with window layers: their K and V, as llama.cpp puts a sequence's state.
struct window_header {
  char magic[8] = {'f', 'm', 'w', 'i', 'n', 'd', 'o', 'w'};
  std::uint64_t bytes = 0;
  std::uint64_t digest = 0;  ///< FNV-1a
  std::int64_t from = 0;     ///< first token that is there
};

std::uint64_t digest_of(const std::uint8_t* data, std::size_t bytes) noexcept {
  std::uint64_t h = 14695981039346656037ull;
  for (std::size_t i = 0; i < bytes; ++i) h = (h ^ data[i]) * 1099511628211ull;
  return h;
}

}  // namespace

std::int64_t adapter::tokens(llama_seq_id sequence) const { return slot_of(sequence).tokens; }

fm::sequence_handle adapter::handle(llama_seq_id sequence) const { return slot_of(sequence).handle; }

adapter_footprint adapter::footprint(llama_seq_id sequence) const {
  adapter_footprint f;
  const slot& s = slot_of(sequence);
  if (s.tokens == 0) return f;
  fm::sequence_info info;
  require(store_->info(s.handle, &info), "info");
  f.tokens = info.tokens;
  f.chunks = geometry_.chunks_for(info.tokens);
  f.resident_chunks = info.resident_chunks;
  f.resident_bytes = info.slot_bytes;
  f.index_bytes = info.index_key_bytes + info.table_bytes;
  f.all_bytes = static_cast<std::size_t>(f.chunks) * fm::chunk_layout(geometry_).chunk_bytes();
  fm::selection_report report;
  if (selector_ && selector_->report(s.handle, &report) == fm::status::ok) f.refreshes = report.refreshes;
  return f;
}

/// Window layers keep what the newest token's window sees, and as much more as a rollback may take away.
void adapter::trim(llama_seq_id sequence) {
  if (facts_.window == 0) return;
  slot& s = slot_of(sequence);
  const std::int64_t keep = facts_.window - 1 + options_.max_rollback_tokens;
  if (s.tokens - keep <= s.window_from) return;
  s.window_from = static_cast<llama_pos>(s.tokens - keep);
  llama_memory_seq_rm(memory(), sequence, 0, s.window_from);
}

void adapter::seq_rm(llama_seq_id sequence, llama_pos first, llama_pos end) {
  slot& s = slot_of(sequence);
  first = std::max(first, 0);
  if (end >= 0 && end < s.tokens)
    throw fm::error(
        fm::status::unsupported,
        name_of(sequence) + ": tokens " + std::to_string(first) + " to " + std::to_string(end) + " of " +
            std::to_string(s.tokens) +
            " lie in the middle; only a suffix can be removed, chunks hold positions as they were");
  if (first >= s.tokens) return;
  if (first == 0) {
    if (selector_) selector_->detach(s.handle);
    require(store_->close(s.handle), "close");
    llama_memory_seq_rm(memory(), sequence, -1, -1);
    if (trace_) trace_->shortened(sequence, 0);
    s = {};
    return;
  }
  if (facts_.window > 0 && s.window_from > std::max(0, first - (facts_.window - 1)))
    throw fm::error(fm::status::unsupported,
                    name_of(sequence) + ": window layers see back to token " + std::to_string(s.window_from) +
                        " only, so that it cannot go back to " + std::to_string(first) + " of " +
                        std::to_string(s.tokens) + " tokens (max_rollback_tokens is " +
                        std::to_string(options_.max_rollback_tokens) + ")");
  require(store_->truncate(s.handle, first), "truncate");
  if (facts_.window > 0) llama_memory_seq_rm(memory(), sequence, first, -1);
  if (trace_) trace_->shortened(sequence, first);
  s.tokens = first;
}

void adapter::seq_cp(llama_seq_id from, llama_seq_id to, llama_pos first, llama_pos end) {
  const slot& parent = slot_of(from);
  slot& child = slot_of(to);
  if (first > 0 || (end >= 0 && end < parent.tokens))
    throw fm::error(fm::status::unsupported, name_of(from) + ": only the whole sequence can be copied");
  if (child.tokens > 0) throw fm::argument_error(fm::status::bad_argument, name_of(to) + " is not empty");
  if (parent.tokens == 0) return;
  slot made = parent;
  made.handle = store_->fork(parent.handle, sequence_options_);
  try {
    if (selector_) selector_->attach_fork(parent.handle, made.handle);
  } catch (...) {
    static_cast<void>(store_->close(made.handle));
    throw;
  }
  if (facts_.window > 0) llama_memory_seq_cp(memory(), from, to, -1, -1);
  if (trace_) trace_->copied(from, to, made.handle);
  child = made;
}

void adapter::seq_add(llama_seq_id sequence, llama_pos, llama_pos, llama_pos) {
  throw fm::error(fm::status::unsupported,
                  name_of(sequence) + ": a context shift would rotate keys that the store holds and shares");
}

void adapter::save(llama_seq_id sequence, const std::string& path) const {
  const slot& s = slot_of(sequence);
  if (s.tokens == 0) throw fm::error(fm::status::unknown_sequence, name_of(sequence) + " is empty");
  if (s.in_prompt)
    throw fm::error(fm::status::out_of_order,
                    name_of(sequence) + " is in the middle of a prompt; save it after its end");
  fm::session_options session;
  session.model_tag = options_.model_tag;
  if (facts_.window == 0) return fm::save_session(*store_, s.handle, path, selector_.get(), session);
  // What full layers hold is small in such a model: it is put together in memory, and the file is written as one.
  std::string content;
  fm::byte_sink sink;
  sink.context = &content;
  sink.write = [](void* to, const void* data, std::size_t bytes) {
    try {
      static_cast<std::string*>(to)->append(static_cast<const char*>(data), bytes);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  };
  fm::save_session(*store_, s.handle, sink, selector_.get(), session);
  std::vector<std::uint8_t> state(llama_state_seq_get_size(context(), sequence));
  window_header header;
  header.bytes = llama_state_seq_get_data(context(), state.data(), state.size(), sequence);
  if (header.bytes == 0)
    throw fm::error(fm::status::unsupported, "llama.cpp gave no state of " + name_of(sequence));
  header.digest = digest_of(state.data(), header.bytes);
  header.from = s.window_from;
  content.append(reinterpret_cast<const char*>(&header), sizeof header);
  content.append(reinterpret_cast<const char*>(state.data()), header.bytes);
  fm::write_file(path, content);
}

void adapter::load(llama_seq_id sequence, const std::string& path) {
  slot& s = slot_of(sequence);
  if (s.tokens > 0) throw fm::argument_error(fm::status::bad_argument, name_of(sequence) + " is not empty");
  fm::session_options session;
  session.model_tag = options_.model_tag;
  slot made;
  made.in_prompt = false;
  if (facts_.window == 0) {
    made.handle = fm::load_session(*store_, path, selector_.get(), sequence_options_, session);
  } else {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw fm::io_failure(fm::status::io_error, path + ": cannot be read");
    fm::byte_source source;
    source.context = &file;
    source.read = [](void* from, void* data, std::size_t bytes) -> std::int64_t {
      auto& in = *static_cast<std::ifstream*>(from);
      in.read(static_cast<char*>(data), static_cast<std::streamsize>(bytes));
      return in.bad() ? -1 : in.gcount();
    };
    made.handle = fm::load_session(*store_, source, selector_.get(), sequence_options_, session);
    try {
      window_header header;
      const window_header expected;
      const auto damaged = [&](const char* what) {
        throw fm::format_error(fm::status::corrupt_chunk, path + ": " + what);
      };
      if (!file.read(reinterpret_cast<char*>(&header), sizeof header) ||
          std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0)
        damaged("the window layers' part is missing");
      // What llama.cpp would write for the largest window bounds what is believed.
      const std::uint64_t most = std::uint64_t(llama_state_get_size(context())) + (64u << 20);
      if (header.bytes > most) damaged("the window layers' part claims more than the context holds");
      std::vector<std::uint8_t> state(header.bytes);
      if (!file.read(reinterpret_cast<char*>(state.data()), static_cast<std::streamsize>(state.size())))
        damaged("the window layers' part is cut");
      if (digest_of(state.data(), state.size()) != header.digest)
        damaged("the window layers' part is damaged");
      if (llama_state_seq_set_data(context(), state.data(), state.size(), sequence) == 0)
        damaged("llama.cpp refuses the window layers' part");
      made.window_from = static_cast<llama_pos>(header.from);
    } catch (...) {
      if (selector_) selector_->detach(made.handle);
      static_cast<void>(store_->close(made.handle));
      throw;
    }
  }
  fm::sequence_info info;
  require(store_->info(made.handle, &info), "info");
  made.tokens = info.tokens;
  s = made;
}

}  // namespace llama_flashmemory
