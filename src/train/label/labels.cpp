// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/train/label/labels.hpp>
#include <utility>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

[[noreturn]] void refuse(const char* type, const char* field, double value) {
  throw argument_error(status::bad_argument, formatted("{}: {} cannot be {}", type, field, value));
}

/// Items [begin, end) of an attention table.
struct item_range {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// A value per chunk that costs what it touches to clear.
template <class T>
class chunk_sums {
 public:
  explicit chunk_sums(std::int64_t chunks) : values_(static_cast<std::size_t>(chunks)) {}

  T& operator[](std::int64_t chunk) {
    T& value = values_[static_cast<std::size_t>(chunk)];
    if (value == T{}) touched_.push_back(chunk);
    return value;
  }
  template <class F>
  void drain(F&& f) {
    for (const std::int64_t chunk : touched_)
      if (const T value = std::exchange(values_[static_cast<std::size_t>(chunk)], T{}); value != T{})
        f(chunk, value);
    touched_.clear();
  }

 private:
  std::vector<T> values_;
  std::vector<std::int64_t> touched_;
};

class window {
 public:
  /// \param heads  null or empty: all
  window(const document& doc, std::int64_t position, const window_options& options, std::int32_t layer,
         const std::vector<model_head>* heads = nullptr)
      : doc_(doc), options_(options), layer_(layer), heads_(heads) {
    validate(options);
    if (position < 0 || position >= doc.tokens)
      throw argument_error(
          status::out_of_range,
          formatted("label_window: position {} of a document of {} tokens", position, doc.tokens));
    begin_ = position + 1;
    // tau may be as large as the type allows
    end_ = options.tau < doc.tokens - begin_ ? begin_ + options.tau : doc.tokens;
    complete_chunks_ = begin_ / (std::int64_t{options.entries_per_chunk} * options.tokens_per_entry);
  }

  std::int64_t begin() const noexcept { return begin_; }
  std::int64_t end() const noexcept { return end_; }
  std::int64_t complete_chunks() const noexcept { return complete_chunks_; }
  std::int64_t chunk_of(std::int64_t entry) const noexcept { return entry / options_.entries_per_chunk; }

  /// Calls f(range) for every recorded token of the window; the number of them.
  template <class F>
  std::int64_t each_token(F&& f) const {
    const attention_table& table = doc_.attention;
    const auto first = std::lower_bound(table.positions.begin(), table.positions.end(), begin_);
    std::int64_t tokens = 0;
    for (auto at = first; at != table.positions.end() && *at < end_; ++at, ++tokens) {
      const auto i = static_cast<std::size_t>(at - table.positions.begin());
      f(item_range{static_cast<std::size_t>(table.offsets[i]),
                   static_cast<std::size_t>(table.offsets[i + 1])});
    }
    return tokens;
  }

  /// Calls f(range) for every run of items of one layer (and head) that counts.
  template <class F>
  void each_group(item_range items, bool by_head, F&& f) const {
    const attention_table& table = doc_.attention;
    for (std::size_t i = items.begin; i < items.end;) {
      std::size_t end = i;
      while (end < items.end && table.layer[end] == table.layer[i] &&
             (!by_head || table.head[end] == table.head[i]))
        ++end;
      if ((layer_ < 0 || table.layer[i] == layer_) && (!by_head || counts(table.layer[i], table.head[i])))
        f(item_range{i, end});
      i = end;
    }
  }

 private:
  bool counts(std::int32_t layer, std::int32_t head) const {
    if (heads_ == nullptr || heads_->empty()) return true;
    return std::any_of(heads_->begin(), heads_->end(),
                       [&](const model_head& h) { return h.layer == layer && h.head == head; });
  }

  const document& doc_;
  const window_options& options_;
  std::int32_t layer_;
  const std::vector<model_head>* heads_;
  std::int64_t begin_ = 0;
  std::int64_t end_ = 0;
  std::int64_t complete_chunks_ = 0;
};

/// Largest mass per complete chunk over tokens, layers and heads. f(chunk, mass) is shown every one of them.
template <class F>
std::int64_t each_chunk_mass(const document& doc, const window& w, F&& f) {
  chunk_sums<double> sums(w.complete_chunks());
  return w.each_token([&](item_range token) {
    w.each_group(token, true, [&](item_range head) {
      for (std::size_t i = head.begin; i < head.end; ++i) {
        const std::int64_t chunk = w.chunk_of(doc.attention.entry[i]);
        if (chunk < w.complete_chunks()) sums[chunk] += double{doc.attention.mass[i]};
      }
      sums.drain([&](std::int64_t chunk, double mass) { f(chunk, mass, token.begin); });
    });
  });
}

/// Entries of one layer's nucleus at one token.
class nucleus {
 public:
  nucleus(float p, std::int32_t heads) : p_(p), heads_(heads) {}

  const std::vector<std::pair<double, std::int64_t>>& of(const attention_table& table, item_range layer) {
    entries_.clear();
    for (std::size_t i = layer.begin; i < layer.end; ++i)
      entries_.emplace_back(double{table.mass[i]}, std::int64_t{table.entry[i]});
    std::sort(entries_.begin(), entries_.end(),
              [](const auto& a, const auto& b) { return a.second < b.second; });
    std::size_t kept = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (kept > 0 && entries_[kept - 1].second == entries_[i].second)
        entries_[kept - 1].first += entries_[i].first;
      else
        entries_[kept++] = entries_[i];
    }
    entries_.resize(kept);
    std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second > b.second;
    });
    double sum = 0;
    for (kept = 0; kept < entries_.size() && sum <= double{p_} * heads_;) sum += entries_[kept++].first;
    entries_.resize(kept);
    return entries_;
  }

 private:
  float p_;
  std::int32_t heads_;
  std::vector<std::pair<double, std::int64_t>> entries_;
};

/// Largest number of votes per complete chunk over the window's tokens.
std::int64_t count_votes(const document& doc, const window& w, const label_rule& rule, std::int32_t heads,
                         std::vector<std::int32_t>& best) {
  nucleus kept(rule.nucleus, heads);
  chunk_sums<std::int32_t> votes(w.complete_chunks()), once(w.complete_chunks());
  return w.each_token([&](item_range token) {
    w.each_group(token, false, [&](item_range layer) {
      for (const auto& entry : kept.of(doc.attention, layer))
        if (const std::int64_t chunk = w.chunk_of(entry.second); chunk < w.complete_chunks()) once[chunk] = 1;
      once.drain([&](std::int64_t chunk, std::int32_t) { ++votes[chunk]; });
    });
    votes.drain([&](std::int64_t chunk, std::int32_t count) {
      auto& most = best[static_cast<std::size_t>(chunk)];
      most = std::max(most, count);
    });
  });
}

}  // namespace

window_options window_options_for(const recording_geometry& geometry) noexcept {
  window_options options;
  options.entries_per_chunk = geometry.entries_per_chunk;
  options.tokens_per_entry = geometry.tokens_per_entry;
  options.layers = geometry.layers;
  options.heads = geometry.heads;
  return options;
}

void validate(const label_rule& rule) {
  const auto share = [](float value) { return value > 0 && value <= 1; };
  switch (rule.kind) {
    case label_kind::nucleus_votes:
      if (!share(rule.nucleus)) refuse("label_rule", "nucleus", double{rule.nucleus});
      if (rule.votes < 1) refuse("label_rule", "votes", rule.votes);
      return;
    case label_kind::max_mass:
      if (!share(rule.min_mass)) refuse("label_rule", "min_mass", double{rule.min_mass});
      if (rule.min_tokens < 1) refuse("label_rule", "min_tokens", rule.min_tokens);
      for (const model_head& h : rule.heads) {
        if (h.layer < 0) refuse("label_rule", "heads.layer", h.layer);
        if (h.head < 0) refuse("label_rule", "heads.head", h.head);
      }
      return;
    case label_kind::needed_set:
      return;
  }
  refuse("label_rule", "kind", static_cast<double>(rule.kind));
}

void validate(const window_options& options) {
  const auto at_least = [](const char* field, std::int64_t value, std::int64_t least) {
    if (value < least) refuse("window_options", field, static_cast<double>(value));
  };
  at_least("tau", options.tau, 1);
  at_least("sink_chunks", options.sink_chunks, 0);
  at_least("recent_chunks", options.recent_chunks, 0);
  at_least("entries_per_chunk", options.entries_per_chunk, 1);
  at_least("tokens_per_entry", options.tokens_per_entry, 1);
  at_least("layers", options.layers, 1);
  at_least("heads", options.heads, 1);
}

window_labels label_window(const document& doc, std::int64_t position, const label_rule& rule,
                           const window_options& options) {
  validate(rule);
  const window w(doc, position, options, rule.layer, &rule.heads);
  window_labels labels;
  labels.position = position;
  labels.complete_chunks = w.complete_chunks();
  labels.first_candidate = std::min<std::int64_t>(options.sink_chunks, labels.complete_chunks);
  labels.end_candidate =
      std::max(labels.first_candidate, labels.complete_chunks - std::int64_t{options.recent_chunks});
  std::vector<float> weights(static_cast<std::size_t>(labels.complete_chunks));
  switch (rule.kind) {
    case label_kind::nucleus_votes: {
      const std::int32_t needed = rule.layer >= 0 ? 1 : rule.votes;
      const std::int32_t voters = rule.layer >= 0 ? 1 : options.layers;
      std::vector<std::int32_t> best(weights.size());
      labels.tokens_seen = count_votes(doc, w, rule, options.heads, best);
      for (std::size_t c = 0; c < best.size(); ++c)
        if (best[c] >= needed)
          weights[c] = static_cast<float>(best[c]) / static_cast<float>(std::max(voters, best[c]));
      break;
    }
    case label_kind::max_mass: {
      // Tokens that paid a chunk enough, and the last of them, known by where its items begin.
      std::vector<std::int32_t> tokens(weights.size());
      std::vector<std::size_t> last(weights.size());
      labels.tokens_seen = each_chunk_mass(doc, w, [&](std::int64_t chunk, double mass, std::size_t token) {
        const auto c = static_cast<std::size_t>(chunk);
        const auto paid = static_cast<float>(mass);
        if (!(paid >= rule.min_mass)) return;
        weights[c] = std::max(weights[c], std::min(paid, 1.0f));
        if (tokens[c] == 0 || last[c] != token) ++tokens[c];
        last[c] = token;
      });
      for (std::size_t c = 0; c < weights.size(); ++c) {
        if (tokens[c] < rule.min_tokens) weights[c] = 0;
      }
      break;
    }
    case label_kind::needed_set:
      labels.tokens_seen = w.end() - w.begin();
      for (const evidence_range& need : doc.evidence) {
        if (need.token_end <= w.begin() || need.token_begin >= w.end()) continue;
        const std::int64_t last = std::min(w.chunk_of(need.entry_end - 1), w.complete_chunks() - 1);
        for (std::int64_t c = w.chunk_of(need.entry_begin); c <= last; ++c)
          weights[static_cast<std::size_t>(c)] = 1;
      }
      break;
  }
  for (std::int64_t c = labels.first_candidate; c < labels.end_candidate; ++c)
    if (const float weight = weights[static_cast<std::size_t>(c)]; weight > 0)
      labels.positives.push_back({static_cast<chunk_id>(c), weight});
  return labels;
}

window_mass mass_of_window(const document& doc, std::int64_t position, const window_options& options,
                           std::int32_t layer) {
  const window w(doc, position, options, layer);
  window_mass out;
  out.complete_chunks = w.complete_chunks();
  out.max.resize(static_cast<std::size_t>(out.complete_chunks));
  out.sum.resize(static_cast<std::size_t>(out.complete_chunks));
  out.tokens_seen = each_chunk_mass(doc, w, [&](std::int64_t chunk, double mass, std::size_t) {
    const auto c = static_cast<std::size_t>(chunk);
    out.max[c] = std::max(out.max[c], static_cast<float>(mass));
    out.sum[c] += mass;
  });
  return out;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
