// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>

#include "cuda/core/error.hpp"
#include "cuda/step/decode_step_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

using detail::append_target_words;

namespace {

/// With the capacities that follow from the store.
decode_step_options checked(const tiered_chunk_store& store, selector* select, decode_step_options o) {
  const auto require = [](bool holds, const char* field, const char* wanted, std::int64_t found) {
    if (!holds)
      throw argument_error(status::bad_argument,
                           fmt::format("decode_step_options::{} must be {}, it is {}", field, wanted, found));
  };
  require(o.rows >= 1 && o.rows <= 4096, "rows", "in [1, 4096]", o.rows);
  require(o.tokens >= 1 && o.tokens <= 8, "tokens", "in [1, 8]", o.tokens);
  require(o.query_heads >= 0, "query_heads", "0 or the query heads", o.query_heads);
  require(o.staging_steps >= 2 && o.staging_steps <= 64, "staging_steps", "in [2, 64]", o.staging_steps);
  if (o.max_chunks == 0) {
    o.max_chunks = flashmemory::detail::largest_quota(store);
    require(o.max_chunks > 0, "max_chunks", "positive, or the store have an open sequence to take it from",
            0);
  }
  if (select == nullptr) return o;
  if (&select->store() != &store)
    throw argument_error(status::bad_argument, "decode_step: the selector serves another store");
  const auto& level1 = flashmemory::detail::selector_access::scoring(*select);
  if (level1.device() == nullptr)
    throw argument_error(status::unsupported,
                         "decode_step: the selector was not made by cuda::make_selector()");
  require(o.tokens <= static_cast<const detail::device_level1&>(level1).most_step_tokens(), "tokens",
          "at most the selector's max_rollback_tokens + 1", o.tokens);
  return o;
}

chunk_tables_options tables_for(const decode_step_options& o) {
  chunk_tables_options t;
  t.rows = o.rows;
  t.max_chunks = o.max_chunks;
  t.staging_steps = o.staging_steps;
  return t;
}

std::int32_t most_completed(std::int32_t tokens, std::int32_t each) noexcept {
  return (tokens + each - 1) / each;
}

}  // namespace

decode_step::impl::impl(tiered_chunk_store& s, selector* sel, const decode_step_options& o)
    : store(s),
      select(sel),
      level1(sel == nullptr
                 ? nullptr
                 : &static_cast<detail::device_level1&>(flashmemory::detail::selector_access::scoring(*sel))),
      device(context_of(s)),
      options(checked(s, sel, o)),
      geometry(s.geometry()),
      layout(geometry),
      entries_per_row(most_completed(o.tokens, geometry.tokens_per_entry)),
      index_keys_per_row(
          geometry.index_keys.lanes > 0 ? most_completed(o.tokens, geometry.index_keys.tokens_per_key) : 0),
      first_word(options.rows * (2 + options.max_chunks)),
      targets_at(first_word + 2 * std::int64_t{options.rows}),
      key_targets_at(targets_at + append_target_words * options.rows * entries_per_row) {}

decode_step::decode_step(tiered_chunk_store& store, selector* select, const decode_step_options& options)
    : impl_(std::make_unique<impl>(store, select, options)) {
  impl& im = *impl_;
  const std::int64_t more =
      im.key_targets_at - im.first_word +
      append_target_words * im.geometry.index_keys.lanes * im.options.rows * im.index_keys_per_row;
  const detail::device_guard guard(im.device.ordinal);
  im.tables.reset(new chunk_tables(im.device, tables_for(im.options), more));
  im.words = im.tables->words_.get();
  im.live.reserve(static_cast<std::size_t>(im.options.rows));
  im.observed.resize(static_cast<std::size_t>(im.geometry.layers) * flashmemory::detail::tap_kinds);
  im.keys_given.resize(static_cast<std::size_t>(im.geometry.index_keys.lanes));
  if (im.options.query_heads > 0) {
    attend_shape shape;
    shape.geometry = im.geometry;
    shape.query_heads = im.options.query_heads;
    shape.query_tokens = im.options.tokens;
    shape.rows = im.options.rows;
    shape.max_chunks = im.options.max_chunks;
    im.plan = plan_attend(shape, im.device.num_sms);
    const std::size_t bytes = attend_workspace_bytes(im.plan);
    im.scratch =
        detail::memory_block(detail::block_kind::device, im.device.memory, bytes, "attention scratch");
    im.counters = detail::memory_block(detail::block_kind::device, im.device.memory,
                                       attend_counters * sizeof(std::uint32_t), "attention counters");
    detail::ask(cudaMemset(im.counters.as<void>(), 0, im.counters.bytes()), "attention counters");
  }
  im.nan_keys = detail::memory_block(detail::block_kind::device, im.device.memory, sizeof(unsigned long long),
                                     "counter of keys");
  detail::ask(cudaMemset(im.nan_keys.as<void>(), 0, im.nan_keys.bytes()), "counter of keys");
  // Rows start empty.
  fault f;
  if (im.words->begin(&f) != status::ok) throw error(f.code, describe(f));
  for (std::int64_t r = 0; r < im.options.rows; ++r) im.set_row_words(r, -1, -1);
  if (im.words->send(nullptr, &f) != status::ok) throw error(f.code, describe(f));
  detail::ask(cudaDeviceSynchronize(), "decode_step");
}

decode_step::~decode_step() { abandon(); }

const decode_step_options& decode_step::options() const noexcept { return impl_->options; }
std::int32_t decode_step::entries_per_row() const noexcept { return impl_->entries_per_row; }
std::int32_t decode_step::index_keys_per_row() const noexcept { return impl_->index_keys_per_row; }
const chunk_tables& decode_step::tables() const noexcept { return *impl_->tables; }
const std::int64_t* decode_step::positions() const noexcept { return impl_->device_positions(); }
std::size_t decode_step::device_bytes() const noexcept {
  return impl_->tables->device_bytes() + impl_->scratch.bytes() + impl_->counters.bytes();
}
fault decode_step::last_fault() const noexcept { return impl_->last_fault; }

void decode_step::impl::set_row_words(std::int64_t row, std::int64_t place, std::int64_t position) noexcept {
  words->set(first_word + row, static_cast<std::uint64_t>(place));
  words->set(first_word + options.rows + row, static_cast<std::uint64_t>(position));
}

void decode_step::impl::set_target(std::int64_t at, const std::byte* chunk, std::int64_t entry,
                                   std::int64_t row) noexcept {
  words->set(at, chunk);
  words->set(at + 1, static_cast<std::uint64_t>(entry) | static_cast<std::uint64_t>(row) << 32);
}

/// Where the new entries of a row go; the resident set already has the chunks that are new.
void decode_step::impl::set_entry_targets(std::int64_t row, const batch_item* item,
                                          const resident_set& set) noexcept {
  const std::int64_t each = geometry.entries_per_chunk;
  const std::int64_t first = item == nullptr ? 0 : geometry.entries_for(item->position);
  const std::int64_t last = item == nullptr ? 0 : geometry.entries_for(item->position + options.tokens);
  for (std::int64_t j = 0; j < entries_per_row; ++j) {
    const std::int64_t index = row * entries_per_row + j, entry = first + j;
    const std::byte* chunk = nullptr;
    if (entry < last) {
      std::int64_t c = set.count - 1;
      while (c >= 0 && set.chunks[c].id > entry / each) --c;
      if (c >= 0 && set.chunks[c].id == entry / each) chunk = set.chunks[c].data;
    }
    set_target(targets_at + append_target_words * index, chunk, chunk == nullptr ? 0 : entry % each, index);
  }
}

void decode_step::impl::set_key_targets(std::int64_t row, const batch_item* item) noexcept {
  const std::int64_t first = item == nullptr ? 0 : item->position / geometry.index_keys.tokens_per_key;
  const std::int64_t last =
      item == nullptr ? 0 : (item->position + options.tokens) / geometry.index_keys.tokens_per_key;
  const std::int64_t page_keys = geometry.index_keys_per_chunk();
  for (std::int32_t k = 0; k < geometry.index_keys.lanes; ++k) {
    index_key_pages pages;
    const bool there = last > first && store.index_keys(item->sequence, k, &pages) == status::ok;
    for (std::int64_t j = 0; j < index_keys_per_row; ++j) {
      const std::int64_t index = row * index_keys_per_row + j, key = first + j;
      const bool wanted = there && key < last;
      const std::byte* const page =
          wanted ? pages.data + static_cast<std::size_t>(key / page_keys) * layout.index_key_page_bytes()
                 : nullptr;
      set_target(key_targets_at + append_target_words * (k * options.rows * index_keys_per_row + index), page,
                 wanted ? key % page_keys : 0, index);
    }
  }
}

int decode_step::impl::brings_index_keys() const noexcept {
  if (level1 != nullptr && level1->encodes_keys()) return 1;
  std::size_t given = 0;
  for (const std::uint8_t lane : keys_given) given += lane;
  return given == 0 ? 0 : given == keys_given.size() ? 1 : -1;
}

/// Everything that can be found wrong before anything has changed.
status decode_step::impl::check_items(batch items) noexcept {
  const auto no = [&](status code, const char* what, std::int64_t expected, std::int64_t actual,
                      std::int64_t sequence) {
    const status refused = detail::refuse(code, what, expected, actual, &last_fault);
    last_fault.sequence = sequence;
    return refused;
  };
  if (open) return no(status::out_of_order, "a step is open", -1, -1, -1);
  if (items.shape[0] < 0 || items.shape[0] > options.rows)
    return no(status::bad_shape, "items", options.rows, items.shape[0], -1);
  if (items.shape[0] > 0 && items.data == nullptr) return no(status::null_data, "items", -1, -1, -1);
  live.clear();
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    if (item.empty()) continue;
    const std::int64_t id = item.sequence.index;
    if (item.num_tokens != options.tokens)
      return no(status::bad_shape, "num_tokens", options.tokens, item.num_tokens, id);
    if (select != nullptr && flashmemory::detail::selector_access::find(*select, item.sequence) == nullptr)
      return no(status::unknown_sequence, "sequence is not attached to the selector", -1, -1, id);
    for (std::int32_t k = 0; brings_index_keys() != 0 && k < geometry.index_keys.lanes; ++k) {
      index_key_pages pages;
      if (const status code = store.index_keys(item.sequence, k, &pages); code != status::ok) {
        last_fault = store.last_fault();
        return code;
      }
      if (pages.keys != item.position / geometry.index_keys.tokens_per_key) {
        const status code = no(status::out_of_order, "index keys",
                               item.position / geometry.index_keys.tokens_per_key, pages.keys, id);
        last_fault.lane = k;
        return code;
      }
    }
    live.push_back(item);
  }
  return status::ok;
}

status decode_step::prepare(batch items, stream_ref stream) noexcept {
  impl& im = *impl_;
  const impl::noted told(im);
  const detail::device_guard guard(im.device.ordinal);
  if (stream.is_host())
    return detail::refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, &im.last_fault);
  if (const status code = im.check_items(items); code != status::ok) return code;
  if (const status code = im.words->begin(&im.last_fault); code != status::ok) return code;
  const batch live(im.live.data(), im.live.size());
  if (const status code = im.store.begin_pass(live, stream); code != status::ok) {
    im.last_fault = im.store.last_fault();
    return code;
  }
  im.open = true;
  status code = im.tables->set_rows(im.store, items, 0, &im.last_fault);
  if (code == status::ok) {
    for (std::int64_t r = 0; r < im.options.rows; ++r) {
      const batch_item* item = r < items.shape[0] && !items(r).empty() ? &items(r) : nullptr;
      std::int64_t place = item == nullptr ? -1 : 0;
      if (item != nullptr && im.select != nullptr)
        place = flashmemory::detail::selector_access::find(*im.select, item->sequence)->place;
      im.set_row_words(r, place, item == nullptr ? -1 : item->position);
      im.set_entry_targets(r, item, im.tables->shown_[static_cast<std::size_t>(r)].set);
      im.set_key_targets(r, item);
    }
    code = im.words->send(stream.cuda(), &im.last_fault);
  }
  if (code == status::ok) return code;
  const fault why = im.last_fault;
  abandon();
  im.last_fault = why;
  return code;
}

status decode_step::finish(stream_ref stream) noexcept {
  impl& im = *impl_;
  const impl::noted told(im);
  if (!im.open) return detail::refuse(status::out_of_order, "no step is open", -1, -1, &im.last_fault);
  const detail::device_guard guard(im.device.ordinal);
  const batch live(im.live.data(), im.live.size());
  const int keys = im.brings_index_keys();
  if (keys < 0)
    return detail::refuse(status::index_keys_missing, "index keys of some lanes", -1, -1, &im.last_fault);
  if (const status code = im.store.commit_pass(live, keys == 1, stream); code != status::ok) {
    im.last_fault = im.store.last_fault();
    return code;
  }
  im.open = false;
  if (im.select == nullptr) return status::ok;
  for (const batch_item& item : im.live)
    if (auto* const s = flashmemory::detail::selector_access::find(*im.select, item.sequence); s != nullptr)
      im.advance(*s, item);
  return status::ok;
}

/// The selector's rows of one sequence are those of this step, as far as observe() is part of the steps.
void decode_step::impl::advance(flashmemory::detail::served_sequence& s,
                                const batch_item& item) const noexcept {
  level1->advance_step(s, item.position, options.tokens, observed.data());
}

void decode_step::abandon() noexcept {
  impl& im = *impl_;
  if (!im.open) return;
  // What cannot be rolled back now stays in the step, for another call to try.
  std::size_t left = 0;
  for (const batch_item& item : im.live) {
    if (!im.store.is_open(item.sequence) || im.store.truncate(item.sequence, item.position) == status::ok)
      continue;
    im.last_fault = im.store.last_fault();
    im.live[left++] = item;
  }
  im.live.resize(left);
  im.open = left > 0;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
