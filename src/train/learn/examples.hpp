// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/record/document_source.hpp>
#include <list>
#include <memory>
#include <string>
#include <vector>

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// What training needs of a document: vectors and labels; the attention itself is let go.
struct example {
  std::int64_t index = 0;
  std::string name;
  std::string tag;
  std::int64_t tokens = 0;
  std::vector<std::int64_t> positions;
  std::vector<row_matrix> queries;
  std::vector<document_keys> keys;
  std::vector<window_labels> labels;  // [positions]
  /// Per window and positive the key of that chunk whose tokens were paid most attention; -1 if none was
  /// recorded. For the first index-key lane's strides.
  std::vector<std::vector<std::int64_t>> best_keys;
  std::vector<std::int64_t> needing;    // windows with positives
  std::vector<std::int64_t> free_ones;  // windows that need nothing old, but have candidates
  std::size_t bytes = 0;
};

/// Makes the labels of every recorded query position.
/// \param key how keys are cut; null = best_keys is left empty
example make_example(document doc, std::int64_t index, const std::string& name, const label_rule& rule,
                     const window_options& windows, const recorded_key_stream* key = nullptr);

/// Examples by number, read when they are asked for; the ones used longest ago are let go above the budget.
/// The one returned last always stays.
class example_store {
 public:
  example_store(const document_source& source, const label_rule& rule, const window_options& windows,
                std::size_t budget, const recorded_key_stream* key = nullptr);
  std::shared_ptr<const example> get(std::int64_t index);
  void clear() noexcept {
    recent_.clear();
    held_ = 0;
  }
  std::size_t peak_bytes() const noexcept { return peak_; }

 private:
  const document_source& source_;
  label_rule rule_;
  window_options windows_;
  std::size_t budget_;
  const recorded_key_stream* key_;
  std::size_t held_ = 0;
  std::size_t peak_ = 0;
  std::list<std::shared_ptr<const example>> recent_;  // newest first
};

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
