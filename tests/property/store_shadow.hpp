// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <set>

#include "tests/support/store_testing.hpp"

/// The store's contract in the plainest containers there are: what each sequence contains, what of it is
/// resident, what the counters must say. Shares no code with the store.
namespace store_testing {

struct shadow_sequence {
  engine_sequence s;
  fm::sequence_options options;
  std::int64_t quota = 0, capacity = 0;
  bool whole = false;
  std::vector<int> chunks;  ///< number of the record behind each chunk
  std::set<int> resident;   ///< chunk ids
  std::set<int> imported;
  std::set<int> selected;                    ///< of them, those that a recall has asked for
  std::vector<std::vector<std::byte>> keys;  ///< [streams] rows

  std::int64_t span_tokens = 0;
  std::int32_t next_layer = 0;
  std::vector<std::uint64_t> span_tags;

  bool pending = false;     ///< a recall is under way
  std::vector<int> coming;  ///< what it brings, by importance
  std::set<int> brought;    ///< of that, what was copied
  int coming_extra = 0;     ///< of that, what was not resident at the start
  int coming_complete = 0;
  fm::recall_report coming_report;
};

class shadow_store {
 public:
  explicit shadow_store(const fm::store_options& o) : options(o), g(o.geometry) {}

  fm::store_options options;
  fm::kv_geometry g;
  std::map<int, shadow_sequence> open;
  std::set<int> sealed;  ///< records
  int next_record = 0;
  fm::store_counters counters;

  int complete(const shadow_sequence& q) const {
    return int(g.entries_for(q.s.tokens) / g.entries_per_chunk);
  }
  int existing(std::int64_t tokens) const {
    return int((g.entries_for(tokens) + g.entries_per_chunk - 1) / g.entries_per_chunk);
  }
  bool forced(const shadow_sequence& q, int id, int complete_chunks) const {
    return q.whole || id < q.options.sink_chunks || id >= complete_chunks - q.options.recent_chunks;
  }
  int references(int record) const {
    int n = 0;
    for (const auto& [key, q] : open) n += int(std::count(q.chunks.begin(), q.chunks.end(), record));
    return n;
  }
  std::set<int> slotted() const {
    std::set<int> records;
    for (const auto& [key, q] : open)
      for (int id : q.resident) records.insert(q.chunks[std::size_t(id)]);
    for (const auto& [key, q] : open)
      for (int id : q.coming) records.insert(q.chunks[std::size_t(id)]);
    return records;
  }
  std::int64_t in_transit() const {
    std::int64_t n = 0;
    for (const auto& [key, q] : open) n += q.coming_extra;
    return n;
  }
  std::int64_t transition_slots() const {
    std::int64_t transition = 0;
    for (const auto& [key, q] : open) {
      if (q.whole) continue;
      transition = std::max(
          transition, options.transition_chunks == 0
                          ? q.quota
                          : std::max<std::int64_t>(options.transition_chunks, q.options.recent_chunks + 1));
    }
    return transition;
  }
  std::int64_t slots() const {
    std::int64_t total = std::max(transition_slots(), in_transit());
    for (const auto& [key, q] : open) total += q.quota;
    return total;
  }
  void cancel(shadow_sequence& q) {
    if (q.pending) ++counters.recalls_cancelled;
    q.pending = false;
    q.coming.clear();
    q.brought.clear();
    q.coming_extra = 0;
  }
  void forget_unused() {
    std::set<int> used;
    for (const auto& [key, q] : open) used.insert(q.chunks.begin(), q.chunks.end());
    for (auto at = sealed.begin(); at != sealed.end();)
      at = used.count(*at) ? std::next(at) : sealed.erase(at);
  }
  void seal(int record) {
    sealed.insert(record);
    ++counters.chunks_sealed;
    ++counters.chunks_written;
    counters.bytes_written += std::int64_t(fm::chunk_layout(g).chunk_bytes());
  }
  shadow_sequence make(const fm::sequence_options& o) const {
    shadow_sequence q;
    q.options = o;
    q.capacity = g.chunks_for(o.max_tokens);
    q.quota = o.max_resident_chunks == 0 ? q.capacity : std::min(o.max_resident_chunks, q.capacity);
    q.whole = o.max_resident_chunks == 0;
    q.keys.resize(std::size_t(g.index_keys.lanes));
    return q;
  }
  std::int64_t reserved() const {
    std::int64_t n = 0;
    for (const auto& [key, q] : open) n += q.capacity;
    return n;
  }

  /// Chunks that a new span of `tokens` tokens makes resident.
  std::vector<int> newly_resident(const shadow_sequence& q, std::int64_t tokens) const {
    const int done = int(g.entries_for(q.s.tokens + tokens) / g.entries_per_chunk);
    std::vector<int> ids;
    for (int id = existing(q.s.tokens); id < existing(q.s.tokens + tokens); ++id)
      if (forced(q, id, done)) ids.push_back(id);
    return ids;
  }
  /// What makes room for a span where the quota is full.
  std::vector<int> giving_way(const shadow_sequence& q, std::int64_t tokens) const {
    const int done = int(g.entries_for(q.s.tokens + tokens) / g.entries_per_chunk);
    if (q.whole) return {};
    std::int64_t wanted = std::int64_t(q.resident.size() + newly_resident(q, tokens).size()) - q.quota;
    std::vector<int> ids;
    for (int id : q.resident)
      if (wanted > 0 && !q.selected.count(id) && !forced(q, id, complete(q)) && !forced(q, id, done)) {
        ids.push_back(id);
        --wanted;
      }
    return ids;
  }
  fm::status span_status(const shadow_sequence& q, std::int64_t tokens) const {
    if (q.s.tokens + tokens > q.options.max_tokens) return fm::status::sequence_full;
    if (q.next_layer == 0 && std::int64_t(q.resident.size() + newly_resident(q, tokens).size() -
                                          giving_way(q, tokens).size()) > q.quota)
      return fm::status::budget_exceeded;
    return fm::status::ok;
  }
  void append_layer(shadow_sequence& q, std::int64_t tokens, const std::vector<std::uint64_t>& tags) {
    if (q.next_layer == 0) {
      const auto gone = giving_way(q, tokens);
      if (!gone.empty()) cancel(q);
      for (int id : gone) {
        q.resident.erase(id);
        q.imported.erase(id);
      }
      for (int id : newly_resident(q, tokens)) q.resident.insert(id);
      while (int(q.chunks.size()) < existing(q.s.tokens + tokens)) q.chunks.push_back(next_record++);
      q.span_tokens = tokens;
      q.span_tags = tags;
    }
    if (++q.next_layer < g.layers) return;
    const int before = complete(q);
    q.s.tokens += tokens;
    q.s.tags.insert(q.s.tags.end(), q.span_tags.begin(), q.span_tags.end());
    for (int id = before; id < complete(q); ++id) seal(q.chunks[std::size_t(id)]);
    q.span_tokens = 0;
    q.next_layer = 0;
    q.span_tags.clear();
  }

  fm::recall_report start(shadow_sequence& q, const std::vector<fm::chunk_id>& wanted) {
    fm::recall_report r;
    const int done = complete(q);
    const std::set<int> had_slot = slotted();
    std::set<int> records = had_slot, all(wanted.begin(), wanted.end());
    std::int64_t held = 0, room = transition_slots() - in_transit();
    const std::int64_t free = slots();
    for (int id : q.resident)
      if (forced(q, id, done)) {
        ++held;
        if (id < done) {
          all.insert(id);
          ++r.hits;
        }
      }
    r.selected = std::int64_t(all.size());
    for (int id : wanted) {
      const int record = q.chunks[std::size_t(id)];
      const bool own = q.resident.count(id) > 0, present = had_slot.count(record) > 0;
      if (!forced(q, id, done)) {
        if (held == q.quota || (!own && room <= 0) || (!present && std::int64_t(records.size()) >= free)) {
          ++r.refused;
          continue;
        }
        ++held;
        room -= !own;
        ++(present ? r.hits : r.recalled);
      }
      q.coming.push_back(id);
      records.insert(record);
      if (!present) q.brought.insert(id);
      q.coming_extra += !own;
    }
    q.pending = true;
    q.coming_complete = done;
    q.coming_report = r;
    r.bytes = r.recalled * std::int64_t(fm::chunk_layout(g).chunk_bytes());
    return r;
  }

  fm::recall_report finish(shadow_sequence& q) {
    fm::recall_report r = q.coming_report;
    const int done = complete(q);
    std::set<int> next;
    for (int id : q.resident)
      if (id >= q.coming_complete || forced(q, id, done)) next.insert(id);
    for (int id : q.coming) {
      if (next.count(id)) continue;
      if (std::int64_t(next.size()) < q.quota) {
        next.insert(id);
        continue;
      }
      --(q.brought.count(id) ? r.recalled : r.hits);
      ++r.refused;
    }
    for (int id : q.resident) r.evicted += next.count(id) == 0;
    r.bytes = r.recalled * std::int64_t(fm::chunk_layout(g).chunk_bytes());
    q.resident = next;
    q.selected = both(std::set<int>(q.coming.begin(), q.coming.end()), next);
    q.imported.clear();
    const std::int64_t cancelled = counters.recalls_cancelled;
    cancel(q);
    counters.recalls_cancelled = cancelled;
    count(r);
    return r;
  }

  fm::recall_report recall(shadow_sequence& q, const std::vector<fm::chunk_id>& wanted) {
    cancel(q);
    fm::recall_report r;
    const int done = complete(q);
    const std::set<int> old = q.resident;
    const std::set<int> had_slot = slotted();
    std::int64_t free = slots() - std::int64_t(had_slot.size());
    std::set<int> next, all(wanted.begin(), wanted.end());
    for (int id : old)
      if (forced(q, id, done)) {
        next.insert(id);
        if (id < done) {
          all.insert(id);
          ++r.hits;
        }
      }
    r.selected = std::int64_t(all.size());
    for (int id : wanted) {
      if (next.count(id)) continue;
      const bool present = had_slot.count(q.chunks[std::size_t(id)]) > 0;
      if (std::int64_t(next.size()) == q.quota || (!present && free == 0)) {
        ++r.refused;
        continue;
      }
      next.insert(id);
      if (present) {
        ++r.hits;
      } else {
        ++r.recalled;
        --free;
      }
    }
    for (int id : old) r.evicted += next.count(id) == 0;
    r.bytes = r.recalled * std::int64_t(fm::chunk_layout(g).chunk_bytes());
    q.resident = next;
    q.selected = both(std::set<int>(wanted.begin(), wanted.end()), next);
    q.imported.clear();
    count(r);
    return r;
  }

  static std::set<int> both(const std::set<int>& a, const std::set<int>& b) {
    std::set<int> out;
    for (int id : a)
      if (b.count(id)) out.insert(id);
    return out;
  }

  void count(const fm::recall_report& r) {
    ++counters.recalls;
    counters.selected += r.selected;
    counters.hits += r.hits;
    counters.recalled += r.recalled;
    counters.refused += r.refused;
    counters.bytes_recalled += r.bytes;
  }

  /// Of `candidates`, what stays beside what must: the newest, as far as the quota goes.
  std::set<int> settle(const shadow_sequence& q, const std::set<int>& candidates, int chunks,
                       int done) const {
    std::set<int> out;
    for (int id = 0; id < chunks; ++id)
      if (forced(q, id, done)) out.insert(id);
    for (auto at = candidates.rbegin(); at != candidates.rend(); ++at)
      if (*at < chunks && std::int64_t(out.size()) < q.quota) out.insert(*at);
    return out;
  }

  void truncate(shadow_sequence& q, std::int64_t tokens) {
    const int chunks = existing(tokens);
    const int done = int(g.entries_for(tokens) / g.entries_per_chunk);
    give_up_for_rollback(q, chunks, done);
    if (chunks > done) {
      int& record = q.chunks[std::size_t(done)];
      if (sealed.count(record)) {
        if (references(record) > 1) {
          record = next_record++;
          ++counters.copies_on_write;
        } else {
          sealed.erase(record);
        }
      }
    }
    q.resident = settle(q, q.resident, chunks, done);
    for (auto at = q.imported.begin(); at != q.imported.end();)
      at = q.resident.count(*at) ? std::next(at) : q.imported.erase(at);
    q.chunks.resize(std::size_t(chunks));
    q.s.tokens = tokens;
    q.selected = both(q.selected, q.resident);
    q.coming_complete = std::min(q.coming_complete, done);
    q.s.tags.resize(std::size_t(g.entries_for(tokens)));
    q.span_tokens = 0;
    q.next_layer = 0;
    q.span_tags.clear();
    for (auto& stream : q.keys) {
      const auto most = std::size_t(tokens / g.index_keys.tokens_per_key * g.index_keys.bytes());
      if (stream.size() > most) stream.resize(most);
    }
    forget_unused();
  }

  /// A rollback ends the sequence's recall if it has asked for what goes, and others as it needs their slots.
  void give_up_for_rollback(shadow_sequence& q, int chunks, int done) {
    std::int64_t kept = 0;
    std::vector<int> missing;
    for (int id : q.resident) kept += id < chunks;
    for (int id = 0; id < chunks; ++id)
      if (forced(q, id, done) && q.resident.count(id) == 0) missing.push_back(id);
    if (q.whole) missing.clear();
    bool concerned = !q.coming.empty() && kept + std::int64_t(missing.size()) > q.quota;
    for (int id : q.coming) concerned = concerned || id >= done;
    if (concerned) cancel(q);
    const bool copies = chunks > done && sealed.count(q.chunks[std::size_t(done)]) &&
                        references(q.chunks[std::size_t(done)]) > 1;
    const auto short_of_slots = [&] {
      const std::set<int> used = slotted();
      std::int64_t wanted = copies;
      for (int id : missing) wanted += used.count(q.chunks[std::size_t(id)]) == 0;
      return slots() - std::int64_t(used.size()) < wanted;
    };
    give_up_while(q, short_of_slots);
  }

  /// Ends recalls while a condition holds: first the sequence's own, then others.
  template <class Condition>
  void give_up_while(shadow_sequence& q, const Condition& short_of_slots) {
    if (short_of_slots()) cancel(q);
    std::map<std::uint32_t, shadow_sequence*, std::greater<>> by_place;
    for (auto& [key, other] : open) by_place[other.s.handle.index] = &other;
    for (auto& [place, other] : by_place)
      if (short_of_slots()) cancel(*other);
  }

  shadow_sequence fork(const shadow_sequence& parent, const fm::sequence_options& o) {
    shadow_sequence q = make(o);
    q.s = parent.s;
    q.chunks = parent.chunks;
    const int done = complete(parent);
    if (int(q.chunks.size()) > done) {
      q.chunks.back() = next_record++;
      ++counters.copies_on_write;
    }
    q.resident = settle(q, parent.resident, int(q.chunks.size()), done);
    q.keys = parent.keys;
    q.selected = both(parent.selected, q.resident);
    const auto most = std::size_t(o.max_tokens / g.index_keys.tokens_per_key * g.index_keys.bytes());
    for (auto& stream : q.keys)
      if (stream.size() > most) stream.resize(most);
    return q;
  }

  fm::status append_chunk_status(const shadow_sequence& q, std::int64_t tokens) const {
    if (q.next_layer > 0 || q.s.tokens % g.tokens_per_chunk() != 0) return fm::status::out_of_order;
    if (q.s.tokens + tokens > q.options.max_tokens) return fm::status::sequence_full;
    if (g.entries_for(tokens) == 0) return fm::status::ok;
    const int id = int(q.chunks.size()), done = id + (tokens == g.tokens_per_chunk());
    return forced(q, id, done) && std::int64_t(after_import(q, done).size()) == q.quota
               ? fm::status::budget_exceeded
               : fm::status::ok;
  }
  std::set<int> after_import(const shadow_sequence& q, int done) const {
    std::set<int> kept;
    for (int id : q.resident)
      if (!q.imported.count(id) || forced(q, id, done)) kept.insert(id);
    return kept;
  }
  void append_chunk(shadow_sequence& q, std::int64_t tokens, const std::vector<std::uint64_t>& tags) {
    q.s.tags.insert(q.s.tags.end(), tags.begin(), tags.end());
    q.s.tokens += tokens;
    if (tags.empty()) return;
    const int id = int(q.chunks.size()), done = id + (tokens == g.tokens_per_chunk());
    if (forced(q, id, done)) give_up_while(q, [&] { return slots() == std::int64_t(slotted().size()); });
    cancel(q);
    q.resident = after_import(q, done);
    q.chunks.push_back(next_record++);
    if (done > id) seal(q.chunks.back());
    if (forced(q, id, done)) {
      q.resident.insert(id);
      q.imported.insert(id);
    }
    for (auto at = q.imported.begin(); at != q.imported.end();)
      at = q.resident.count(*at) ? std::next(at) : q.imported.erase(at);
    q.selected = both(q.selected, q.resident);
  }
};

}  // namespace store_testing
