// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/calibrate/calibrate.hpp>
#include <functional>
#include <vector>

#include "src/train/learn/examples.hpp"
#include "src/train/learn/model.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

/// Scores of some windows of one document.
struct scored_windows {
  const example* from = nullptr;
  const document* doc = nullptr;  ///< with its attention
  std::vector<std::int64_t> windows;
  std::int64_t chunks = 0;
  std::vector<const float*> retrievers;  ///< each [chunks, windows]
  std::vector<float> combined;           ///< [chunks, windows]
};

/// Scores the documents of a split one after another.
void score_documents(const document_source& source, const dual_model& model,
                     const evaluation_options& options,
                     const std::function<void(const scored_windows&)>& visit);

/// \throws argument_error naming the field that cannot work
void validate(const evaluation_options& options);

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
