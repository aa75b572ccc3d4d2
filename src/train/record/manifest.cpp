// SPDX-License-Identifier: MIT
#include "src/train/record/manifest.hpp"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <set>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/io/safetensors_header.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

using json = nlohmann::json;

constexpr const char* format_name = "flashmemory recordings";
constexpr std::int64_t format_version = 1;
constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t largest_int = std::numeric_limits<std::int32_t>::max();

json to_json(const recording_geometry& g) {
  json queries = json::array(), keys = json::array();
  for (const query_tap& tap : g.queries)
    queries.push_back({{"layer", tap.layer},
                       {"kind", tap.kind == tap_kind::hidden ? "hidden" : "queries"},
                       {"width", tap.width}});
  for (const recorded_key_stream& stream : g.keys)
    keys.push_back({{"layer", stream.layer},
                    {"width", stream.width},
                    {"tokens_per_key", stream.tokens_per_key},
                    {"window", stream.window},
                    {"key_bytes", stream.key_bytes}});
  return {{"layers", g.layers},
          {"heads", g.heads},
          {"tokens_per_entry", g.tokens_per_entry},
          {"entries_per_chunk", g.entries_per_chunk},
          {"queries", queries},
          {"keys", keys},
          {"model_fingerprint", g.model_fingerprint}};
}

/// Reads fields of one JSON value; complaints name the file and the path to the field.
class field_reader {
 public:
  field_reader(const json& value, std::string where, const std::string& file)
      : value_(value), where_(std::move(where)), file_(file) {
    if (!value.is_object()) fail("is not an object");
  }

  const json& at(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end()) fail(formatted("has no '{}'", key));
    return *found;
  }
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const {
    const json& v = at(key);
    if (!v.is_number_integer() ||
        (v.is_number_unsigned() && v.get<std::uint64_t>() > std::uint64_t(no_limit)))
      fail(formatted("'{}' is not an integer", key));
    const auto value = v.get<std::int64_t>();
    if (value < least || value > most) fail(formatted("'{}' is {}", key, value));
    return value;
  }
  std::int32_t small(const char* key, std::int64_t least) const {
    return static_cast<std::int32_t>(integer(key, least, largest_int));
  }
  std::string text(const char* key) const {
    const json& v = at(key);
    if (!v.is_string()) fail(formatted("'{}' is not a string", key));
    return v.get<std::string>();
  }
  std::uint64_t checksum(const char* key) const {
    const std::string hex = text(key);
    if (hex.size() != 16 || hex.find_first_not_of("0123456789abcdef") != std::string::npos)
      fail(formatted("'{}' is no checksum", key));
    return std::stoull(hex, nullptr, 16);
  }
  std::map<std::string, std::string> texts() const {
    std::map<std::string, std::string> all;
    for (const auto& item : value_.items()) all[item.key()] = text(item.key().c_str());
    return all;
  }
  const json& list(const char* key) const {
    const json& v = at(key);
    if (!v.is_array()) fail(formatted("'{}' is not a list", key));
    return v;
  }
  template <class F>
  void each(const char* key, F&& f) const {
    std::size_t i = 0;
    for (const json& item : list(key))
      f(field_reader(item, formatted("{}{}[{}]", prefix(), key, i++), file_));
  }
  field_reader object(const char* key) const { return field_reader(at(key), prefix() + key, file_); }

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(status::bad_argument,
                       formatted("{}: {} {}", file_, where_.empty() ? "the manifest" : where_, what));
  }

 private:
  std::string prefix() const { return where_.empty() ? "" : where_ + "."; }

  const json& value_;
  std::string where_;
  const std::string& file_;
};

recording_geometry read_geometry(const field_reader& from) {
  recording_geometry g;
  g.layers = from.small("layers", 1);
  g.heads = from.small("heads", 1);
  g.tokens_per_entry = from.small("tokens_per_entry", 1);
  g.entries_per_chunk = from.small("entries_per_chunk", 1);
  g.model_fingerprint = from.text("model_fingerprint");
  from.each("queries", [&](const field_reader& f) {
    const std::string kind = f.text("kind");
    if (kind != "hidden" && kind != "queries")
      f.fail(formatted("is of kind '{}'", flashmemory::detail::printable(kind)));
    g.queries.push_back(
        {f.small("layer", 0), kind == "hidden" ? tap_kind::hidden : tap_kind::queries, f.small("width", 1)});
  });
  from.each("keys", [&](const field_reader& f) {
    recorded_key_stream s;
    s.layer = f.small("layer", 0);
    s.width = f.small("width", 0);
    s.tokens_per_key = f.small("tokens_per_key", 1);
    s.window = f.small("window", 1);
    s.key_bytes = f.small("key_bytes", 0);
    g.keys.push_back(s);
  });
  try {
    validate(g);
  } catch (const argument_error& e) {
    from.fail(e.what());
  }
  return g;
}

manifest_document read_document(const field_reader& f, const manifest& m) {
  manifest_document d;
  d.number = f.integer("number", 0, m.next_document - 1);
  if (!m.documents.empty() && d.number <= m.documents.back().number) f.fail("is out of order");
  d.info.name = formatted("{}/{}", m.writer, d.number);
  d.info.tag = f.text("tag");
  const std::string split = f.text("split");
  if (split != "train" && split != "validation")
    f.fail(formatted("has split '{}'", flashmemory::detail::printable(split)));
  d.info.split = split == "train" ? dataset_split::train : dataset_split::validation;
  d.info.tokens = f.integer("tokens", 0, no_limit);
  d.info.queries = f.integer("queries", 0, no_limit);
  d.info.attention_tokens = f.integer("attention_tokens", 0, no_limit);
  d.info.evidence = f.integer("evidence", 0, no_limit);
  d.info.bytes = static_cast<std::size_t>(f.integer("bytes", 0, no_limit));
  for (const json& part : f.list("parts")) {
    if (!part.is_number_integer() || m.find_shard(part.get<std::int64_t>()) == nullptr)
      f.fail(formatted("has a part in shard {}, which is not listed", json_text(part)));
    d.parts.push_back(part.get<std::int64_t>());
  }
  return d;
}

std::string hex(std::uint64_t value) { return formatted("{:016x}", value); }

/// Keys come out sorted, so a value has one text.
std::uint64_t checksum_of(const json& content) {
  const std::string text = json_text(content, json::error_handler_t::replace);
  return XXH3_64bits(text.data(), text.size());
}

}  // namespace

const shard_entry* manifest::find_shard(std::int64_t number) const noexcept {
  const auto found = std::lower_bound(shards.begin(), shards.end(), number,
                                      [](const shard_entry& s, std::int64_t n) { return s.number < n; });
  return found != shards.end() && found->number == number ? &*found : nullptr;
}

bool is_writer_name(std::string_view name) noexcept {
  constexpr std::string_view allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
  return !name.empty() && name.size() <= 64 && name.find_first_not_of(allowed) == std::string_view::npos;
}

std::string to_text(const manifest& m) {
  json shards = json::array(), documents = json::array();
  for (const shard_entry& s : m.shards)
    shards.push_back({{"number", s.number}, {"bytes", s.bytes}, {"xxh3", hex(s.checksum)}});
  for (const manifest_document& d : m.documents)
    documents.push_back({{"number", d.number},
                         {"tag", d.info.tag},
                         {"split", to_string(d.info.split)},
                         {"tokens", d.info.tokens},
                         {"queries", d.info.queries},
                         {"attention_tokens", d.info.attention_tokens},
                         {"evidence", d.info.evidence},
                         {"bytes", d.info.bytes},
                         {"parts", d.parts}});
  json content = {{"writer", m.writer},
                  {"geometry", to_json(m.geometry)},
                  {"next_document", m.next_document},
                  {"next_shard", m.next_shard},
                  {"shards", shards},
                  {"documents", documents}};
  if (!m.settings.empty()) content["settings"] = m.settings;
  if (!m.rows.empty()) content["rows"] = m.rows;
  const std::string text = json_text(content);
  return formatted("{{\"format\":\"{}\",\"version\":{},\"xxh3\":\"{}\",\"content\":\n{}}}\n", format_name,
                   format_version, hex(XXH3_64bits(text.data(), text.size())), text);
}

std::string digest_of(const manifest& m) {
  const std::string text = to_text(m);
  return hex(XXH3_64bits(text.data(), text.size()));
}

std::string with_right_checksum(const std::string& text) {
  json root = json_or_discarded(text);
  if (!root.is_object() || !root.contains("content")) return text;
  root["xxh3"] = hex(checksum_of(root["content"]));
  return json_text(root, json::error_handler_t::replace);
}

manifest parse_manifest(std::string_view text, const std::string& file) {
  json root;
  try {
    root = parse_json(text);
  } catch (const json::exception& e) {
    throw format_error(status::bad_argument, formatted("{}: not a manifest: {}", file, e.what()));
  }
  const field_reader outer(root, "", file);
  if (outer.text("format") != format_name) outer.fail("is of another format");
  if (const auto version = outer.integer("version", 0, no_limit); version != format_version)
    outer.fail(formatted("is of version {}, this is version {}", version, format_version));
  const json& content = outer.at("content");
  if (outer.checksum("xxh3") != checksum_of(content)) outer.fail("is damaged: its checksum does not match");

  const field_reader from(content, "content", file);
  manifest m;
  m.writer = from.text("writer");
  if (!is_writer_name(m.writer)) from.fail("has a writer that is no name");
  m.geometry = read_geometry(from.object("geometry"));
  // Far from where the next number would be none any more.
  m.next_document = from.integer("next_document", 0, no_limit / 2);
  m.next_shard = from.integer("next_shard", 0, no_limit / 2);
  if (content.contains("settings")) m.settings = from.object("settings").texts();
  if (content.contains("rows")) m.rows = from.text("rows");
  from.each("shards", [&](const field_reader& f) {
    shard_entry s;
    s.number = f.integer("number", 0, m.next_shard - 1);
    s.bytes = static_cast<std::size_t>(f.integer("bytes", 0, no_limit));
    s.checksum = f.checksum("xxh3");
    if (!m.shards.empty() && s.number <= m.shards.back().number) f.fail("is out of order");
    m.shards.push_back(s);
  });
  from.each("documents", [&](const field_reader& f) { m.documents.push_back(read_document(f, m)); });
  return m;
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
