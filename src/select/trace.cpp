// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/select/trace.hpp>

#include "src/core/json.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

constexpr const char* reasons[] = {"none", "warm_start", "interval", "requested", "prompt_end", "prompt"};
constexpr const char* stages[] = {"normal", "widened", "everything"};
constexpr std::string_view first_bytes = "{\"flashmemory_trace\":";

using line = fmt::memory_buffer;

/// As a JSON string, whatever its bytes.
std::string quoted(std::string_view text) {
  return json_text(nlohmann::json(std::string(text)), nlohmann::json::error_handler_t::replace);
}

void begin(line& out, const char* event, sequence_handle sequence) {
  fmt::format_to(std::back_inserter(out), R"({{"event":"{}","sequence":{},"generation":{})", event,
                 sequence.index, sequence.generation);
}

void add(line& out, const char* name, std::int64_t value) {
  fmt::format_to(std::back_inserter(out), R"(,"{}":{})", name, value);
}

void add_text(line& out, const char* name, std::string_view value) {
  fmt::format_to(std::back_inserter(out), R"(,"{}":{})", name, quoted(value));
}

void add_ids(line& out, const char* name, view<const chunk_id, 1> ids) {
  fmt::format_to(std::back_inserter(out), R"(,"{}":[)", name);
  for (std::int64_t i = 0; i < ids.shape[0]; ++i)
    fmt::format_to(std::back_inserter(out), "{}{}", i ? "," : "", ids(i));
  out.push_back(']');
}

/// Four digits are more than a picture shows.
void add_number(line& out, float value) {
  if (std::isfinite(value))
    fmt::format_to(std::back_inserter(out), "{:.4g}", value);
  else
    fmt::format_to(std::back_inserter(out), "null");
}

}  // namespace

struct selection_trace::impl {
  const chunk_reader& store;
  byte_sink sink;
  std::FILE* file = nullptr;
  std::int64_t lines = 0;
  bool failed = false;

  explicit impl(const chunk_reader& s) noexcept : store(s) {}
  ~impl() {
    if (file) std::fclose(file);
  }
  impl(const impl&) = delete;
  impl& operator=(const impl&) = delete;

  void open(const std::string& path);
  void head(std::string_view title);
  void write(line& out);
  void note(const refresh_event& event);

  /// A trace is not worth a run: whatever goes wrong ends the trace.
  template <class Fill>
  void event(Fill&& fill) noexcept {
    if (failed) return;
    try {
      line out;
      fill(out);
      write(out);
    } catch (...) {
      failed = true;
    }
  }
};

void selection_trace::impl::open(const std::string& path) {
  const auto fail = [&] {
    throw io_failure(status::io_error, fmt::format("{}: {}", path, std::strerror(errno)));
  };
  // Text of prompts may come to stand in it, which is nobody else's to read.
  const bool special = ::access(path.c_str(), F_OK) == 0 && !std::filesystem::is_regular_file(path);
  const int handle =
      ::open(path.c_str(), (special ? O_WRONLY | O_NONBLOCK : O_RDWR | O_CREAT) | O_CLOEXEC, 0600);
  if (handle < 0) fail();
  file = ::fdopen(handle, "w");
  if (!file) {
    ::close(handle);
    fail();
  }
  if (!special) {
    char found[first_bytes.size()];
    const ssize_t bytes = ::pread(handle, found, sizeof(found), 0);
    if (bytes < 0) fail();
    if (bytes > 0 && std::string_view(found, static_cast<std::size_t>(bytes)) != first_bytes)
      throw format_error(status::bad_argument,
                         fmt::format("{}: holds something that is not a trace, and is not replaced", path));
    if (::ftruncate(handle, 0) != 0) fail();
  }
  sink = {file, [](void* to, const void* data, std::size_t count) {
            auto* const out = static_cast<std::FILE*>(to);
            return std::fwrite(data, 1, count, out) == count && std::fflush(out) == 0;
          }};
}

void selection_trace::impl::head(std::string_view title) {
  const kv_geometry& g = store.geometry();
  line out;
  fmt::format_to(std::back_inserter(out), R"({}1,"title":{},"tokens_per_chunk":{},"layers":{})", first_bytes,
                 quoted(title), g.tokens_per_chunk(), g.layers);
  write(out);
  if (failed) throw io_failure(status::io_error, "a trace's first line could not be written");
}

void selection_trace::impl::write(line& out) {
  out.push_back('}');
  out.push_back('\n');
  if (sink.write(sink.context, out.data(), out.size()))
    ++lines;
  else
    failed = true;
}

void selection_trace::impl::note(const refresh_event& e) {
  const selection_report& r = *e.report;
  switch (e.kind) {
    case refresh_event_kind::chosen:
      return event([&](line& out) {
        begin(out, "chosen", e.sequence);
        add_text(out, "reason", reasons[static_cast<std::size_t>(r.reason)]);
        add(out, "position", r.position);
        add(out, "complete_chunks", r.complete_chunks);
        add(out, "budget", r.budget);
        add_ids(out, "wanted", e.wanted);
        if (e.scores.shape[0] == 0) return;
        fmt::format_to(std::back_inserter(out), R"(,"scores":[)");
        for (std::int64_t i = 0; i < e.scores.shape[0]; ++i) {
          if (i) out.push_back(',');
          add_number(out, e.scores(i));
        }
        out.push_back(']');
      });
    case refresh_event_kind::in_force:
      return event([&](line& out) {
        begin(out, "in_force", e.sequence);
        add(out, "position", r.position);
        add(out, "staleness", r.staleness);
        add_text(out, "stage", stages[static_cast<std::size_t>(r.stage)]);
        add(out, "recalled", r.recall.recalled);
        add(out, "bytes", r.recall.bytes);
        add(out, "unreadable", r.recall.unreadable);
        fmt::format_to(std::back_inserter(out), R"(,"score_us":{:.1f},"recall_us":{:.1f})",
                       r.score_seconds * 1e6, r.recall_seconds * 1e6);
        resident_set set;
        sequence_info info;
        if (store.info(e.sequence, &info) == status::ok) add(out, "tokens", info.tokens);
        if (store.resident(e.sequence, 0, &set) != status::ok) return;
        view<const chunk_id, 1> ids(set.count ? &set.chunks[0].id : nullptr, set.count);
        ids.stride[0] = sizeof(resident_chunk) / sizeof(chunk_id);
        add_ids(out, "resident", ids);
      });
    case refresh_event_kind::given_up:
      return event([&](line& out) {
        begin(out, "given_up", e.sequence);
        add(out, "position", r.position);
      });
  }
}

selection_trace::selection_trace(const std::string& path, const chunk_reader& store, std::string_view title)
    : impl_(std::make_unique<impl>(store)) {
  impl_->open(path);
  impl_->head(title);
}

selection_trace::selection_trace(const byte_sink& sink, const chunk_reader& store, std::string_view title)
    : impl_(std::make_unique<impl>(store)) {
  impl_->sink = sink;
  impl_->head(title);
}

selection_trace::~selection_trace() = default;

refresh_event_hook selection_trace::hook() noexcept {
  return {impl_.get(), [](void* self, const refresh_event& event) { static_cast<impl*>(self)->note(event); }};
}

void selection_trace::sequence_name(sequence_handle sequence, std::string_view name) noexcept {
  impl_->event([&](line& out) {
    begin(out, "name", sequence);
    add_text(out, "text", name);
  });
}

void selection_trace::chunk_text(sequence_handle sequence, std::int64_t chunk,
                                 std::string_view text) noexcept {
  impl_->event([&](line& out) {
    begin(out, "chunk", sequence);
    add(out, "chunk", chunk);
    add_text(out, "text", text);
  });
}

void selection_trace::token_text(sequence_handle sequence, std::int64_t position,
                                 std::string_view text) noexcept {
  impl_->event([&](line& out) {
    begin(out, "token", sequence);
    add(out, "position", position);
    add_text(out, "text", text);
  });
}

void selection_trace::attention_mass(sequence_handle sequence, std::int64_t position,
                                     view<const float, 1> mass) noexcept {
  impl_->event([&](line& out) {
    begin(out, "mass", sequence);
    add(out, "position", position);
    fmt::format_to(std::back_inserter(out), R"(,"mass":[)");
    for (std::int64_t i = 0; i < mass.shape[0]; ++i) {
      if (i) out.push_back(',');
      add_number(out, mass(i));
    }
    out.push_back(']');
  });
}

bool selection_trace::failed() const noexcept { return impl_->failed; }
std::int64_t selection_trace::lines() const noexcept { return impl_->lines; }

}  // namespace v0
}  // namespace flashmemory
