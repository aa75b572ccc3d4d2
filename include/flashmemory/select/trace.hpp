// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/io/byte_stream.hpp>
#include <flashmemory/select/refresh_events.hpp>
#include <flashmemory/store/chunk_reader.hpp>
#include <memory>
#include <string>
#include <string_view>

namespace flashmemory {
inline namespace v0 {

/// Writes down what a selector does, as JSON lines, one event a line (docs/tracing.md has the fields): what was chosen for
/// which scores, what came into force, and what the engine adds: attention that was paid, text. A viewer turns such a file into a page:
/// examples/trace_view.
///
///     selection_trace trace("run.jsonl", store, "my engine, 8K");
///     selector_options options;
///     options.events = trace.hook();
///
/// It must outlive the selector that it listens to, and the store must outlive it. One thread at a time. A disk that fills
/// up ends the trace, not the run: calls then do nothing, and failed() says so.
class FLASHMEMORY_API selection_trace {
 public:
  /// To a file, which grows line by line and is readable at any time. A trace that was there before is replaced.
  /// \throws io_failure if it cannot be written; format_error naming `path` for a file that is not empty and not a trace
  selection_trace(const std::string& path, const chunk_reader& store, std::string_view title);
  /// To a sink, one line a call.
  /// \throws io_failure if it does not take the first line
  selection_trace(const byte_sink& sink, const chunk_reader& store, std::string_view title);
  ~selection_trace();
  selection_trace(const selection_trace&) = delete;
  selection_trace& operator=(const selection_trace&) = delete;

  /// For selector_options::events.
  refresh_event_hook hook() noexcept;

  /// What a sequence is called where it is shown, e.g. a request's id and its policy.
  void sequence_name(sequence_handle sequence, std::string_view name) noexcept;
  /// What the chunk holds, for whoever points at it. Text that is not UTF-8 is mended.
  void chunk_text(sequence_handle sequence, std::int64_t chunk, std::string_view text) noexcept;
  /// The token at `position`, as text.
  void token_text(sequence_handle sequence, std::int64_t position, std::string_view text) noexcept;
  /// How much attention the query at `position` paid to each chunk, in [0, 1].
  /// \param mass  [chunks], e.g. of chunk_attention_mass()
  void attention_mass(sequence_handle sequence, std::int64_t position, view<const float, 1> mass) noexcept;

  /// Whether a line could not be written, after which none is.
  bool failed() const noexcept;
  /// Lines so far.
  std::int64_t lines() const noexcept;

 private:
  struct FLASHMEMORY_LOCAL impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace v0
}  // namespace flashmemory
