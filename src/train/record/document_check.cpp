// SPDX-License-Identifier: MIT
#include "src/train/record/document_check.hpp"

#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/document.hpp>
#include <vector>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

[[noreturn]] void refuse(const std::string& field, std::int64_t value) {
  throw argument_error(status::bad_argument, formatted("recording_geometry: {} cannot be {}", field, value));
}

/// Complaints about one document.
class checker {
 public:
  explicit checker(const std::string& name) : name_(name) {}

  template <class... Args>
  void require(bool good, status code, const char* format, const Args&... args) const {
    if (!good) throw format_error(code, name_ + ": " + formatted(fmt::runtime(format), args...));
  }

  /// Ascending, without repetition, inside the document.
  void positions(const char* what, const std::vector<std::int64_t>& list, std::int64_t tokens) const {
    for (std::size_t i = 0; i < list.size(); ++i) {
      require(list[i] >= 0 && list[i] < tokens, status::out_of_range, "{} {} of {} tokens", what, list[i],
              tokens);
      require(i == 0 || list[i - 1] < list[i], status::out_of_order, "{} {} after {}", what, list[i],
              i == 0 ? -1 : list[i - 1]);
    }
  }

  void finite(const std::string& what, const row_matrix& rows) const {
    std::vector<float> row(static_cast<std::size_t>(rows.width()));
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
      rows.read(r, row.data());
      for (const float value : row)
        require(std::isfinite(value), status::not_finite, "{}: row {} holds {}", what, r, value);
    }
  }

 private:
  const std::string& name_;
};

void check_attention(const checker& check, const document& doc, const recording_geometry& g) {
  const attention_table& a = doc.attention;
  check.positions("attention at position", a.positions, doc.tokens);
  const std::size_t items = a.entry.size();
  check.require(a.layer.size() == items && a.head.size() == items && a.mass.size() == items,
                status::bad_shape, "attention columns of {}, {}, {} and {} items", a.layer.size(),
                a.head.size(), items, a.mass.size());
  check.require(a.offsets.size() == a.positions.size() + 1 && a.offsets.front() == 0 &&
                    a.offsets.back() == static_cast<std::int64_t>(items),
                status::bad_shape, "attention offsets of {} tokens do not cover {} items", a.positions.size(),
                items);
  for (std::size_t t = 0; t < a.positions.size(); ++t)
    check.require(a.offsets[t] <= a.offsets[t + 1], status::out_of_order,
                  "attention offsets fall at token {}", t);
  for (std::size_t t = 0; t < a.positions.size(); ++t) {
    // The entry that the token itself completes is the last one it sees.
    const std::int64_t visible = (a.positions[t] + 1) / g.tokens_per_entry;
    const auto begin = static_cast<std::size_t>(a.offsets[t]),
               end = static_cast<std::size_t>(a.offsets[t + 1]);
    for (std::size_t i = begin; i < end; ++i) {
      check.require(a.layer[i] < g.layers && a.head[i] < g.heads, status::out_of_range,
                    "attention of layer {} and head {}", a.layer[i], a.head[i]);
      check.require(a.entry[i] < visible, status::out_of_range, "attention at position {} to entry {} of {}",
                    a.positions[t], a.entry[i], visible);
      check.require(a.mass[i] > 0 && a.mass[i] <= 1, status::bad_argument, "an attention mass of {}",
                    a.mass[i]);
      const bool ordered =
          i == begin || a.layer[i - 1] < a.layer[i] ||
          (a.layer[i - 1] == a.layer[i] &&
           (a.head[i - 1] < a.head[i] || (a.head[i - 1] == a.head[i] && a.mass[i - 1] >= a.mass[i])));
      check.require(ordered, status::out_of_order, "attention at position {} is not ordered", a.positions[t]);
    }
  }
}

void check_keys(const checker& check, const document& doc, const recording_geometry& g) {
  check.require(doc.keys.size() == g.keys.size(), status::bad_shape, "{} index-key lanes, expected {}",
                doc.keys.size(), g.keys.size());
  for (std::size_t s = 0; s < g.keys.size(); ++s) {
    const recorded_key_stream& stream = g.keys[s];
    const document_keys& keys = doc.keys[s];
    const std::int64_t expected = doc.tokens / stream.tokens_per_key;
    check.require(keys.keys == expected, status::bad_shape, "index-key lane {}: {} keys, expected {}", s,
                  keys.keys, expected);
    if (stream.native()) {
      check.require(keys.inputs.empty() &&
                        keys.native.size() ==
                            static_cast<std::size_t>(expected) * static_cast<std::size_t>(stream.key_bytes),
                    status::bad_shape, "index-key lane {}: {} bytes of native keys", s, keys.native.size());
      for (std::int64_t k = 0; k < expected; ++k)
        check.require(detail::is_finite_key(keys.native.data() + k * stream.key_bytes, stream.key_bytes),
                      status::not_finite, "index-key lane {}: key {} holds NaN or Inf", s, k);
    } else {
      check.require(
          keys.native.empty() && keys.inputs.rows() == expected && keys.inputs.width() == stream.width,
          status::bad_shape, "index-key lane {}: inputs of [{}, {}]", s, keys.inputs.rows(),
          keys.inputs.width());
      check.finite(formatted("index-key lane {}", s), keys.inputs);
    }
  }
}

}  // namespace

void validate(const recording_geometry& g) {
  const auto within = [](const std::string& field, std::int64_t value, std::int64_t least,
                         std::int64_t most) {
    if (value < least || value > most) refuse(field, value);
  };
  constexpr std::int32_t most = 1 << 24;
  within("layers", g.layers, 1, 1 << 16);
  within("heads", g.heads, 1, 1 << 16);
  within("tokens_per_entry", g.tokens_per_entry, 1, most);
  within("entries_per_chunk", g.entries_per_chunk, 1, most);
  for (std::size_t i = 0; i < g.queries.size(); ++i) {
    const query_tap& tap = g.queries[i];
    const auto field = [&](const char* name) { return formatted("queries[{}].{}", i, name); };
    within(field("layer"), tap.layer, 0, most);
    within(field("width"), tap.width, 1, most);
    within(field("kind"), static_cast<std::int32_t>(tap.kind), 0, 1);
    for (std::size_t j = 0; j < i; ++j)
      if (g.queries[j].layer == tap.layer && g.queries[j].kind == tap.kind)
        refuse(field("layer twice"), tap.layer);
  }
  for (std::size_t i = 0; i < g.keys.size(); ++i) {
    const recorded_key_stream& stream = g.keys[i];
    const auto field = [&](const char* name) { return formatted("keys[{}].{}", i, name); };
    within(field("layer"), stream.layer, 0, most);
    within(field("tokens_per_key"), stream.tokens_per_key, 1, most);
    within(field("window"), stream.window, stream.tokens_per_key, most);
    if (stream.native()) {
      within(field("key_bytes"), stream.key_bytes, 5, most);
      within(field("width of native keys"), stream.width, 0, 0);
    } else {
      within(field("width"), stream.width, 1, most);
      for (std::size_t j = 0; j < i; ++j)  // of one layer's hidden states
        if (!g.keys[j].native() && g.keys[j].layer == stream.layer && g.keys[j].width != stream.width)
          refuse(field("width"), stream.width);
    }
  }
}

void check_document(const document& doc, const recording_geometry& g, const std::string& name) {
  const checker check(name);
  check.require(doc.tokens >= 0, status::bad_argument, "{} tokens", doc.tokens);
  check.require(doc.split == dataset_split::train || doc.split == dataset_split::validation,
                status::bad_argument, "split {}", static_cast<std::int32_t>(doc.split));
  check.positions("query position", doc.positions, doc.tokens);
  check.require(doc.queries.size() == g.queries.size(), status::bad_shape, "{} query matrices, expected {}",
                doc.queries.size(), g.queries.size());
  for (std::size_t i = 0; i < g.queries.size(); ++i) {
    const row_matrix& rows = doc.queries[i];
    check.require(
        rows.rows() == static_cast<std::int64_t>(doc.positions.size()) && rows.width() == g.queries[i].width,
        status::bad_shape, "queries {}: [{}, {}], expected [{}, {}]", i, rows.rows(), rows.width(),
        doc.positions.size(), g.queries[i].width);
    check.finite(formatted("queries {}", i), rows);
  }
  check_keys(check, doc, g);
  check_attention(check, doc, g);
  const std::int64_t entries = doc.tokens / g.tokens_per_entry;
  for (std::size_t i = 0; i < doc.evidence.size(); ++i) {
    const evidence_range& need = doc.evidence[i];
    check.require(need.token_begin >= 0 && need.token_begin < need.token_end &&
                      need.token_end <= doc.tokens && need.entry_begin >= 0 &&
                      need.entry_begin < need.entry_end && need.entry_end <= entries,
                  status::out_of_range, "evidence {}: tokens [{}, {}) need entries [{}, {})", i,
                  need.token_begin, need.token_end, need.entry_begin, need.entry_end);
    check.require(i == 0 || doc.evidence[i - 1].token_begin <= need.token_begin, status::out_of_order,
                  "evidence {} begins before the one in front of it", i);
  }
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
