// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "src/core/format.hpp"
#include "src/select/selector_impl.hpp"

/// Layout of a saved state, all little-endian:
///   u64 magic, u32 version, u32 zero, u64 bytes in all, then the body, then u64 XXH3 of all before it.
///   body: shape (query rows, rollback, sources with their widths and windows), cadence, fallback, last
///   report, the sequence's own policy if it has one, then per ring: begin, end and the rows it holds, oldest
///   first.

namespace flashmemory {
inline namespace v0 {

using detail::served_sequence;

namespace {

constexpr std::uint64_t state_magic = 0x31544154534d4c46;  // "FLMSTAT1"
constexpr std::uint32_t state_version = 1;

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

class reader {
 public:
  reader(const std::byte* data, std::size_t bytes) : data_(data), left_(bytes) {}

  template <class T>
  T get(const char* field) {
    T value;
    std::memcpy(&value, take(sizeof value, field), sizeof value);
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
  const std::byte* take(std::size_t bytes, const char* field) {
    if (bytes > left_) reject(formatted("ends within {}", field));
    const std::byte* at = data_;
    data_ += bytes;
    left_ -= bytes;
    return at;
  }
  std::size_t left() const noexcept { return left_; }

 private:
  const std::byte* data_;
  std::size_t left_;
};

void put_policy(writer& out, const selection_policy& p) {
  out.put(static_cast<std::int32_t>(p.mode));
  out.put(p.interval);
  out.put(p.sink_chunks);
  out.put(p.recent_chunks);
  out.put(p.budget_fraction);
  out.put(p.max_chunks);
  out.put(static_cast<std::uint64_t>(p.budget_bytes));
  out.put(p.min_chunks);
  out.put(p.threshold);
  out.put(p.hysteresis);
  out.put(p.fallback.max_dropped);
  out.put(p.fallback.min_attention_mass);
  out.put(p.fallback.widen_factor);
  out.put(p.fallback.patience);
  out.put(p.fallback.recover_after);
}

selection_policy get_policy(reader& in) {
  selection_policy p;
  p.mode = static_cast<selection_mode>(in.get<std::int32_t>("policy mode"));
  p.interval = in.get<std::int32_t>("policy interval");
  p.sink_chunks = in.get<std::int32_t>("policy sink_chunks");
  p.recent_chunks = in.get<std::int32_t>("policy recent_chunks");
  p.budget_fraction = in.get<double>("policy budget_fraction");
  p.max_chunks = in.get<std::int64_t>("policy max_chunks");
  p.budget_bytes = static_cast<std::size_t>(in.get<std::uint64_t>("policy budget_bytes"));
  p.min_chunks = in.get<std::int64_t>("policy min_chunks");
  p.threshold = in.get<float>("policy threshold");
  p.hysteresis = in.get<float>("policy hysteresis");
  p.fallback.max_dropped = in.get<float>("policy max_dropped");
  p.fallback.min_attention_mass = in.get<float>("policy min_attention_mass");
  p.fallback.widen_factor = in.get<float>("policy widen_factor");
  p.fallback.patience = in.get<std::int32_t>("policy patience");
  p.fallback.recover_after = in.get<std::int32_t>("policy recover_after");
  return p;
}

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
  r.reason = get_enum(in, refresh_reason::requested, "refresh reason");
  r.stage = get_enum(in, fallback_stage::everything, "stage of the report");
  for (std::int64_t* value :
       {&r.position, &r.complete_chunks, &r.budget, &r.refreshes, &r.plan.chunks, &r.plan.candidates,
        &r.plan.above, &r.plan.above_dropped, &r.plan.nan_scores, &r.recall.selected, &r.recall.hits,
        &r.recall.recalled, &r.recall.refused, &r.recall.evicted, &r.recall.bytes})
    *value = in.get<std::int64_t>("report");
  return r;
}

/// Checks the ring's extents; `put_row` takes the rows in the second pass.
template <class PutRow>
void get_ring(reader& in, const detail::row_ring& shape, detail::row_ring* out, const PutRow& put_row) {
  detail::row_ring ring = shape;
  ring.begin = in.get<std::int64_t>("begin of rows");
  ring.end = in.get<std::int64_t>("end of rows");
  if (ring.begin < 0 || ring.end < ring.begin || ring.end - ring.begin > ring.capacity)
    reject(formatted("rows [{}, {}) do not fit {} places", ring.begin, ring.end, ring.capacity));
  const std::size_t bytes = std::size_t(ring.width) * sizeof(float);
  for (std::int64_t t = ring.begin; t < ring.end; ++t) {
    const std::byte* row = in.take(bytes, "rows");
    if (out != nullptr) put_row(t, row);
  }
  if (out != nullptr) *out = ring;
}

void check_ring(reader& in, const detail::row_ring& shape) {
  get_ring(in, shape, nullptr, [](std::int64_t, const std::byte*) {});
}

/// The body's part between header and rings.
struct scalars {
  bool started = false, requested = false;
  std::int64_t processed = 0, refreshed = 0, next_due = 0;
  fallback_stage stage = fallback_stage::normal;
  std::int32_t calls = 0, calm = 0;
  float mass = 0;
  selection_report report;
  bool own_policy = false;
  selection_policy policy;
};

scalars get_scalars(reader& in, std::int64_t max_tokens) {
  scalars s;
  s.started = in.flag("started");
  s.requested = in.flag("requested");
  s.processed = in.get<std::int64_t>("processed tokens");
  s.refreshed = in.get<std::int64_t>("refreshed tokens");
  s.next_due = in.get<std::int64_t>("next due tokens");
  s.stage = get_enum(in, fallback_stage::everything, "stage");
  s.calls = in.get<std::int32_t>("calls");
  s.calm = in.get<std::int32_t>("calm");
  s.mass = in.get<float>("attention mass");
  s.report = get_report(in);
  s.own_policy = in.flag("own policy");
  if (s.own_policy) s.policy = get_policy(in);
  constexpr std::int64_t far = std::int64_t{1} << 40;
  for (const std::int64_t tokens : {s.processed, s.refreshed})
    if (tokens < 0 || tokens > max_tokens) reject(formatted("{} processed tokens", tokens));
  if (s.next_due < 0 || s.next_due > far || s.calls < 0 || s.calm < 0 || std::isnan(s.mass) || s.mass < 0)
    reject("the cadence is out of range");
  return s;
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
  out.put(std::int64_t{impl::query_rows});
  out.put(std::int64_t{im.options.max_rollback_tokens});
  out.put(static_cast<std::int64_t>(im.query_sources.size()));
  for (const auto& source : im.query_sources) {
    out.put(source.layer);
    out.put(static_cast<std::int32_t>(source.kind));
    out.put(source.width);
  }
  out.put(static_cast<std::int64_t>(im.key_sources.size()));
  for (const auto& source : im.key_sources) {
    out.put(source.layer);
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
  out.put(static_cast<std::uint8_t>(s->own_policy));
  if (s->own_policy) put_policy(out, s->policy);
  std::vector<float> row;
  const auto put_ring = [&](const detail::row_ring& ring, detail::kept_row which) {
    out.put(ring.first());
    out.put(ring.end);
    row.resize(std::size_t(ring.width));
    for (which.token = ring.first(); which.token < ring.end; ++which.token) {
      im.scoring->read_row(*s, which, row.data());
      out.put(row.data(), row.size() * sizeof(float));
    }
  };
  for (std::size_t q = 0; q < s->queries.size(); ++q) put_ring(s->queries[q], {false, q, 0});
  for (std::size_t k = 0; k < s->keys.size(); ++k) put_ring(s->keys[k].ring, {true, k, 0});
  return out.finish();
}

void selector::load_state(sequence_handle sequence, const std::byte* data, std::size_t bytes) {
  impl& im = *impl_;
  constexpr std::size_t frame = 4 * sizeof(std::uint64_t);
  if (data == nullptr || bytes < frame) reject(formatted("{} bytes are too few", bytes));
  reader in(data, bytes - sizeof(std::uint64_t));
  if (in.get<std::uint64_t>("magic") != state_magic) reject("it is no selector state");
  if (const auto version = in.get<std::uint32_t>("version"); version != state_version)
    reject(formatted("version {}, this library reads {}", version, state_version));
  if (in.get<std::uint32_t>("reserved") != 0) reject("reserved bytes are not zero");
  if (const auto total = in.get<std::uint64_t>("bytes"); total != bytes)
    reject(formatted("it has {} bytes and says {}", bytes, total));
  std::uint64_t checksum;
  std::memcpy(&checksum, data + bytes - sizeof checksum, sizeof checksum);
  if (XXH3_64bits(data, bytes - sizeof checksum) != checksum) reject("the checksum does not match");

  in.expect<std::int64_t>(impl::query_rows, "query rows");
  in.expect<std::int64_t>(im.options.max_rollback_tokens, "max_rollback_tokens");
  in.expect(static_cast<std::int64_t>(im.query_sources.size()), "query sources");
  for (const auto& source : im.query_sources) {
    in.expect(source.layer, "query layer");
    in.expect(static_cast<std::int32_t>(source.kind), "query kind");
    in.expect(source.width, "query width");
  }
  in.expect(static_cast<std::int64_t>(im.key_sources.size()), "key sources");
  for (const auto& source : im.key_sources) {
    in.expect(source.layer, "key layer");
    in.expect(source.width, "key width");
    in.expect(source.window, "key window");
  }

  const sequence_info info = im.open_info(sequence);
  const scalars found = get_scalars(in, info.options.max_tokens);
  const reader rings = in;
  for (const auto& source : im.query_sources) {
    detail::row_ring shape;
    shape.width = source.width;
    shape.capacity = impl::query_rows;
    check_ring(in, shape);
  }
  const selection_policy& use = found.own_policy ? found.policy : im.policy;
  for (const auto& source : im.key_sources) {
    detail::row_ring shape;
    shape.width = source.width;
    shape.capacity = source.window + im.options.max_rollback_tokens;
    reader peek = in;
    peek.get<std::int64_t>("begin of rows");
    const auto end = peek.get<std::int64_t>("end of rows");
    check_ring(in, shape);
    if (use.mode == selection_mode::everything) continue;
    if (info.tokens > end || info.tokens < end - im.options.max_rollback_tokens)
      reject(formatted("its key window ends at {} tokens, the sequence holds {}", end, info.tokens));
    for (const std::int32_t lane : source.lanes) {
      index_key_pages pages;
      const status code = im.store.index_keys(sequence, lane, &pages);
      if (code != status::ok || pages.keys != info.tokens / im.geometry.index_keys.tokens_per_key)
        reject(
            formatted("the sequence holds {} keys of lane {} at {} tokens", pages.keys, lane, info.tokens));
    }
  }
  if (in.left() != 0) reject(formatted("{} bytes too many", in.left()));

  served_sequence* s = nullptr;
  try {
    s = &im.prepare(sequence, info, use);
  } catch (const argument_error& e) {
    if (im.find(sequence) != nullptr) throw;
    throw format_error(e.code(), formatted("selector state: {}", e.what()));
  }
  s->own_policy = found.own_policy;
  s->started = found.started;
  s->requested = found.requested;
  s->processed = found.processed;
  s->refreshed = found.refreshed;
  s->next_due = found.next_due;
  s->stage = found.stage;
  s->calls = found.calls;
  s->calm = found.calm;
  s->mass = found.mass;
  s->report = found.report;
  reader again = rings;
  std::vector<float> row;
  const auto fill_ring = [&](detail::row_ring& ring, detail::kept_row which) {
    row.resize(std::size_t(ring.width));
    get_ring(again, ring, &ring, [&](std::int64_t token, const std::byte* from) {
      std::memcpy(row.data(), from, row.size() * sizeof(float));
      which.token = token;
      im.scoring->write_row(*s, which, row.data());
    });
  };
  for (std::size_t q = 0; q < s->queries.size(); ++q) fill_ring(s->queries[q], {false, q, 0});
  for (std::size_t k = 0; k < s->keys.size(); ++k) fill_ring(s->keys[k].ring, {true, k, 0});
  im.activate(*s);
}

}  // namespace v0
}  // namespace flashmemory
