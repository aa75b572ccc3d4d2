// SPDX-License-Identifier: MIT
#include "src/train/learn/examples.hpp"

#include <algorithm>
#include <utility>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

// Attention that each stretch of `stride` tokens got from the window's tokens: the largest sum over the stretch
// that any head paid at any token.
class stretch_mass {
 public:
  stretch_mass(const document& doc, std::int64_t stride, std::int64_t tokens_per_entry)
      : doc_(doc),
        stride_(stride),
        tokens_per_entry_(tokens_per_entry),
        mass_(static_cast<std::size_t>(doc.tokens / stride + 1)),
        sums_(mass_.size()) {}

  void look(std::int64_t position, std::int64_t tau) {
    for (const std::size_t at : touched_) mass_[at] = 0;
    touched_.clear();
    const attention_table& table = doc_.attention;
    const auto first = std::upper_bound(table.positions.begin(), table.positions.end(), position);
    const auto last = std::upper_bound(first, table.positions.end(), position + tau);
    const auto begin = static_cast<std::size_t>(first - table.positions.begin());
    const auto end = static_cast<std::size_t>(last - table.positions.begin());
    for (std::size_t token = begin; token < end; ++token) {
      const auto item_end = static_cast<std::size_t>(table.offsets[token + 1]);
      for (auto i = static_cast<std::size_t>(table.offsets[token]); i < item_end;) {
        const std::size_t head_begin = i;
        for (; i < item_end && table.layer[i] == table.layer[head_begin] &&
               table.head[i] == table.head[head_begin];
             ++i) {
          sums_[stretch_of(table.entry[i])] += table.mass[i];
        }
        for (std::size_t k = head_begin; k < i; ++k) {
          const std::size_t at = stretch_of(table.entry[k]);
          if (sums_[at] > mass_[at]) {
            if (mass_[at] == 0) touched_.push_back(at);
            mass_[at] = sums_[at];
          }
          sums_[at] = 0;
        }
      }
    }
  }

  // The key of [first, end) whose window of `stretches` got most; -1 if none got any.
  std::int64_t best_key(std::int64_t first, std::int64_t end, std::int64_t stretches) const {
    std::int64_t best = -1;
    float most = 0;
    for (std::int64_t key = first; key < end; ++key) {
      float sum = 0;
      for (std::int64_t s = std::max<std::int64_t>(0, key - stretches + 1); s <= key; ++s) {
        sum += mass_[static_cast<std::size_t>(s)];
      }
      if (sum > most) {
        most = sum;
        best = key;
      }
    }
    return best;
  }

 private:
  std::size_t stretch_of(std::uint32_t entry) const {
    return std::min(mass_.size() - 1,
                    static_cast<std::size_t>(std::int64_t{entry} * tokens_per_entry_ / stride_));
  }

  const document& doc_;
  std::int64_t stride_;
  std::int64_t tokens_per_entry_;
  std::vector<float> mass_;
  std::vector<float> sums_;
  std::vector<std::size_t> touched_;
};

}  // namespace

example make_example(document doc, std::int64_t index, const std::string& name, const label_rule& rule,
                     const window_options& windows, const recorded_key_stream* key) {
  example out;
  stretch_mass mass(doc, key ? key->tokens_per_key : doc.tokens + 1, windows.tokens_per_entry);
  out.index = index;
  out.name = name;
  out.tag = doc.tag;
  out.tokens = doc.tokens;
  for (const std::int64_t position : doc.positions) {
    window_labels labels = label_window(doc, position, rule, windows);
    const auto number = static_cast<std::int64_t>(out.labels.size());
    if (labels.tokens_seen > 0 && labels.candidates() > 0) {
      (labels.positives.empty() ? out.free_ones : out.needing).push_back(number);
    }
    out.bytes += sizeof labels + labels.positives.capacity() * sizeof(positive_chunk);
    if (key) {
      const std::int64_t per_chunk =
          std::int64_t{windows.entries_per_chunk} * windows.tokens_per_entry / key->tokens_per_key;
      std::vector<std::int64_t> best;
      if (!labels.positives.empty()) mass.look(position, windows.tau);
      for (const positive_chunk& p : labels.positives) {
        const std::int64_t first = static_cast<std::int64_t>(p.chunk) * per_chunk;
        best.push_back(mass.best_key(first, first + per_chunk, key->window / key->tokens_per_key));
      }
      out.best_keys.push_back(std::move(best));
    }
    out.labels.push_back(std::move(labels));
  }
  out.positions = std::move(doc.positions);
  out.queries = std::move(doc.queries);
  out.keys = std::move(doc.keys);
  for (const row_matrix& rows : out.queries) out.bytes += rows.bytes();
  for (const document_keys& keys : out.keys) out.bytes += keys.inputs.bytes() + keys.native.size();
  return out;
}

example_store::example_store(const document_source& source, const label_rule& rule,
                             const window_options& windows, std::size_t budget,
                             const recorded_key_stream* key)
    : source_(source), rule_(rule), windows_(windows), budget_(budget), key_(key) {}

std::shared_ptr<const example> example_store::get(std::int64_t index) {
  const auto found =
      std::find_if(recent_.begin(), recent_.end(), [&](const auto& e) { return e->index == index; });
  if (found != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, found);
    return recent_.front();
  }
  const document_info& info = source_.documents()[static_cast<std::size_t>(index)];
  // Room is made before the document is read, so that the budget holds while both are in memory.
  while (!recent_.empty() && held_ + info.bytes > budget_) {
    held_ -= recent_.back()->bytes;
    recent_.pop_back();
  }
  auto made =
      std::make_shared<example>(make_example(source_.load(index), index, info.name, rule_, windows_, key_));
  held_ += made->bytes;
  peak_ = std::max(peak_, held_);
  recent_.push_front(std::move(made));
  return recent_.front();
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
