// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/select/selector.hpp>
#include <utility>

#include "src/core/format.hpp"
#include "src/select/host_level1.hpp"
#include "src/select/selector_impl.hpp"

namespace flashmemory {
inline namespace v0 {

namespace detail {

buffer::buffer(const memory_resource& memory, std::size_t bytes, const char* purpose)
    : memory_(memory), bytes_(std::max<std::size_t>(bytes, alignment)) {
  data_ = memory_.allocate(memory_.context, bytes_, alignment);
  if (data_ == nullptr)
    throw admission_error(status::budget_exceeded,
                          formatted("{}: the memory resource has no block of {} bytes", purpose, bytes_));
}

[[noreturn]] void refuse(const std::string& message) {
  throw argument_error(status::bad_argument, "selector: " + message);
}

}  // namespace detail

using detail::refuse;
using detail::served_sequence;

selector::impl::impl(std::unique_ptr<detail::level1> level1, chunk_store& s, const selection_policy& p,
                     const selector_options& o)
    : level1_context(s, o), scoring(std::move(level1)), policy(p) {
  validate(policy, geometry);
  if (options.max_sequences < 1)
    refuse(formatted("max_sequences must be at least 1, it is {}", options.max_sequences));
  if (options.max_rollback_tokens < 0)
    refuse(formatted("max_rollback_tokens must be at least 0, it is {}", options.max_rollback_tokens));
  if (options.apply != apply_mode::at_once && options.apply != apply_mode::overlapped)
    refuse(formatted("apply is {}", static_cast<int>(options.apply)));
  if (options.late != late_policy::keep && options.late != late_policy::wait &&
      options.late != late_policy::fail)
    refuse(formatted("late is {}", static_cast<int>(options.late)));
  if (options.max_staleness < 0)
    refuse(formatted("max_staleness must be at least 0, it is {}", options.max_staleness));
  if (options.concurrent_recalls < 1)
    refuse(formatted("concurrent_recalls must be at least 1, it is {}", options.concurrent_recalls));
  if (options.deadline.count() < 1)
    refuse(formatted("deadline must be positive, it is {} ms", options.deadline.count()));
  if (options.memory.allocate == nullptr || options.memory.deallocate == nullptr)
    refuse("memory needs both functions");
  const indexer_taps& taps = scoring->taps();
  check_compatible(taps, geometry);

  for (std::size_t t = 0; t < taps.queries.size(); ++t) {
    const query_tap& tap = taps.queries[t];
    if (tap.width < 1 || tap.layer < 0 || tap.tokens < 1 || tap.tokens > max_query_tap_tokens)
      refuse(formatted("query tap {} of indexer {} has layer {}, width {} and {} tokens", t, taps.name,
                       tap.layer, tap.width, tap.tokens));
    std::size_t at = 0;
    while (at < query_sources.size() &&
           (query_sources[at].layer != tap.layer || query_sources[at].kind != tap.kind))
      ++at;
    if (at == query_sources.size()) query_sources.push_back({tap.layer, tap.kind, tap.width, 1});
    if (query_sources[at].width != tap.width)
      refuse(formatted("query taps of layer {} of indexer {} have widths {} and {}", tap.layer, taps.name,
                       query_sources[at].width, tap.width));
    query_sources[at].tokens = std::max<std::int64_t>(query_sources[at].tokens, tap.tokens);
    source_of_tap.push_back(static_cast<std::int32_t>(at));
  }

  for (std::size_t t = 0; t < taps.index_keys.size(); ++t) {
    const index_key_tap& tap = taps.index_keys[t];
    if (tap.width < 1 || tap.window < tap.tokens_per_key)
      refuse(formatted("index-key tap {} of indexer {}: layer {}, width {}, {} tokens per key, window {}", t,
                       taps.name, tap.layer, tap.width, tap.tokens_per_key, tap.window));
    std::size_t at = 0;
    while (at < key_sources.size() &&
           (key_sources[at].layer != tap.layer || key_sources[at].kind != tap.kind))
      ++at;
    if (at == key_sources.size()) key_sources.push_back({tap.layer, tap.kind, tap.width, 0, {}});
    if (key_sources[at].width != tap.width)
      refuse(formatted("index-key taps of layer {} of indexer {} have widths {} and {}", tap.layer, taps.name,
                       key_sources[at].width, tap.width));
    key_sources[at].window = std::max<std::int64_t>(key_sources[at].window, tap.window);
    key_sources[at].lanes.push_back(static_cast<std::int32_t>(t));
  }
  for (const auto& q : query_sources)
    for (const auto& k : key_sources)
      if (q.kind == k.kind && q.layer == k.layer && q.width != k.width)
        refuse(formatted("query and index-key taps of layer {} of indexer {} have widths {} and {}", q.layer,
                         taps.name, q.width, k.width));

  scoring->set_up(*this);
  const auto places = static_cast<std::size_t>(options.max_sequences);
  pool.reserve(places);
  observed.resize(places);
  due.reserve(places);
  to_score.reserve(places);
  under_way.reserve(places);
}

/// Room for sequences of up to `chunks` chunks. Lists of the refresh at hand move.
void selector::impl::reserve_chunks(std::int64_t chunks) {
  if (chunks <= max_chunks) return;
  detail::block_layout plan;
  const std::size_t resident_at = plan.add<std::uint8_t>(chunks), kept_at = plan.add<chunk_id>(chunks),
                    order_at = plan.add<chunk_id>(chunks), bad_at = plan.add<chunk_id>(chunks),
                    plain_at = plan.add<float>(chunks);
  detail::buffer lists(options.memory, plan.bytes(), "selector lists");
  const std::int64_t before = std::exchange(max_chunks, chunks);
  try {
    scoring->reserve_chunks();
  } catch (...) {
    max_chunks = before;
    throw;
  }
  memory = std::move(lists);
  std::byte* const base = memory.as<std::byte>();
  resident = view<std::uint8_t, 1>(reinterpret_cast<std::uint8_t*>(base + resident_at), chunks);
  kept = view<chunk_id, 1>(reinterpret_cast<chunk_id*>(base + kept_at), chunks);
  order = view<chunk_id, 1>(reinterpret_cast<chunk_id*>(base + order_at), chunks);
  bad = view<chunk_id, 1>(reinterpret_cast<chunk_id*>(base + bad_at), chunks);
  plain_scores = view<float, 1>(reinterpret_cast<float*>(base + plain_at), chunks);
  last_scores = {};
}

/// What was started here has nobody to finish it any more.
selector::impl::~impl() {
  for (auto& s : pool)
    if (s->active) deactivate(*s);
}

status selector::impl::fail(status code, sequence_handle sequence, const char* what) const noexcept {
  fault f;
  f.code = code;
  f.sequence = sequence.index;
  f.what = what;
  return fail(f);
}

status selector::impl::store_failed(status code, sequence_handle sequence, const char* what) const noexcept {
  return fail(detail::fault_of_store(store, code, sequence, what));
}

served_sequence* selector::impl::find(sequence_handle sequence) const noexcept {
  if (sequence.index >= by_index.size() || by_index[sequence.index] < 0) return nullptr;
  served_sequence* const s = pool[static_cast<std::size_t>(by_index[sequence.index])].get();
  return s->handle == sequence ? s : nullptr;
}

status selector::impl::check_handle(sequence_handle sequence, served_sequence** out) const noexcept {
  *out = find(sequence);
  if (*out != nullptr && store.is_open(sequence)) return status::ok;
  if (*out != nullptr) return fail(status::stale_sequence, sequence, "sequence was closed");
  if (sequence.index < by_index.size() && by_index[sequence.index] >= 0 &&
      sequence.generation < pool[static_cast<std::size_t>(by_index[sequence.index])]->handle.generation)
    return fail(status::stale_sequence, sequence, "sequence");
  return fail(status::unknown_sequence, sequence, "sequence is not attached to the selector");
}

status selector::impl::check_items(batch items, std::int64_t* tokens) noexcept {
  *tokens = 0;
  if (items.shape[0] > 0 && items.data == nullptr) return fail(status::null_data, {}, "items");
  ++call;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    if (item.empty()) {
      if (item.num_tokens < 0) return fail(status::bad_argument, {}, "num_tokens of an empty item");
      *tokens += item.num_tokens;
      continue;
    }
    served_sequence* s = nullptr;
    if (const status code = check_handle(item.sequence, &s); code != status::ok) return code;
    if (s->last_call == call) return fail(status::bad_argument, item.sequence, "sequence appears twice");
    s->last_call = call;
    if (item.position < 0 || item.num_tokens < 1 || item.num_tokens > s->max_tokens - item.position) {
      fault f;
      f.code = item.position < 0 || item.num_tokens < 1 ? status::bad_argument : status::sequence_full;
      f.sequence = item.sequence.index;
      f.what = "position and num_tokens of an item";
      f.expected = s->max_tokens;
      // A position beyond all bounds must not overflow on its way into the report.
      f.actual = item.position < 0 || item.position > s->max_tokens ? item.position
                                                                    : item.position + item.num_tokens;
      return fail(f);
    }
    *tokens += item.num_tokens;
  }
  return status::ok;
}

sequence_info selector::impl::open_info(sequence_handle sequence) const {
  sequence_info info;
  if (const status code = store.info(sequence, &info); code != status::ok)
    throw error(code, formatted("selector: sequence {} (generation {}) cannot be served: {}", sequence.index,
                                sequence.generation, to_string(code)));
  return info;
}

served_sequence& selector::impl::prepare(sequence_handle sequence, const sequence_info& info,
                                         const selection_policy& use) {
  if (find(sequence) != nullptr) refuse(formatted("sequence {} is attached already", sequence.index));
  validate(use, geometry);
  if (use.sink_chunks != info.options.sink_chunks || use.recent_chunks != info.options.recent_chunks)
    refuse(formatted("the policy keeps {} sink and {} recent chunks, sequence {} was opened with {} and {}",
                     use.sink_chunks, use.recent_chunks, sequence.index, info.options.sink_chunks,
                     info.options.recent_chunks));
  reserve_chunks(geometry.chunks_for(info.options.max_tokens));

  if (sequence.index >= by_index.size()) by_index.resize(std::size_t{sequence.index} + 1, -1);
  // What sat in this place before is closed, or the store would not have given the place away.
  if (const std::int32_t old = by_index[sequence.index]; old >= 0)
    deactivate(*pool[static_cast<std::size_t>(old)]);

  served_sequence* free = nullptr;
  const auto look = [&] {
    for (auto& s : pool)
      if (!s->active && free == nullptr) free = s.get();
  };
  look();
  if (free == nullptr && pool.size() >= static_cast<std::size_t>(options.max_sequences)) {
    for (auto& s : pool)
      if (!store.is_open(s->handle)) deactivate(*s);
    look();
  }
  if (free == nullptr) {
    if (pool.size() >= static_cast<std::size_t>(options.max_sequences))
      throw admission_error(
          status::budget_exceeded,
          formatted("selector: all max_sequences = {} places are taken", options.max_sequences));
    auto made = std::make_unique<served_sequence>();
    made->place = static_cast<std::int32_t>(pool.size());
    const auto ring = [](std::int64_t width, std::int64_t capacity) {
      detail::row_ring r;
      r.width = width;
      r.capacity = capacity;
      return r;
    };
    for (const auto& source : query_sources) made->queries.push_back(ring(source.width, query_rows(source)));
    for (const auto& source : key_sources)
      made->keys.push_back({ring(source.width, key_rows(source)), false});
    scoring->open_place(*made);
    pool.push_back(std::move(made));
    free = pool.back().get();
  }

  const std::int64_t all = geometry.chunks_for(info.options.max_tokens);
  if (use.hold > 0)
    free->held.reserve(options.memory, all);
  else
    free->held.forget_from(0);

  free->handle = sequence;
  free->own_policy = false;
  free->policy = use;
  free->max_tokens = info.options.max_tokens;
  free->quota = detail::quota_of(info, geometry);
  free->started = free->requested = false;
  free->open_prompt = free->ended_prompt = -1;
  free->prompt_due = free->piece_due = false;
  free->processed = free->refreshed = free->next_due = 0;
  free->failures = 0;
  free->last_call = 0;
  free->step_tokens = 1;
  free->stage = fallback_stage::normal;
  free->calls = free->calm = 0;
  free->mass = std::numeric_limits<float>::infinity();
  free->report = selection_report{};
  free->flight = detail::refresh_flight{};
  for (auto& ring : free->queries) ring.begin = ring.end = 0;
  for (auto& input : free->keys) {
    input.ring.begin = input.ring.end = 0;
    input.torn = false;
  }
  return *free;
}

void selector::impl::activate(served_sequence& s) noexcept {
  s.active = true;
  rollback_guard guard;
  guard.context = this;
  guard.allows = [](void* self, sequence_handle sequence, std::int64_t tokens, std::int64_t* lowest) {
    return static_cast<const impl*>(self)->allows_rollback(sequence, tokens, lowest);
  };
  store.guard_rollback(s.handle, guard);
  by_index[s.handle.index] = s.place;
}

void selector::impl::deactivate(served_sequence& s) noexcept {
  if (!s.active) return;
  abandon(s, false);
  store.guard_rollback(s.handle, {});
  s.active = false;
  by_index[s.handle.index] = -1;
}

selector::selector(chunk_store& store, indexer& index, const selection_policy& policy,
                   const selector_options& options)
    : impl_(std::make_unique<impl>(std::make_unique<detail::host_level1>(index), store, policy, options)) {}

selector::selector(std::unique_ptr<detail::level1> scoring, chunk_store& store,
                   const selection_policy& policy, const selector_options& options) {
  if (scoring == nullptr) throw argument_error(status::null_data, "selector: the level 1 is null");
  impl_ = std::make_unique<impl>(std::move(scoring), store, policy, options);
}

selector::~selector() = default;

void selector::attach(sequence_handle sequence, const selection_policy* policy) {
  const sequence_info info = impl_->open_info(sequence);
  served_sequence& s = impl_->prepare(sequence, info, policy != nullptr ? *policy : impl_->policy);
  s.own_policy = policy != nullptr;
  s.processed = info.tokens;
  if (info.tokens > 0 && s.policy.mode != selection_mode::everything) {
    // Keys already there can be continued only if no later key looks back at tokens that were not observed.
    for (std::size_t k = 0; k < s.keys.size(); ++k) {
      bool fits = impl_->key_sources[k].window == impl_->geometry.index_keys.tokens_per_key &&
                  info.tokens % impl_->geometry.index_keys.tokens_per_key == 0;
      for (const std::int32_t lane : impl_->key_sources[k].lanes) {
        index_key_pages pages;
        fits = fits && impl_->store.index_keys(sequence, lane, &pages) == status::ok &&
               pages.keys == info.tokens / impl_->geometry.index_keys.tokens_per_key;
      }
      if (!fits)
        refuse(
            formatted("sequence {} holds {} tokens whose {} at layer {} the key encoder has not "
                      "seen; attach it before its prompt, or with load_state()",
                      sequence.index, info.tokens, detail::name_of(impl_->key_sources[k].kind),
                      impl_->key_sources[k].layer));
      s.keys[k].ring.begin = s.keys[k].ring.end = info.tokens;
    }
  }
  impl_->activate(s);
}

void selector::attach_fork(sequence_handle parent, sequence_handle child, const selection_policy* policy) {
  const served_sequence* from = impl_->find(parent);
  if (from == nullptr)
    throw error(status::unknown_sequence, formatted("selector: sequence {} (generation {}) is not attached",
                                                    parent.index, parent.generation));
  const sequence_info info = impl_->open_info(child);
  const selection_policy use = policy != nullptr ? *policy : from->policy;
  const bool selects = use.mode != selection_mode::everything;
  if (selects && from->policy.mode == selection_mode::everything && info.tokens > 0)
    refuse(
        formatted("the policy of sequence {} is everything, so its tokens were not observed; its "
                  "fork {} cannot select",
                  parent.index, child.index));
  for (std::size_t k = 0; selects && k < from->keys.size(); ++k)
    if (const auto& ring = from->keys[k].ring; !impl_->can_go_on(impl_->key_sources[k], ring, info.tokens))
      refuse(
          formatted("the fork {} stands at {} tokens, its parent {} was observed up to {}, and "
                    "max_rollback_tokens is {}",
                    child.index, info.tokens, parent.index, ring.end, impl_->options.max_rollback_tokens));
  served_sequence& s = impl_->prepare(child, info, use);
  from = impl_->find(parent);
  if (from == nullptr)
    throw error(status::stale_sequence, formatted("selector: sequence {} is closed", parent.index));
  s.own_policy = policy != nullptr || from->own_policy;
  s.started = from->started;
  s.open_prompt = from->open_prompt;
  s.prompt_due = from->prompt_due;
  s.piece_due = from->piece_due;
  // A refresh of the parent that is under way serves the parent alone.
  s.requested = from->requested || from->flight.phase != detail::flight_phase::none;
  s.processed = from->processed;
  s.refreshed = from->refreshed;
  s.next_due = from->next_due;
  s.stage = from->stage;
  s.calls = from->calls;
  s.calm = from->calm;
  s.mass = from->mass;
  s.report = from->report;
  const std::int64_t shared = std::min(from->held.count(), info.tokens / impl_->geometry.tokens_per_chunk());
  for (std::int64_t c = 0; use.hold > 0 && c < shared; ++c) s.held.push(from->held[c]);
  impl_->scoring->copy_rows(*from, s);
  for (std::size_t q = 0; q < s.queries.size(); ++q) {
    s.queries[q].begin = from->queries[q].begin;
    s.queries[q].end = from->queries[q].end;
  }
  for (std::size_t k = 0; k < s.keys.size(); ++k) {
    s.keys[k].ring.begin = from->keys[k].ring.begin;
    s.keys[k].ring.end = from->keys[k].ring.end;
    s.keys[k].torn = from->keys[k].torn;
  }
  impl_->activate(s);
}

void selector::detach(sequence_handle sequence) noexcept {
  if (served_sequence* s = impl_->find(sequence); s != nullptr) impl_->deactivate(*s);
}

status selector::request_refresh(sequence_handle sequence) noexcept {
  served_sequence* s = nullptr;
  if (const status code = impl_->check_handle(sequence, &s); code != status::ok) return code;
  s->requested = true;
  return status::ok;
}

status selector::report_attention_mass(sequence_handle sequence, float mass) noexcept {
  served_sequence* s = nullptr;
  if (const status code = impl_->check_handle(sequence, &s); code != status::ok) return code;
  if (!(mass >= 0))
    return impl_->fail(std::isnan(mass) ? status::not_finite : status::bad_argument, sequence, "mass");
  // Sums of weights may exceed 1 by rounding.
  if (mass > 1.001f) return impl_->fail(status::bad_argument, sequence, "mass");
  s->mass = std::min(s->mass, mass);
  return status::ok;
}

status selector::report(sequence_handle sequence, selection_report* out) const noexcept {
  served_sequence* s = nullptr;
  if (const status code = impl_->check_handle(sequence, &s); code != status::ok) return code;
  if (out == nullptr) return impl_->fail(status::null_data, sequence, "out");
  *out = s->report;
  return status::ok;
}

view<const float, 1> selector::last_scores() const noexcept { return impl_->last_scores; }

bool selector::refreshing(sequence_handle sequence) const noexcept {
  const served_sequence* s = impl_->find(sequence);
  return s != nullptr && s->flight.phase != detail::flight_phase::none;
}

selector_counters selector::counters() const noexcept {
  selector_counters copy = impl_->counters;
  copy.nan_keys += impl_->scoring->more_nan_keys();
  return copy;
}

fault selector::last_fault() const noexcept { return impl_->last_fault; }
chunk_store& selector::store() const noexcept { return impl_->store; }
const indexer_taps& selector::taps() const noexcept { return impl_->scoring->taps(); }

bool selector::reads(std::int32_t layer, tap_kind kind) const noexcept {
  for (const auto& source : impl_->query_sources)
    if (source.layer == layer && source.kind == kind) return true;
  for (const auto& source : impl_->key_sources)
    if (source.layer == layer && source.kind == kind) return true;
  return false;
}

std::size_t selector::bytes_per_sequence() const noexcept {
  return sizeof(served_sequence) + impl_->scoring->row_bytes() +
         impl_->query_sources.size() * sizeof(detail::row_ring) +
         impl_->key_sources.size() * sizeof(detail::key_input);
}

}  // namespace v0
}  // namespace flashmemory
