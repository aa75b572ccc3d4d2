// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <flashmemory/cuda/chunk_tables.hpp>
#include <flashmemory/error.hpp>
#include <limits>

#include "cuda/core/blocks.hpp"
#include "cuda/core/error.hpp"
#include "cuda/step/table_words.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace {

constexpr std::int64_t row_words = sizeof(chunk_row) / sizeof(std::uint64_t);
static_assert(sizeof(chunk_row) == 16 && offsetof(chunk_row, entries) == 8, "rows are written word by word");

const chunk_tables_options& checked(const chunk_tables_options& o) {
  const auto require = [](bool holds, const char* field, const char* wanted, std::int64_t found) {
    if (!holds)
      throw argument_error(status::bad_argument, fmt::format("chunk_tables_options::{} must be {}, it is {}",
                                                             field, wanted, found));
  };
  constexpr std::int64_t most = std::int64_t{1} << 31;
  require(o.rows >= 1 && o.rows <= 65536, "rows", "in [1, 65536]", o.rows);
  require(o.max_chunks >= 1 && o.max_chunks < most / o.rows, "max_chunks", "at least 1, below 2^31 / rows",
          o.max_chunks);
  require(o.staging_steps >= 2 && o.staging_steps <= 64, "staging_steps", "in [2, 64]", o.staging_steps);
  return o;
}

}  // namespace

chunk_tables::chunk_tables(const context& device, const chunk_tables_options& options)
    : chunk_tables(device, options, 0) {}

chunk_tables::chunk_tables(const context& device, const chunk_tables_options& options,
                           std::int64_t more_words)
    : device_(device), options_(checked(options)) {
  shown_.resize(static_cast<std::size_t>(options_.rows));
  const detail::device_guard guard(device_.ordinal);
  words_ = std::make_unique<detail::table_words>(
      options_.rows * (row_words + options_.max_chunks) + more_words, device_.memory, device_.pinned,
      options_.staging_steps, device_.deadline);
  fault f;
  if (words_->begin(&f) != status::ok) throw error(f.code, describe(f));
  for (std::int64_t r = 0; r < options_.rows; ++r)
    words_->set(r * row_words, lists() + r * options_.max_chunks);
  if (words_->send(nullptr, &f) != status::ok) throw error(f.code, describe(f));
  detail::ask(cudaDeviceSynchronize(), "device tables");
}

chunk_tables::~chunk_tables() = default;

const chunk_tables_options& chunk_tables::options() const noexcept { return options_; }

view<const chunk_row, 1> chunk_tables::rows() const noexcept {
  return view<const chunk_row, 1>(reinterpret_cast<const chunk_row*>(words_->device()), options_.rows);
}

const std::byte* const* chunk_tables::lists() const noexcept {
  return reinterpret_cast<const std::byte* const*>(words_->device() + options_.rows * row_words);
}

std::size_t chunk_tables::device_bytes() const noexcept { return words_->device_bytes(); }
std::size_t chunk_tables::pinned_bytes() const noexcept { return words_->pinned_bytes(); }
std::int64_t chunk_tables::bytes_sent() const noexcept { return words_->bytes_sent(); }

/// Sets the words of all rows; all or none.
status chunk_tables::set_rows(const chunk_reader& reader, batch items, std::int32_t layer,
                              fault* error) noexcept {
  const auto forget = [&](status code) {
    for (shown_row& row : shown_) row.version = 0;
    return code;
  };
  for (std::int64_t i = 0; i < options_.rows; ++i) {
    shown_row& row = shown_[static_cast<std::size_t>(i)];
    const bool empty = i >= items.shape[0] || items(i).empty();
    const sequence_handle sequence = empty ? sequence_handle{} : items(i).sequence;
    const std::uint64_t known = sequence == row.sequence ? row.version : 0;
    row.sequence = sequence;
    row.version = 0;
    row.unchanged = false;
    row.set = {};
    if (empty) continue;
    if (const status code = reader.resident(sequence, layer, &row.set, known); code != status::ok) {
      if (error != nullptr) *error = reader.last_fault();
      return forget(code);
    }
    row.version = row.set.version;
    row.unchanged = known != 0 && known == row.version;
    if (row.set.count <= options_.max_chunks) continue;
    const status code =
        detail::refuse(status::budget_exceeded, "max_chunks", options_.max_chunks, row.set.count, error);
    if (error != nullptr) error->sequence = sequence.index;
    return forget(code);
  }
  const std::int64_t first_list = options_.rows * row_words;
  const std::int64_t each = reader.geometry().entries_per_chunk;
  for (std::int64_t r = 0; r < options_.rows; ++r) {
    const shown_row& row = shown_[static_cast<std::size_t>(r)];
    std::int64_t entries = 0;
    for (std::int64_t c = 0; !row.unchanged && c < row.set.count; ++c)
      words_->set(first_list + r * options_.max_chunks + c, row.set.chunks[c].data);
    if (row.set.count > 0) entries = (row.set.count - 1) * each + row.set.chunks[row.set.count - 1].entries;
    words_->set(r * row_words + 1, static_cast<std::uint64_t>(entries));
  }
  return status::ok;
}

status chunk_tables::update(const chunk_reader& reader, batch items, std::int32_t layer, stream_ref stream,
                            fault* error) noexcept {
  fault why;
  const status code = [&] {
    if (stream.is_host())
      return detail::refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, &why);
    if (items.shape[0] < 0 || items.shape[0] > options_.rows)
      return detail::refuse(status::bad_shape, "items", options_.rows, items.shape[0], &why);
    if (items.shape[0] > 0 && items.data == nullptr)
      return detail::refuse(status::null_data, "items", -1, -1, &why);
    const detail::device_guard guard(device_.ordinal);
    if (why = reader.order(stream); why.code != status::ok) return why.code;
    status found = words_->begin(&why);
    if (found == status::ok) found = set_rows(reader, items, layer, &why);
    if (found == status::ok) found = words_->send(stream.cuda(), &why);
    return found;
  }();
  if (code == status::ok) return code;
  reader.note(why);
  if (error != nullptr) *error = why;
  return code;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
