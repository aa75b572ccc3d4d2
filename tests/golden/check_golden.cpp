// SPDX-License-Identifier: MIT
// Compares the dual encoder with what the published scorer computed: flashmemory_check_golden FILE...
// Exit code 0 if everything agrees, 1 if something does not, 2 if a file cannot be used.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/reference/key_store.hpp"

namespace fm = flashmemory;

namespace {

constexpr double logit_tolerance = 1e-4;    // of the largest |logit| of the row
constexpr double score_tolerance = 2.5e-5;  // of a probability, times the largest |logit|: sigmoid' <= 1/4
constexpr double undecided = 1e-3;          // |logit| below which a kept set may differ
constexpr std::int64_t page_keys = 16;

struct golden {
  explicit golden(const std::string& path) : file(path) {
    const fm::tensor_entry* hidden_entry = file.find("hidden");
    const fm::tensor_entry* keys_entry = file.find("compressed_k");
    if (!hidden_entry || hidden_entry->shape.size() != 2) bad("hidden");
    batch = hidden_entry->shape[0];
    width = hidden_entry->shape[1];
    hidden = fm::to_floats(file, *hidden_entry);
    if (!keys_entry || keys_entry->shape.size() != 3) bad("compressed_k");
    keys = keys_entry->shape[1];
    const auto& k = file.require("compressed_k", {batch, keys, 132});
    if (k.type != fm::tensor_type::u8) bad("compressed_k");
    compressed.assign(k.data, k.data + k.bytes);
    const auto& p = file.require("positions", {batch});
    if (p.type != fm::tensor_type::i64) bad("positions");
    positions.resize(static_cast<std::size_t>(batch));
    std::memcpy(positions.data(), p.data, p.bytes);
  }

  [[noreturn]] void bad(const char* tensor) const {
    throw fm::format_error(
        fm::status::bad_shape,
        fmt::format("{}: tensor '{}' is missing or not as the golden layout has it", file.name(), tensor));
  }

  std::vector<float> expected(const std::string& name) const {
    return fm::to_floats(file, file.require("expect." + name, {batch, keys}));
  }

  std::vector<bool> kept(const std::string& name) const {
    const auto& entry = file.require("expect.keep." + name, {batch, keys});
    if (entry.type != fm::tensor_type::boolean) bad("expect.keep");
    std::vector<bool> out(entry.bytes);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = entry.data[i] != std::byte{0};
    return out;
  }

  std::vector<std::byte> rows_of(std::int64_t row) const {
    const auto* first = compressed.data() + row * keys * 132;
    return {first, first + keys * 132};
  }

  fm::safetensors_file file;
  std::int64_t batch = 0, width = 0, keys = 0;
  std::vector<float> hidden;
  std::vector<std::byte> compressed;
  std::vector<std::int64_t> positions;
};

struct aligned_scratch {
  explicit aligned_scratch(std::size_t bytes) : memory(bytes + 64) {
    void* at = memory.data();
    std::size_t room = memory.size();
    scratch = {std::align(64, bytes, at, room), bytes};
  }
  std::vector<std::byte> memory;
  fm::workspace scratch;
};

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

void require_ok(fm::status s, const char* what) {
  if (s != fm::status::ok) throw std::runtime_error(fmt::format("{} returned {}", what, fm::to_string(s)));
}

class checker {
 public:
  explicit checker(const std::string& path) : data_(path), config_(fm::load_dual_encoder(path)) {}

  bool run() {
    fmt::print("{}: {} rows, {} keys, {} retrievers of {} heads\n", data_.file.name(), data_.batch,
               data_.keys, config_.retrievers.size(), config_.heads);
    check_logits();
    const std::vector<float> largest = check_scores(fm::ensemble::max, "scores.max");
    check_scores(fm::ensemble::mean, "scores.mean");
    check_kept(largest);
    return good_;
  }

 private:
  void report(const std::string& name, double error, double tolerance) {
    const bool fits = error <= tolerance;  // false for NaN
    fmt::print("  {:24} largest error {:.3g}, allowed {:.3g}{}\n", name, error, tolerance,
               fits ? "" : "  FAILED");
    good_ = good_ && fits;
  }

  std::vector<float> logits(const fm::dual_encoder_indexer& index, std::int32_t retriever, std::int64_t row,
                            fm::index_key_layout layout) {
    const aligned_scratch memory(index.workspace_bytes({}, 0, 0));
    std::vector<float> queries(static_cast<std::size_t>(config_.heads) * 128),
        gates(static_cast<std::size_t>(config_.heads));
    require_ok(index.encode_query(retriever, data_.hidden.data() + row * data_.width,
                                  data_.positions[static_cast<std::size_t>(row)], queries.data(),
                                  gates.data(), memory.scratch),
               "encode_query");
    const fm::reference::key_store pages(fm::reference::key_geometry(1, page_keys, layout),
                                         {data_.rows_of(row)});
    fm::index_key_pages keys;
    require_ok(pages.index_keys({}, 0, &keys), "keys");
    std::vector<float> out(static_cast<std::size_t>(data_.keys));
    require_ok(index.score_keys(retriever, queries.data(), gates.data(), keys.data, keys.keys, page_keys,
                                layout, out.data(), fm::default_threads()),
               "score_keys");
    return out;
  }

  void check_logits() {
    const fm::dual_encoder_indexer index(config_);
    largest_.assign(static_cast<std::size_t>(data_.batch), 0.0);
    for (std::size_t r = 0; r < config_.retrievers.size(); ++r) {
      const std::string name = "logits." + config_.retrievers[r].name;
      const std::vector<float> expected = data_.expected(name);
      double worst = 0;
      for (std::int64_t row = 0; row < data_.batch; ++row) {
        const auto got = logits(index, static_cast<std::int32_t>(r), row, fm::index_key_layout::interleaved);
        if (got != logits(index, static_cast<std::int32_t>(r), row, fm::index_key_layout::planar)) {
          fmt::print("  {:24} row {}: planar keys give other bits  FAILED\n", name, row);
          good_ = false;
        }
        const float* want = expected.data() + row * data_.keys;
        double largest = 0, error = 0;
        for (std::size_t k = 0; k < got.size(); ++k) {
          largest = std::max(largest, std::fabs(static_cast<double>(want[k])));
          const double e = std::fabs(static_cast<double>(got[k]) - static_cast<double>(want[k]));
          error = std::isnan(e) ? INFINITY : std::max(error, e);
        }
        worst = std::max(worst, error / largest);
        auto& of_row = largest_[static_cast<std::size_t>(row)];
        of_row = std::max(of_row, largest);
      }
      report(name, worst, logit_tolerance);
    }
  }

  /// Through score(), with chunks of one key; returns the log-odds.
  std::vector<float> check_scores(fm::ensemble how, const std::string& name) {
    fm::dual_encoder_config config = config_;
    config.combine = how;
    fm::dual_encoder_indexer index(config);
    const auto retrievers = config.retrievers.size();
    const aligned_scratch memory(index.workspace_bytes({}, data_.keys, 0));
    const std::vector<float> expected = data_.expected(name);
    std::vector<float> all;
    double worst = 0;
    for (std::int64_t row = 0; row < data_.batch; ++row) {
      const fm::reference::key_store store(
          fm::reference::key_geometry(static_cast<std::int32_t>(retrievers), 1, fm::index_key_layout::planar),
          std::vector<std::vector<std::byte>>(retrievers, data_.rows_of(row)));
      const std::vector<const float*> queries(retrievers, data_.hidden.data() + row * data_.width);
      fm::score_request request;
      request.reader = &store;
      request.position = data_.positions[static_cast<std::size_t>(row)];
      request.chunks = data_.keys;
      request.queries = queries.data();
      request.scratch = memory.scratch;
      std::vector<float> scores(static_cast<std::size_t>(data_.keys));
      require_ok(index.score(request, fm::view<float, 1>(scores.data(), scores.size())), "score");
      for (std::size_t k = 0; k < scores.size(); ++k) {
        const double e =
            std::fabs(sigmoid(static_cast<double>(scores[k])) -
                      static_cast<double>(expected[static_cast<std::size_t>(row * data_.keys) + k])) /
            largest_[static_cast<std::size_t>(row)];
        worst = std::isnan(e) ? INFINITY : std::max(worst, e);
      }
      all.insert(all.end(), scores.begin(), scores.end());
    }
    report(name, worst, score_tolerance);
    return all;
  }

  void check_kept(const std::vector<float>& log_odds) {
    const auto keys = static_cast<std::size_t>(data_.keys);
    const auto above = data_.kept("threshold0.5");
    const auto best = data_.kept("top16");
    std::int64_t threshold_misses = 0, top_misses = 0;
    for (std::size_t row = 0; row < static_cast<std::size_t>(data_.batch); ++row) {
      const float* z = log_odds.data() + row * keys;
      std::vector<std::size_t> order(keys);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return z[a] > z[b]; });
      const std::size_t k = std::min<std::size_t>(16, keys);
      std::vector<bool> chosen(keys);
      for (std::size_t i = 0; i < k; ++i) chosen[order[i]] = true;
      for (std::size_t i = 0; i < keys; ++i) {
        if ((z[i] > 0) != above[row * keys + i] && std::fabs(z[i]) >= undecided) ++threshold_misses;
        // The scorer ranks probabilities in float, where everything above a logit of 17 ties at 1.
        if (chosen[i] != best[row * keys + i] &&
            std::fabs(sigmoid(static_cast<double>(z[i])) - sigmoid(static_cast<double>(z[order[k - 1]]))) >=
                logit_tolerance)
          ++top_misses;
      }
    }
    report("keep.threshold0.5", static_cast<double>(threshold_misses), 0);
    report("keep.top16", static_cast<double>(top_misses), 0);
  }

  golden data_;
  fm::dual_encoder_config config_;
  std::vector<double> largest_;  // |logit| of each row, over all retrievers
  bool good_ = true;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: {} FILE...\n", argv[0]);
    return 2;
  }
  bool good = true;
  try {
    for (int i = 1; i < argc; ++i) good = checker(argv[i]).run() && good;
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 2;
  }
  return good ? 0 : 1;
}
