// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/cuda/top_k.hpp>
#include <limits>
#include <random>

#include "tests/cuda/gpu.hpp"
#include "tests/reference/score.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
using namespace flashmemory_test;
using flashmemory::cuda::select_row;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// Rows of scores on both sides.
struct select_problem {
  std::vector<std::vector<float>> scores;
  std::vector<std::int32_t> k;
  std::vector<float> thresholds;
  std::size_t lead = 0;      ///< floats before the scores, for alignments
  bool with_maxima = false;  ///< bring group_max
  std::vector<device_array<float>> device_scores, device_maxima;
  std::vector<device_array<std::int32_t>> ids;
  device_array<std::int32_t> selected, nans;
  device_array<std::int64_t> device_counts;
  device_array<select_row> rows;
  device_array<std::uint8_t> scratch;
  device_stream stream;
  std::int64_t longest = 0;

  void add(std::vector<float> row, std::int32_t how_many, float threshold = 0) {
    scores.push_back(std::move(row));
    k.push_back(how_many);
    thresholds.push_back(threshold);
  }

  void upload(bool ask_for_nans) {
    std::vector<select_row> host;
    selected = device_array<std::int32_t>(scores.size());
    nans = device_array<std::int32_t>(scores.size());
    std::vector<std::int64_t> lengths;
    for (const auto& row : scores) lengths.push_back(static_cast<std::int64_t>(row.size()));
    device_counts = device_array<std::int64_t>(lengths);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      std::vector<float> padded(lead, inf);
      padded.insert(padded.end(), scores[i].begin(), scores[i].end());
      padded.resize(padded.size() + 8, inf);  // must not be looked at
      device_scores.emplace_back(padded);
      ids.emplace_back(scores[i].size() + 1);
      select_row row;
      row.scores = device_scores.back().data() + lead;
      row.count = static_cast<std::int64_t>(scores[i].size());
      row.k = k[i];
      row.threshold = thresholds[i];
      row.ids = ids.back().data();
      row.selected = selected.data() + i;
      if (ask_for_nans) row.nans = nans.data() + i;
      row.capacity = row.count;
      device_maxima.emplace_back(reference::group_maxima(scores[i], 16, false));
      if (with_maxima) row.group_max = device_maxima.back().data();
      if (!with_maxima) longest = std::max(longest, row.count);
      row.first_id = first_id(i);
      if (i % 2 == 1) {  // the length is in device memory, and the host's is another
        row.device_count = device_counts.data() + i;
        row.count = 3;
      }
      host.push_back(row);
    }
    rows = device_array<select_row>(host);
    scratch = device_array<std::uint8_t>(
        cuda::top_k_workspace_bytes(static_cast<std::int32_t>(host.size()), longest));
  }

  static std::int32_t first_id(std::size_t i) { return static_cast<std::int32_t>(i % 3 * 100000); }

  std::vector<std::int32_t> got(std::size_t i) {
    std::vector<std::int32_t> list = ids[i].get();
    const auto count = static_cast<std::size_t>(selected.get()[i]);
    REQUIRE(count < list.size());
    CHECK(list[count] == -1);  // nothing behind the end
    list.resize(count);
    for (std::int32_t& id : list) id -= first_id(i);
    return list;
  }

  /// Some rows in a call: how many decides how many blocks share a row.
  void top_k(std::size_t at_once = 65535) {
    for (std::size_t i = 0; i < scores.size(); i += at_once) {
      REQUIRE(cuda::select_top_k(rows.data() + i,
                                 static_cast<std::int32_t>(std::min(at_once, scores.size() - i)), longest,
                                 {scratch.data(), scratch.bytes()}, stream.ref()) == status::ok);
    }
    stream.wait();
  }
};

std::vector<float> normal_scores(std::mt19937_64& random, std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> scores(count);
  for (float& s : scores) s = normal(random);
  return scores;
}

}  // namespace

TEST_CASE("select_top_k() takes the largest, the newer of equals, NaN last", "[select][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("top_k");
  const bool with_maxima = GENERATE(false, true);
  const std::size_t lead = GENERATE(0u, 1u);
  const std::size_t at_once = GENERATE(1u, 40u, 1000u);
  CAPTURE(seed, with_maxima, lead, at_once);
  std::mt19937_64 random(seed);
  select_problem p;
  p.lead = lead;
  p.with_maxima = with_maxima;
  for (const std::size_t n :
       {0, 1, 15, 16, 17, 63, 64, 65, 1000, 4097, 16384, 16385, 70001, 262144, 300007}) {
    for (const std::int32_t k : {0, 1, 7, 512, 600, 1024, 1025, 2048}) {
      if (n > 100000 && k > 1 && k < 512) continue;
      std::vector<float> row = normal_scores(random, n);
      switch (random() % 9) {
        case 0:  // all equal
          for (float& s : row) s = 1.5f;
          break;
        case 1:  // few values
          for (float& s : row) s = std::floor(s * 2);
          break;
        case 2:  // a handful of everything
          for (float& s : row) {
            const float odd[] = {-inf, inf, std::nanf(""), 0.0f, -0.0f, 1e-42f, -3e38f};
            s = odd[random() % 7];
          }
          break;
        case 3:  // almost all NaN or -inf
          for (float& s : row) s = random() % 50 == 0 ? s : random() % 2 ? -inf : std::nanf("");
          break;
        case 4:  // close together
          for (float& s : row) s = 100 + s * 1e-4f;
          break;
        case 5:  // the newer the better, all the best in one place
          std::sort(row.begin(), row.end());
          break;
        case 6:  // a trend
          for (std::size_t i = 0; i < n; ++i) row[i] += 3 * static_cast<float>(i) / static_cast<float>(n);
          break;
        default:
          break;
      }
      p.add(std::move(row), k);
    }
  }
  p.upload(true);
  p.top_k(at_once);
  const std::vector<std::int32_t> nans = p.nans.get();
  for (std::size_t i = 0; i < p.scores.size(); ++i) {
    CAPTURE(i, p.scores[i].size(), p.k[i]);
    CHECK(p.got(i) == reference::top_k(p.scores[i], static_cast<std::size_t>(p.k[i])));
    CHECK(nans[i] ==
          std::count_if(p.scores[i].begin(), p.scores[i].end(), [](float s) { return std::isnan(s); }));
  }
}

TEST_CASE("select_top_k() does not mind where equal scores are", "[select][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("ties");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  select_problem p;
  for (int i = 0; i < 40; ++i) {
    std::vector<float> row(20000 + random() % 50000, -1.0f);
    const std::size_t spikes = random() % 3000;
    for (std::size_t s = 0; s < spikes; ++s) row[random() % row.size()] = static_cast<float>(random() % 3);
    p.add(std::move(row), static_cast<std::int32_t>(1 + random() % 2048));
  }
  p.upload(false);
  p.top_k();
  for (std::size_t i = 0; i < p.scores.size(); ++i) {
    CAPTURE(i, p.scores[i].size(), p.k[i]);
    CHECK(p.got(i) == reference::top_k(p.scores[i], static_cast<std::size_t>(p.k[i])));
  }
}

TEST_CASE("select_above() lists what exceeds the threshold", "[select][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("above");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  select_problem p;
  for (const std::size_t n : {0, 1, 15, 64, 65, 1000, 4097, 16384, 16385, 70001}) {
    for (const float threshold : {0.0f, -0.0f, 1.0f, -inf, inf, std::nanf("")}) {
      std::vector<float> row = normal_scores(random, n);
      for (std::size_t i = 0; i < n; i += 13) row[i] = i % 2 ? std::nanf("") : std::floor(row[i]);
      p.add(std::move(row), 0, threshold);
    }
  }
  p.upload(true);
  REQUIRE(cuda::select_above(p.rows.data(), static_cast<std::int32_t>(p.scores.size()), p.stream.ref()) ==
          status::ok);
  p.stream.wait();
  for (std::size_t i = 0; i < p.scores.size(); ++i) {
    CAPTURE(i, p.scores[i].size(), p.thresholds[i]);
    CHECK(p.got(i) == reference::above(p.scores[i], p.thresholds[i]));
  }
}

TEST_CASE("a captured select_top_k() sees new lengths", "[select][cuda]") {
  REQUIRE_GPU();
  static const std::uint64_t seed = printed_seed("top_k graph");
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  select_problem p;
  p.add(normal_scores(random, 70001), 512);
  p.add(normal_scores(random, 5000), 100);
  p.upload(false);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  must(cudaStreamBeginCapture(p.stream.get(), cudaStreamCaptureModeGlobal));
  REQUIRE(cuda::select_top_k(p.rows.data(), 2, p.longest, {p.scratch.data(), p.scratch.bytes()},
                             p.stream.ref()) == status::ok);
  must(cudaStreamEndCapture(p.stream.get(), &graph));
  must(cudaGraphInstantiate(&executable, graph, 0));
  for (const std::size_t divide : {1, 2, 9, 1000}) {
    std::vector<select_row> rows = p.rows.get();
    std::vector<std::int64_t> lengths(2);
    for (std::size_t i = 0; i < 2; ++i) {
      rows[i].count = static_cast<std::int64_t>(p.scores[i].size() / divide);
      lengths[i] = rows[i].count;
      fill(p.ids[i].data(), 0xff, p.ids[i].bytes());
    }
    p.rows.put(rows);
    p.device_counts.put(lengths);
    must(cudaGraphLaunch(executable, p.stream.get()));
    p.stream.wait();
    for (std::size_t i = 0; i < 2; ++i) {
      std::vector<float> shorter(p.scores[i].begin(), p.scores[i].begin() + rows[i].count);
      CAPTURE(i, divide);
      CHECK(p.got(i) == reference::top_k(shorter, static_cast<std::size_t>(p.k[i])));
    }
  }
  must(cudaGraphExecDestroy(executable));
  must(cudaGraphDestroy(graph));
}

TEST_CASE("selection reports bad calls", "[select][cuda]") {
  REQUIRE_GPU();
  select_problem p;
  p.add({1, 2, 3}, 2);
  p.upload(false);
  const workspace none{};
  const auto rows = p.rows.data();
  const stream_ref s = p.stream.ref();
  fault f;
  CHECK(cuda::select_top_k(rows, -1, 0, none, s, &f) == status::bad_argument);
  CHECK(f.code == status::bad_argument);
  CHECK(cuda::select_top_k(rows, 1, -1, none, s) == status::bad_argument);
  CHECK(cuda::select_top_k(nullptr, 1, 0, none, s) == status::null_data);
  CHECK(cuda::select_top_k(rows, 1, 100000, none, s) == status::workspace_small);
  CHECK(cuda::select_top_k(rows, 1, 0, none, stream_ref::host()) == status::unsupported);
  CHECK(cuda::select_top_k(nullptr, 0, 0, none, s) == status::ok);
  CHECK(cuda::select_above(nullptr, 1, s) == status::null_data);
  CHECK(cuda::select_above(rows, -1, s) == status::bad_argument);
  CHECK(cuda::select_above(rows, 1, stream_ref::host()) == status::unsupported);
}
