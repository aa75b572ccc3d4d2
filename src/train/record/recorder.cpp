// SPDX-License-Identifier: MIT
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <tuple>
#include <utility>

#include "src/core/convert.hpp"
#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/train/record/document_check.hpp"
#include "src/train/record/recorder_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {

using detail::pending_write;
using detail::waiting_document;

namespace {

[[noreturn]] void refuse(status code, const std::string& what) {
  throw argument_error(code, "recorder: " + what);
}

void require_finite(const std::string& what, const float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i]))
      throw error(status::not_finite, formatted("recorder: {} hold {}", what, values[i]));
}

/// Rows of a tensor as floats. \throws argument_error
std::vector<float> floats_of(const char* what, const_tensor<2> rows, std::int64_t width) {
  if (rows.type != dtype::f32 && rows.type != dtype::bf16 && rows.type != dtype::f16)
    refuse(status::bad_dtype, formatted("{} of type {}", what, to_string(rows.type)));
  if (rows.shape[0] < 0 || rows.shape[1] != width)
    refuse(status::bad_shape,
           formatted("{} of [{}, {}], the width is {}", what, rows.shape[0], rows.shape[1], width));
  if (rows.shape[0] > 0 && rows.data == nullptr) refuse(status::null_data, formatted("{} are null", what));
  std::vector<float> out(static_cast<std::size_t>(rows.shape[0] * width));
  for (std::int64_t r = 0; r < rows.shape[0]; ++r)
    for (std::int64_t i = 0; i < width; ++i)
      out[static_cast<std::size_t>(r * width + i)] =
          flashmemory::detail::load_float(rows.data, rows.type, r * rows.stride[0] + i * rows.stride[1]);
  require_finite(what, out.data(), static_cast<std::int64_t>(out.size()));
  return out;
}

/// Floats as a shard stores them.
std::vector<std::byte> stored(const float* values, std::size_t count, dtype type) {
  std::vector<std::byte> out(count * size_of(type));
  for (std::size_t i = 0; i < count; ++i) {
    if (type == dtype::f32) {
      std::memcpy(out.data() + 4 * i, values + i, 4);
    } else {
      bfloat16 half;
      flashmemory::detail::from_float(values[i], half);
      std::memcpy(out.data() + 2 * i, &half.bits, 2);
    }
  }
  return out;
}

bool is_utf8(const std::string& text) {
  try {
    static_cast<void>(json_text(nlohmann::json(text)));
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

void check_options(const recorder_options& o) {
  if (!detail::is_writer_name(o.writer))
    refuse(status::bad_argument, "writer must be 1 to 64 letters, digits, '-' or '_'");
  if (o.rows != dtype::bf16 && o.rows != dtype::f32)
    refuse(status::bad_dtype, formatted("rows are stored as bf16 or f32, not {}", to_string(o.rows)));
  for (const auto& [name, value] : o.settings)
    if (!is_utf8(name) || !is_utf8(value))
      refuse(status::bad_argument,
             formatted("the setting '{}' is not UTF-8", flashmemory::detail::printable(name)));
  if (o.memory_budget == 0 || o.shard_bytes == 0) refuse(status::bad_argument, "a budget of 0 bytes");
  if (o.shard_bytes > o.memory_budget)
    refuse(status::bad_argument,
           formatted("shards of {} bytes with a memory budget of {}", o.shard_bytes, o.memory_budget));
}

recording_geometry checked(const recording_geometry& g, const recorder_options& o) {
  check_options(o);
  validate(g);
  return g;
}

}  // namespace

recorder::impl::impl(const std::string& path, const recording_geometry& g, const recorder_options& o)
    : folder(path),
      geometry(checked(g, o)),
      options(o),
      lock(path, o.writer),
      listed(detail::resume_manifest(path, g, o)),
      in_force(detail::digest_of(listed)),
      next_document(listed.next_document),
      owner(::getpid()) {}

waiting_document& recorder::impl::find(recording_id id) {
  const auto found = documents.find(id);
  if (found == documents.end()) refuse(status::unknown_sequence, formatted("{} is no open document", id));
  return found->second;
}

waiting_document& recorder::impl::find_open(recording_id id) {
  waiting_document& doc = find(id);
  if (doc.finished) refuse(status::unknown_sequence, formatted("document {} is finished", id));
  return doc;
}

recorder::recorder(const std::string& folder, const recording_geometry& geometry,
                   const recorder_options& options)
    : impl_(std::make_unique<impl>(folder, geometry, options)) {}

recorder::~recorder() {
  if (::getpid() != impl_->owner) return;
  try {
    impl_->write_out(true);
  } catch (...) {  // flush() is there for whoever wants to know
  }
}

const recording_geometry& recorder::geometry() const noexcept { return impl_->geometry; }

recorder_counters recorder::counters() const noexcept {
  recorder_counters c = impl_->counters;
  c.documents = static_cast<std::int64_t>(impl_->listed.documents.size());
  for (const auto& [id, doc] : impl_->documents) c.documents += doc.finished;
  c.shards = static_cast<std::int64_t>(impl_->listed.shards.size());
  return c;
}

recording_id recorder::begin(const std::string& tag, dataset_split split) {
  if (split != dataset_split::train && split != dataset_split::validation)
    refuse(status::bad_argument, "a split that is neither train nor validation");
  if (!is_utf8(tag)) refuse(status::bad_argument, "the tag is not UTF-8");
  const recording_geometry& g = impl_->geometry;
  waiting_document doc;
  doc.entry.number = impl_->next_document;
  doc.entry.info.tag = tag;
  doc.entry.info.split = split;
  doc.queries.resize(g.queries.size());
  doc.keys.resize(g.keys.size());
  doc.key_count.resize(g.keys.size());
  doc.feeds.resize(g.keys.size(), detail::key_feed::none);
  std::map<std::int32_t, std::pair<std::int64_t, std::int64_t>> windows;  // layer -> width, largest window
  for (const recorded_key_stream& s : g.keys) {
    if (s.native()) continue;
    auto& w = windows[s.layer];
    w = {s.width, std::max<std::int64_t>(w.second, s.window)};
  }
  for (const auto& [layer, w] : windows) doc.pools.emplace(layer, detail::key_pool(w.first, w.second));
  impl_->documents.emplace(impl_->next_document, std::move(doc));
  return impl_->next_document++;
}

void recorder::add_query(recording_id id, std::int64_t position, const float* const* rows) {
  waiting_document& doc = impl_->find_open(id);
  const auto& taps = impl_->geometry.queries;
  if (position <= doc.last_query)
    refuse(status::out_of_order, formatted("query position {} after {}", position, doc.last_query));
  if (rows == nullptr && !taps.empty()) refuse(status::null_data, "rows is null");
  std::vector<std::vector<std::byte>> values;
  std::vector<pending_write> writes{{&doc.positions, &position, sizeof position}};
  values.reserve(taps.size());
  for (std::size_t i = 0; i < taps.size(); ++i) {
    if (rows[i] == nullptr) refuse(status::null_data, formatted("row {} is null", i));
    require_finite(formatted("queries of layer {}", taps[i].layer), rows[i], taps[i].width);
    values.push_back(stored(rows[i], static_cast<std::size_t>(taps[i].width), impl_->options.rows));
    writes.push_back({&doc.queries[i], values.back().data(), values.back().size()});
  }
  impl_->take(writes);
  doc.last_query = position;
  ++doc.entry.info.queries;
}

void recorder::add_hidden(recording_id id, std::int32_t layer, std::int64_t position,
                          const_tensor<2> hidden) {
  waiting_document& doc = impl_->find_open(id);
  const auto found = doc.pools.find(layer);
  if (found == doc.pools.end()) return;
  detail::key_pool& pool = found->second;
  const std::vector<float> rows = floats_of("hidden states", hidden, pool.width());
  if (position != pool.tokens())
    refuse(status::out_of_order,
           formatted("hidden states of layer {} at {}, expected {}", layer, position, pool.tokens()));
  const auto& streams = impl_->geometry.keys;
  std::vector<std::vector<std::byte>> values;
  std::vector<pending_write> writes;
  std::vector<std::pair<std::size_t, std::int64_t>> grown;
  values.reserve(streams.size());
  for (std::size_t s = 0; s < streams.size(); ++s) {
    if (streams[s].layer != layer || streams[s].native()) continue;
    if (doc.feeds[s] == detail::key_feed::engine)
      refuse(status::bad_argument, formatted("the engine gives the keys of stream {} itself", s));
    const std::vector<float> means = pool.pooled(rows, streams[s].tokens_per_key, streams[s].window);
    require_finite("averaged hidden states", means.data(), static_cast<std::int64_t>(means.size()));
    values.push_back(stored(means.data(), means.size(), impl_->options.rows));
    writes.push_back({&doc.keys[s], values.back().data(), values.back().size()});
    grown.emplace_back(s, static_cast<std::int64_t>(means.size()) / streams[s].width);
  }
  impl_->take(writes);
  pool.advance(rows);
  for (const auto& [s, count] : grown) {
    doc.key_count[s] += count;
    doc.feeds[s] = detail::key_feed::hidden;
  }
}

void recorder::add_key_inputs(recording_id id, std::int32_t stream, const_tensor<2> inputs) {
  waiting_document& doc = impl_->find_open(id);
  const auto s = static_cast<std::size_t>(stream);
  if (stream < 0 || s >= doc.keys.size() || impl_->geometry.keys[s].native())
    refuse(status::out_of_range, formatted("index-key lane {} takes no encoder inputs", stream));
  if (doc.feeds[s] == detail::key_feed::hidden)
    refuse(status::bad_argument, formatted("the keys of stream {} come from add_hidden()", stream));
  const std::vector<float> rows = floats_of("key encoder inputs", inputs, impl_->geometry.keys[s].width);
  const std::vector<std::byte> values = stored(rows.data(), rows.size(), impl_->options.rows);
  impl_->take({{&doc.keys[s], values.data(), values.size()}});
  doc.key_count[s] += inputs.shape[0];
  doc.feeds[s] = detail::key_feed::engine;
}

void recorder::add_native_keys(recording_id id, std::int32_t stream, view<const std::byte, 2> keys) {
  waiting_document& doc = impl_->find_open(id);
  const auto s = static_cast<std::size_t>(stream);
  if (stream < 0 || s >= doc.keys.size() || !impl_->geometry.keys[s].native())
    refuse(status::out_of_range, formatted("index-key lane {} takes no native keys", stream));
  const std::int32_t bytes = impl_->geometry.keys[s].key_bytes;
  if (keys.shape[0] < 0 || keys.shape[1] != bytes)
    refuse(status::bad_shape,
           formatted("keys of [{}, {}], a key has {} bytes", keys.shape[0], keys.shape[1], bytes));
  if (keys.shape[0] > 0 && keys.data == nullptr) refuse(status::null_data, "keys is null");
  std::vector<std::byte> rows(static_cast<std::size_t>(keys.shape[0] * bytes));
  for (std::int64_t k = 0; k < keys.shape[0]; ++k)
    for (std::int32_t i = 0; i < bytes; ++i) rows[static_cast<std::size_t>(k * bytes + i)] = keys(k, i);
  for (std::int64_t k = 0; k < keys.shape[0]; ++k)
    if (!detail::is_finite_key(rows.data() + k * bytes, bytes))
      throw error(status::not_finite, formatted("recorder: key {} of a part holds NaN or Inf", k));
  impl_->take({{&doc.keys[s], rows.data(), rows.size()}});
  doc.key_count[s] += keys.shape[0];
}

void recorder::add_attention(recording_id id, std::int64_t position,
                             const std::vector<attention_entry>& items) {
  waiting_document& doc = impl_->find_open(id);
  const recording_geometry& g = impl_->geometry;
  if (position <= doc.last_attended)
    refuse(status::out_of_order, formatted("attention at {} after {}", position, doc.last_attended));
  const std::int64_t visible = (position + 1) / g.tokens_per_entry;
  std::vector<attention_entry> sorted = items;
  const auto place = [](const attention_entry& a) { return std::tie(a.layer, a.head, a.entry); };
  std::sort(sorted.begin(), sorted.end(),
            [&](const attention_entry& a, const attention_entry& b) { return place(a) < place(b); });
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const attention_entry& a = sorted[i];
    if (a.layer < 0 || a.layer >= g.layers || a.head < 0 || a.head >= g.heads || a.entry < 0 ||
        a.entry >= visible || a.entry > std::int64_t{UINT32_MAX})
      refuse(status::out_of_range, formatted("attention at {} of layer {} and head {} to entry {}", position,
                                             a.layer, a.head, a.entry));
    if (!(a.mass > 0 && a.mass <= 1))
      refuse(status::bad_argument, formatted("an attention mass of {}", a.mass));
    if (i > 0 && place(sorted[i - 1]) == place(a))
      refuse(status::bad_argument, formatted("attention at {} names entry {} twice", position, a.entry));
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const attention_entry& a, const attention_entry& b) {
    return std::tie(a.layer, a.head, b.mass) < std::tie(b.layer, b.head, a.mass);
  });
  std::vector<std::uint16_t> layer, head;
  std::vector<std::uint32_t> entry;
  std::vector<float> mass;
  for (const attention_entry& a : sorted) {
    layer.push_back(static_cast<std::uint16_t>(a.layer));
    head.push_back(static_cast<std::uint16_t>(a.head));
    entry.push_back(static_cast<std::uint32_t>(a.entry));
    mass.push_back(a.mass);
  }
  const auto count = static_cast<std::int64_t>(sorted.size());
  impl_->take({{&doc.attended, &position, sizeof position},
               {&doc.items, &count, sizeof count},
               {&doc.layer, layer.data(), layer.size() * sizeof(std::uint16_t)},
               {&doc.head, head.data(), head.size() * sizeof(std::uint16_t)},
               {&doc.entries, entry.data(), entry.size() * sizeof(std::uint32_t)},
               {&doc.mass, mass.data(), mass.size() * sizeof(float)}});
  doc.last_attended = position;
  ++doc.entry.info.attention_tokens;
}

void recorder::add_evidence(recording_id id, const evidence_range& need) {
  waiting_document& doc = impl_->find_open(id);
  if (need.token_begin < 0 || need.token_end <= need.token_begin || need.entry_begin < 0 ||
      need.entry_end <= need.entry_begin)
    refuse(status::bad_argument,
           formatted("evidence of tokens [{}, {}) and entries [{}, {})", need.token_begin, need.token_end,
                     need.entry_begin, need.entry_end));
  doc.needs.push_back(need);
}

void recorder::finish(recording_id id, std::int64_t tokens) {
  waiting_document& doc = impl_->find_open(id);
  const recording_geometry& g = impl_->geometry;
  const auto beyond = [&](const char* what, std::int64_t last) {
    refuse(status::out_of_range, formatted("{} {} in a document of {} tokens", what, last, tokens));
  };
  if (tokens < 0) refuse(status::bad_argument, formatted("a document of {} tokens", tokens));
  if (doc.last_query >= tokens) beyond("query position", doc.last_query);
  if (doc.last_attended >= tokens) beyond("attention at position", doc.last_attended);
  for (std::size_t s = 0; s < g.keys.size(); ++s)
    if (doc.key_count[s] != tokens / g.keys[s].tokens_per_key)
      refuse(status::bad_shape, formatted("index-key lane {} has {} keys, {} tokens make {}", s,
                                          doc.key_count[s], tokens, tokens / g.keys[s].tokens_per_key));
  std::vector<evidence_range> needs = doc.needs;
  std::stable_sort(needs.begin(), needs.end(), [](const evidence_range& a, const evidence_range& b) {
    return a.token_begin < b.token_begin;
  });
  for (const evidence_range& need : needs)
    if (need.token_end > tokens || need.entry_end > tokens / g.tokens_per_entry)
      beyond("evidence up to", std::max(need.token_end, need.entry_end * g.tokens_per_entry));

  static_assert(sizeof(evidence_range) == 4 * sizeof(std::int64_t), "stored as it lies");
  impl_->take({{&doc.evidence, needs.data(), needs.size() * sizeof(evidence_range)}});
  doc.entry.info.tokens = tokens;
  doc.entry.info.evidence = static_cast<std::int64_t>(needs.size());
  doc.finished = true;
  if (impl_->waiting < impl_->options.shard_bytes) return;
  try {
    impl_->write_out(true);
  } catch (...) {
    doc.finished = false;
    impl_->waiting -= doc.evidence.allocated();
    doc.evidence.clear();
    throw;
  }
}

void recorder::drop(recording_id id) {
  waiting_document& doc = impl_->find_open(id);
  doc.each_column([&](const detail::column& c) { impl_->waiting -= c.allocated(); });
  impl_->documents.erase(id);
  ++impl_->counters.dropped;
}

void recorder::flush() { impl_->write_out(false); }

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
