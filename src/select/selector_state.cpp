// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "src/core/format.hpp"
#include "src/io/input.hpp"
#include "src/io/running_hash.hpp"
#include "src/select/selector_impl.hpp"

/// Layout of a saved state, version 3, all little-endian:
///   u64 magic, u32 version, u32 zero, u64 bytes in all, then the body, then u64 XXH3 of all before it.
///   body: shape (sources with their widths and windows), cadence, fallback, last report, then per ring: begin, end and
///   the rows it holds, oldest first; then the number of held scores and these. Version 2 had neither kinds of key
///   sources, which all were hidden states, nor held scores, and is read as well.
/// The policy and limits of the selector that wrote it are no part of it: whoever reads it has its own.

namespace flashmemory {
inline namespace v0 {

using detail::served_sequence;

namespace {

constexpr std::uint64_t state_magic = 0x31544154534d4c46;  // "FLMSTAT1"
constexpr std::uint32_t state_version = 3, first_version = 2;
/// No count in a state is larger: nobody has decoded so many tokens.
constexpr std::int64_t largest_count = std::int64_t{1} << 40;

[[noreturn]] void reject(const std::string& what) {
  throw format_error(status::bad_argument, "selector state: " + what);
}

class writer {
 public:
  template <class T>
  void put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    put(&value, sizeof value);
  }
  void put(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), from, from + bytes);
  }
  std::vector<std::byte> finish() {
    const std::uint64_t total = bytes_.size() + sizeof(std::uint64_t);
    std::memcpy(bytes_.data() + 16, &total, sizeof total);
    put(static_cast<std::uint64_t>(XXH3_64bits(bytes_.data(), bytes_.size())));
    return std::move(bytes_);
  }

 private:
  std::vector<std::byte> bytes_;
};

/// Takes a state from an input piece by piece, so that what it claims to hold costs no memory.
class reader {
 public:
  reader(detail::input& in, std::uint64_t bytes) : in_(in), left_(bytes) {}

  template <class T>
  T get(const char* field) {
    T value;
    take(&value, sizeof value, field);
    return value;
  }
  template <class T>
  void expect(T wanted, const char* field) {
    const T found = get<T>(field);
    if (found != wanted) reject(formatted("{} is {}, this selector has {}", field, found, wanted));
  }
  bool flag(const char* field) {
    const auto value = get<std::uint8_t>(field);
    if (value > 1) reject(formatted("{} is {}", field, value));
    return value != 0;
  }
  std::int64_t count(const char* field, std::int64_t least = 0) {
    const auto value = get<std::int64_t>(field);
    if (value < least || value > largest_count) reject(formatted("{} is {}", field, value));
    return value;
  }
  void take(void* data, std::size_t bytes, const char* field) {
    if (bytes > left_) reject(formatted("ends within {}", field));
    in_.read(data, bytes, field);
    hash_.add(data, bytes);
    left_ -= bytes;
  }
  std::uint64_t left() const noexcept { return left_; }
  std::uint64_t checksum() const noexcept { return hash_.value(); }

 private:
  detail::input& in_;
  std::uint64_t left_;
  detail::running_hash hash_;
};

void put_report(writer& out, const selection_report& r) {
  out.put(static_cast<std::int32_t>(r.reason));
  out.put(static_cast<std::int32_t>(r.stage));
  for (const std::int64_t value :
       {r.position, r.complete_chunks, r.budget, r.refreshes, r.plan.chunks, r.plan.candidates, r.plan.above,
        r.plan.above_dropped, r.plan.nan_scores, r.recall.selected, r.recall.hits, r.recall.recalled,
        r.recall.refused, r.recall.evicted, r.recall.bytes})
    out.put(value);
}

template <class Enum>
Enum get_enum(reader& in, Enum last, const char* field) {
  const auto value = in.get<std::int32_t>(field);
  if (value < 0 || value > static_cast<std::int32_t>(last)) reject(formatted("{} is {}", field, value));
  return static_cast<Enum>(value);
}

selection_report get_report(reader& in) {
  selection_report r;
  r.reason = get_enum(in, refresh_reason::prompt, "refresh reason");
  r.stage = get_enum(in, fallback_stage::everything, "stage of the report");
  r.position = in.count("position of the report", -1);
  for (std::int64_t* value : {&r.complete_chunks, &r.budget, &r.refreshes, &r.plan.chunks, &r.plan.candidates,
                              &r.plan.above, &r.plan.above_dropped, &r.plan.nan_scores, &r.recall.selected,
                              &r.recall.hits, &r.recall.recalled, &r.recall.refused, &r.recall.evicted})
    *value = in.count("a count of the report");
  r.recall.bytes = in.get<std::int64_t>("bytes of the report");
  if (r.recall.bytes < 0) reject(formatted("bytes of the report are {}", r.recall.bytes));
  return r;
}

/// Reads a ring into one of perhaps another capacity: the newest rows that it has room for. `put_row(token)` takes the
/// row in `row`.
template <class PutRow>
void get_ring(reader& in, detail::row_ring& ring, std::vector<float>& row, const PutRow& put_row) {
  const std::int64_t begin = in.count("begin of rows"), end = in.count("end of rows");
  const std::size_t bytes = std::size_t(ring.width) * sizeof(float);
  if (end < begin || std::uint64_t(end - begin) > in.left() / bytes)
    reject(formatted("rows [{}, {}) do not fit {} bytes", begin, end, in.left()));
  row.resize(std::size_t(ring.width));
  ring.begin = std::max(begin, end - ring.capacity);
  ring.end = end;
  for (std::int64_t token = begin; token < end; ++token) {
    in.take(row.data(), bytes, "rows");
    if (token >= ring.begin) put_row(token);
  }
}

/// The body's part between shape and rings.
struct scalars {
  bool started = false, requested = false;
  std::int64_t processed = 0, refreshed = 0, next_due = 0;
  fallback_stage stage = fallback_stage::normal;
  std::int32_t calls = 0, calm = 0;
  float mass = 0;
  selection_report report;
};

void expect_kind(tap_kind found, tap_kind wanted, std::int32_t layer, const char* what) {
  if (found != wanted)
    reject(formatted("{} of layer {} is {}, this selector has {}", what, layer, detail::name_of(found),
                     detail::name_of(wanted)));
}

/// Scores of up to `chunks` chunks, kept if the policy in force holds them.
void get_held(reader& in, std::int64_t chunks, detail::served_sequence& s) {
  const std::int64_t count = in.count("held scores");
  if (count > chunks) reject(formatted("{} held scores of {} chunks", count, chunks));
  for (std::int64_t c = 0; c < count; ++c) {
    const auto score = in.get<float>("held scores");
    if (std::isnan(score)) reject(formatted("the held score of chunk {} is no number", c));
    if (s.policy.hold > 0) s.held.push(score);
  }
}

scalars get_scalars(reader& in) {
  scalars s;
  s.started = in.flag("started");
  s.requested = in.flag("requested");
  s.processed = in.count("processed tokens");
  s.refreshed = in.count("refreshed tokens");
  s.next_due = in.count("next due tokens");
  s.stage = get_enum(in, fallback_stage::everything, "stage");
  s.calls = in.get<std::int32_t>("calls");
  s.calm = in.get<std::int32_t>("calm");
  s.mass = in.get<float>("attention mass");
  s.report = get_report(in);
  if (s.calls < 0 || s.calm < 0 || std::isnan(s.mass) || s.mass < 0)
    reject(formatted("calls {}, calm {}, attention mass {}", s.calls, s.calm, s.mass));
  return s;
}

/// Cadence and fallback as the policy in force would have them: a file neither delays a refresh beyond the interval nor
/// brings a stage that the policy does not know.
void apply(const scalars& found, detail::served_sequence& s) {
  const fallback_policy& fallback = s.policy.fallback;
  const bool falls_back = fallback.max_dropped < 1 || fallback.min_attention_mass > 0;
  s.started = found.started;
  s.requested = found.requested;
  s.processed = found.processed;
  s.refreshed = found.refreshed;
  s.next_due = std::min(found.next_due, found.processed + s.policy.interval);
  s.stage = falls_back ? found.stage : fallback_stage::normal;
  s.calls = std::min(found.calls, std::max(fallback.patience - 1, 0));
  s.calm = std::min(found.calm, std::max(fallback.recover_after - 1, 0));
  s.mass = found.mass;
  s.report = found.report;
}

}  // namespace

std::vector<std::byte> selector::save_state(sequence_handle sequence) const {
  const impl& im = *impl_;
  const served_sequence* s = im.find(sequence);
  if (s == nullptr)
    throw error(status::unknown_sequence, formatted("selector: sequence {} (generation {}) is not attached",
                                                    sequence.index, sequence.generation));
  for (const auto& input : s->keys)
    if (input.torn)
      throw error(
          status::index_keys_missing,
          formatted("selector: an append of index keys of sequence {} failed half way", sequence.index));
  writer out;
  out.put(state_magic);
  out.put(state_version);
  out.put(std::uint32_t{0});
  out.put(std::uint64_t{0});
  out.put(static_cast<std::int64_t>(im.query_sources.size()));
  for (const auto& source : im.query_sources) {
    out.put(source.layer);
    out.put(static_cast<std::int32_t>(source.kind));
    out.put(source.width);
  }
  out.put(static_cast<std::int64_t>(im.key_sources.size()));
  for (const auto& source : im.key_sources) {
    out.put(source.layer);
    out.put(static_cast<std::int32_t>(source.kind));
    out.put(source.width);
    out.put(source.window);
  }
  out.put(static_cast<std::uint8_t>(s->started));
  // A refresh under way does not travel along; it is made anew.
  out.put(static_cast<std::uint8_t>(s->requested || s->flight.phase != detail::flight_phase::none));
  out.put(s->processed);
  out.put(s->refreshed);
  out.put(s->next_due);
  out.put(static_cast<std::int32_t>(s->stage));
  out.put(s->calls);
  out.put(s->calm);
  out.put(s->mass);
  put_report(out, s->report);
  std::vector<float> row;
  const std::int64_t tokens = im.open_info(sequence).tokens;
  const auto put_ring = [&](const detail::row_ring& ring, detail::kept_row which) {
    // What a rollback has dropped will be observed anew.
    const std::int64_t end = std::min(ring.end, tokens), first = std::min(ring.first(), end);
    out.put(first);
    out.put(end);
    row.resize(std::size_t(ring.width));
    for (which.token = first; which.token < end; ++which.token) {
      im.scoring->read_row(*s, which, row.data());
      out.put(row.data(), row.size() * sizeof(float));
    }
  };
  for (std::size_t q = 0; q < s->queries.size(); ++q) put_ring(s->queries[q], {false, q, 0});
  for (std::size_t k = 0; k < s->keys.size(); ++k) put_ring(s->keys[k].ring, {true, k, 0});
  const std::int64_t held = std::min(s->held.count(), tokens / im.geometry.tokens_per_chunk());
  out.put(held);
  for (std::int64_t c = 0; c < held; ++c) out.put(s->held[c]);
  return out.finish();
}

void selector::load_state(sequence_handle sequence, const std::byte* data, std::size_t bytes,
                          const selection_policy* policy) {
  constexpr std::size_t frame = 4 * sizeof(std::uint64_t);
  if (data == nullptr || bytes < frame) reject(formatted("{} bytes are too few", bytes));
  detail::memory_input in(data, bytes, "selector state");
  detail::selector_access::load_state(*this, sequence, in, bytes, policy);
}

void detail::selector_access::load_state(selector& select, sequence_handle sequence, input& from,
                                         std::uint64_t bytes, const selection_policy* policy) {
  selector::impl& im = *select.impl_;
  constexpr std::uint64_t checksum_bytes = sizeof(std::uint64_t);
  if (bytes < 4 * sizeof(std::uint64_t)) reject(formatted("{} bytes are too few", bytes));
  reader in(from, bytes - checksum_bytes);
  if (in.get<std::uint64_t>("magic") != state_magic) reject("it is no selector state");
  const auto version = in.get<std::uint32_t>("version");
  if (version < first_version || version > state_version)
    reject(formatted("version {}, this library reads version {}", version, state_version));
  if (in.get<std::uint32_t>("reserved") != 0) reject("reserved bytes are not zero");
  if (const auto total = in.get<std::uint64_t>("bytes"); total != bytes)
    reject(formatted("it has {} bytes and says {}", bytes, total));

  in.expect(static_cast<std::int64_t>(im.query_sources.size()), "query sources");
  for (const auto& source : im.query_sources) {
    in.expect(source.layer, "query layer");
    expect_kind(get_enum(in, tap_kind::keys, "query kind"), source.kind, source.layer, "a query");
    in.expect(source.width, "query width");
  }
  in.expect(static_cast<std::int64_t>(im.key_sources.size()), "key sources");
  for (const auto& source : im.key_sources) {
    in.expect(source.layer, "key layer");
    expect_kind(version < 3 ? tap_kind::hidden : get_enum(in, tap_kind::keys, "kind of a key's rows"),
                source.kind, source.layer, "what a key is made from");
    in.expect(source.width, "key width");
    in.expect(source.window, "key window");
  }
  const scalars found = get_scalars(in);

  const sequence_info info = im.open_info(sequence);
  const selection_policy use = policy != nullptr ? *policy : im.policy;
  served_sequence* s = nullptr;
  try {
    s = &im.prepare(sequence, info, use);
  } catch (const argument_error& e) {
    if (im.find(sequence) != nullptr) throw;
    throw format_error(e.code(), formatted("selector state: {}", e.what()));
  }
  // Until it is active the place belongs to nobody: whatever is thrown from here on changes nothing.
  s->own_policy = policy != nullptr;
  apply(found, *s);
  std::vector<float> row;
  const auto fill_ring = [&](row_ring& ring, kept_row which) {
    get_ring(in, ring, row, [&](std::int64_t token) {
      which.token = token;
      im.scoring->write_row(*s, which, row.data());
    });
  };
  for (std::size_t q = 0; q < s->queries.size(); ++q) fill_ring(s->queries[q], {false, q, 0});
  for (std::size_t k = 0; k < s->keys.size(); ++k) {
    const key_source& source = im.key_sources[k];
    row_ring& ring = s->keys[k].ring;
    fill_ring(ring, {true, k, 0});
    if (use.mode == selection_mode::everything) continue;
    if (!im.can_go_on(source, ring, info.tokens))
      reject(formatted("its key window holds tokens [{}, {}), the sequence has {}", ring.first(), ring.end,
                       info.tokens));
    for (const std::int32_t lane : source.lanes) {
      index_key_pages pages;
      const status code = im.store.index_keys(sequence, lane, &pages);
      if (code != status::ok || pages.keys != info.tokens / im.geometry.index_keys.tokens_per_key)
        reject(
            formatted("the sequence holds {} keys of lane {} at {} tokens", pages.keys, lane, info.tokens));
    }
  }
  if (version >= 3) get_held(in, info.tokens / im.geometry.tokens_per_chunk(), *s);
  if (in.left() != 0) reject(formatted("{} bytes too many", in.left()));
  std::uint64_t checksum;
  from.read(&checksum, sizeof checksum, "checksum");
  if (checksum != in.checksum()) reject("the checksum does not match");
  im.activate(*s);
}

}  // namespace v0
}  // namespace flashmemory
