// SPDX-License-Identifier: MIT
#include "src/train/calibrate/scoring.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <flashmemory/error.hpp>

#include "src/core/format.hpp"
#include "src/train/learn/gemm.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

// Windows that are scored at a time: bounds the activations.
constexpr std::size_t most_windows = 128;

// What the library does with the retrievers' logits of a key, on chunk scores; the same for maxima.
float combine(ensemble how, const std::vector<const float*>& scores, std::size_t at) {
  float largest = -INFINITY;
  double yes = 0;
  double no = 0;
  for (const float* of : scores) {
    largest = std::max(largest, of[at]);
    yes += 1 / (1 + std::exp(-static_cast<double>(of[at])));
    no += 1 / (1 + std::exp(static_cast<double>(of[at])));
  }
  return how == ensemble::max ? largest : static_cast<float>(std::log(yes / no));
}

}  // namespace

void validate(const evaluation_options& o) {
  train::validate(o.labels);
  train::validate(o.windows);
  const auto need = [](bool good, const char* field, auto value, const char* wanted) {
    if (good) return;
    throw argument_error(status::bad_argument,
                         formatted("evaluation: {} is {}, expected {}", field, value, wanted));
  };
  for (const double b : o.budgets) need(b > 0 && b <= 1, "budget", b, "a share above 0, at most 1");
  need(o.position_bucket > 0, "position_bucket", o.position_bucket, "a positive number");
  need(o.max_windows >= 0, "max_windows", o.max_windows, "a number >= 0");
  need(o.max_documents >= 0, "max_documents", o.max_documents, "a number >= 0");
}

void score_documents(const document_source& source, const dual_model& model, const evaluation_options& o,
                     const std::function<void(const scored_windows&)>& visit) {
  const serial_blas one_thread;
  std::deque<encoder<float>> encoders;
  for (std::int64_t r = 0; r < model.retrievers(); ++r) encoders.emplace_back(model.shape);
  document_batch batch;
  std::int64_t used = 0;
  const std::vector<document_info>& all = source.documents();
  for (std::size_t index = 0; index < all.size(); ++index) {
    if (all[index].split != o.split || (o.max_documents > 0 && used == o.max_documents)) continue;
    ++used;
    const document doc = source.load(static_cast<std::int64_t>(index));
    const example from =
        make_example(doc, static_cast<std::int64_t>(index), all[index].name, o.labels, o.windows);
    std::vector<std::int64_t> windows;
    std::merge(from.needing.begin(), from.needing.end(), from.free_ones.begin(), from.free_ones.end(),
               std::back_inserter(windows));
    if (o.max_windows > 0 && static_cast<std::int64_t>(windows.size()) > o.max_windows) {
      std::vector<std::int64_t> some;
      for (std::int64_t i = 0; i < o.max_windows; ++i) {
        some.push_back(
            windows[static_cast<std::size_t>(i) * windows.size() / static_cast<std::size_t>(o.max_windows)]);
      }
      windows = std::move(some);
    }
    for (std::size_t first = 0; first < windows.size(); first += most_windows) {
      scored_windows scored;
      scored.from = &from;
      scored.doc = &doc;
      scored.windows.assign(
          windows.begin() + static_cast<std::ptrdiff_t>(first),
          windows.begin() + static_cast<std::ptrdiff_t>(std::min(first + most_windows, windows.size())));
      batch.fill(model.shape, model.taps, from, scored.windows);
      scored.chunks = batch.chunks();
      for (std::size_t r = 0; r < encoders.size(); ++r) {
        encoders[r].forward(model.of(static_cast<std::int64_t>(r)), batch.input(r, model.taps), o.threads);
        scored.retrievers.push_back(encoders[r].scores().data());
      }
      scored.combined.resize(static_cast<std::size_t>(scored.chunks) * scored.windows.size());
      for (std::size_t i = 0; i < scored.combined.size(); ++i) {
        scored.combined[i] = combine(model.config.combine, scored.retrievers, i);
      }
      visit(scored);
    }
  }
  if (used == 0) {
    throw argument_error(
        status::bad_argument,
        formatted("evaluation: none of {} documents is of the {} split", all.size(), to_string(o.split)));
  }
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
