// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/exchange/retrieval.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/random_document.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;
using flashmemory_test::temporary_folder;

namespace {

fm::tensor_source tensor(const char* name, const std::vector<float>& values,
                         std::vector<std::int64_t> shape) {
  fm::tensor_source t;
  t.name = name;
  t.shape = std::move(shape);
  t.data = reinterpret_cast<const std::byte*>(values.data());
  t.bytes = values.size() * sizeof(float);
  return t;
}

}  // namespace

TEST_CASE("exported rows are the labels, with vectors where they say and negatives that are none of them",
          "[train][retrieval]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  const int stream = GENERATE(0, 1);
  const bool keep = GENERATE(false, true);
  CAPTURE(seed, stream, keep);
  const auto g = support::small_geometry();
  const temporary_folder folder, out;
  {
    train::recorder recorder(folder.path(), g);
    for (std::uint64_t i = 0; i < 4; ++i) recorder.add(support::random_document(g, seed + i, 200));
  }
  const train::recordings data(folder.path());
  train::retrieval_export_options options;
  options.windows = train::window_options_for(g);
  options.windows.tau = 20;
  options.windows.recent_chunks = 1;
  options.rule.min_mass = 0.3f;
  options.key_stream = stream;
  options.negatives = 3;
  options.keep_windows_without_positives = keep;
  const auto counts = export_retrieval(data, options, out.path());
  CHECK(counts.documents == 4);

  std::ifstream lines(out.file("rows.jsonl"));
  std::string line;
  std::int64_t rows = 0, expected_rows = 0;
  for (std::int64_t d = 0; d < 4; ++d) {
    const auto doc = data.load(d);
    const std::string name = "00000" + std::to_string(d) + ".safetensors";
    const fm::safetensors_file vectors(out.file(name));
    const int width = stream == 1 ? 128 : 6;
    const auto& keys = vectors.require("keys", {doc.tokens / 8, 2, width});
    const auto& queries = vectors.require("queries", {doc.queries[0].rows(), 6});
    CHECK(fm::to_floats(vectors, queries) == doc.queries[0].to_floats());
    const auto values = fm::to_floats(vectors, keys);
    if (stream == 0) {
      const auto all = doc.keys[0].inputs.to_floats();
      CHECK(std::equal(values.begin(), values.end(), all.begin()));
    } else if (!values.empty()) {
      float scale;
      std::memcpy(&scale, doc.keys[1].native.data() + 128, 4);
      CHECK(values[5] == fm::from_e4m3(static_cast<std::uint8_t>(doc.keys[1].native[5])) * scale);
    }
    for (std::size_t q = 0; q < doc.positions.size(); ++q) {
      const auto labels = label_window(doc, doc.positions[q], options.rule, options.windows);
      if (labels.tokens_seen == 0 || (!keep && labels.positives.empty())) continue;
      ++expected_rows;
      REQUIRE(std::getline(lines, line));
      const auto row = nlohmann::json::parse(line);
      CHECK(row["vectors"] == name);
      CHECK(row["query"] == q);
      CHECK(row["position"] == doc.positions[q]);
      CHECK(row["tag"] == doc.tag);
      REQUIRE(row["positives"].size() == labels.positives.size());
      for (std::size_t i = 0; i < labels.positives.size(); ++i)
        CHECK(row["positives"][i] == labels.positives[i].chunk);
      const auto wanted =
          std::min<std::int64_t>(3, labels.candidates() - static_cast<std::int64_t>(labels.positives.size()));
      CHECK(static_cast<std::int64_t>(row["negatives"].size()) == wanted);
      for (const int n : row["negatives"]) {
        CHECK((n >= labels.first_candidate && n < labels.end_candidate));
        CHECK(std::find(row["positives"].begin(), row["positives"].end(), n) == row["positives"].end());
      }
      ++rows;
    }
  }
  CHECK(!std::getline(lines, line));
  CHECK(rows == expected_rows);
  CHECK(counts.rows == rows);

  options.key_stream = 3;
  CHECK_THROWS_AS(export_retrieval(data, options, out.path()), fm::argument_error);
  options.key_stream = 0;
  options.windows.entries_per_chunk = 6;  // cuts a key in two
  CHECK_THROWS_AS(export_retrieval(data, options, out.path()), fm::argument_error);
}

TEST_CASE("an encoder that was trained elsewhere scores as its formula says", "[train][retrieval]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = normal(random);
    return v;
  };
  constexpr int hidden = 12, rank = 5, heads = 3;
  const auto down = fill(rank * hidden), norm = fill(rank), up = fill(heads * 128 * rank),
             gate = fill(heads * hidden), key = fill(128 * hidden), x = fill(hidden);
  const std::vector<float> offset{-1.5f};
  const temporary_folder folder;
  const std::vector<fm::tensor_source> good{tensor("m.query.down.weight", down, {rank, hidden}),
                                            tensor("m.query.norm.weight", norm, {rank}),
                                            tensor("m.query.up.weight", up, {heads * 128, rank}),
                                            tensor("m.query.gate.weight", gate, {heads, hidden}),
                                            tensor("m.key.weight", key, {128, hidden}),
                                            tensor("m.logit_offset", offset, {1})};
  fm::write_safetensors(folder.file("a"), good, {});
  fm::dual_encoder_config base;
  base.bf16_rounding = false;
  base.q_norm_eps = 1e-5f;
  base.key_window = 16;
  const auto config = train::import_dual_encoder({{folder.file("a"), "m.", "", 6, 2}}, base);
  CHECK(config.retrievers[0].name == "l6k2");
  CHECK(config.retrievers[0].logit_offset == -1.5f);
  CHECK(config.key_window == 16);

  // The query side in double precision, against the indexer that the import makes.
  const fm::dual_encoder_indexer index(config);
  std::vector<float> queries(heads * 128), gates(heads);
  std::vector<std::byte> scratch(1 << 16);
  REQUIRE(index.encode_query(0, x.data(), 0, queries.data(), gates.data(),
                             {scratch.data(), scratch.size()}) == fm::status::ok);
  double a[rank] = {}, squares = 0;
  for (int r = 0; r < rank; ++r) {
    for (int i = 0; i < hidden; ++i)
      a[r] += double{down[static_cast<std::size_t>(r * hidden + i)]} * double{x[static_cast<std::size_t>(i)]};
    squares += a[r] * a[r];
  }
  for (int r = 0; r < rank; ++r)
    a[r] *= double{norm[static_cast<std::size_t>(r)]} / std::sqrt(squares / rank + 1e-5);
  for (int h = 0; h < heads; ++h) {
    double w = 0, q[128] = {};
    for (int i = 0; i < hidden; ++i)
      w += double{gate[static_cast<std::size_t>(h * hidden + i)]} * double{x[static_cast<std::size_t>(i)]};
    CHECK(double{gates[static_cast<std::size_t>(h)]} == Approx(w / std::sqrt(128.0 * heads)).margin(1e-5));
    for (int i = 0; i < 128; ++i)
      for (int r = 0; r < rank; ++r)
        q[i] += double{up[static_cast<std::size_t>((h * 128 + i) * rank + r)]} * a[r];
    for (int i = 0; i < 128; ++i) {
      double sum = 0;
      for (int j = 0; j < 128; ++j)
        sum += (__builtin_popcount(static_cast<unsigned>(i & j)) % 2 ? -1 : 1) * q[j];
      CHECK(double{queries[static_cast<std::size_t>(h * 128 + i)]} ==
            Approx(sum / std::sqrt(128.0)).margin(1e-4));
    }
  }

  CHECK_THROWS_AS(train::import_dual_encoder({}, base), fm::argument_error);
  CHECK_THROWS_WITH(train::import_dual_encoder({{folder.file("a"), "", "", 6, 2}}, base),
                    Catch::Contains("query.down.weight"));
  auto bad = good;
  bad[2] = tensor("m.query.up.weight", key, {128, hidden});
  fm::write_safetensors(folder.file("b"), bad, {});
  CHECK_THROWS_WITH(train::import_dual_encoder({{folder.file("b"), "m.", "", 6, 2}}, base),
                    Catch::Contains("m.query.up.weight"));
  const auto other = fill(rank * 8), other_gate = fill(heads * 8), other_key = fill(128 * 8);
  bad = good;
  bad[0] = tensor("m.query.down.weight", other, {rank, 8});
  bad[3] = tensor("m.query.gate.weight", other_gate, {heads, 8});
  bad[4] = tensor("m.key.weight", other_key, {128, 8});
  fm::write_safetensors(folder.file("c"), bad, {});
  CHECK_THROWS_AS(train::import_dual_encoder(
                      {{folder.file("a"), "m.", "", 6, 2}, {folder.file("c"), "m.", "", 7, 2}}, base),
                  fm::argument_error);
}
