// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/calibrate/calibrate.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/train/start/start.hpp>
#include <fstream>
#include <map>
#include <numeric>

#include "src/train/learn/model.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/planted_documents.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;
namespace td = flashmemory::train::detail;

namespace {

ft::evaluation_options everything() {
  ft::evaluation_options o;
  o.windows = planted::windows();
  o.max_windows = 0;
  o.position_bucket = 300;
  return o;
}

fm::dual_encoder_config trained(const ft::document_source& source, int retrievers) {
  ft::start_options s;
  s.windows = planted::windows();
  return ft::start_indexer(source, planted::architecture(retrievers), s);
}

// One window as the library itself scores it: keys encoded from rows, fp8 as stored, key by key.
struct window_scores {
  std::string tag;
  ft::window_labels labels;
  std::map<std::int64_t, double> mass;
  std::vector<float> scores;  // [complete chunks]
};

std::vector<window_scores> by_the_library(const ft::document_source& source,
                                          const fm::dual_encoder_config& config) {
  const fm::dual_encoder_indexer index(config);
  std::vector<window_scores> out;
  for (std::size_t d = 0; d < source.documents().size(); ++d) {
    if (source.documents()[d].split != ft::dataset_split::validation) continue;
    const ft::document doc = source.load(std::int64_t(d));
    const std::int64_t keys = doc.keys[0].keys;
    // A window of four tokens that are all the recorded mean has that mean.
    const std::vector<float> inputs = doc.keys[0].inputs.to_floats();
    std::vector<float> rows;
    for (std::int64_t k = 0; k < keys; ++k) {
      for (int i = 0; i < planted::tokens_per_key; ++i) {
        rows.insert(rows.end(), inputs.begin() + k * planted::width,
                    inputs.begin() + (k + 1) * planted::width);
      }
    }
    std::vector<std::vector<std::byte>> encoded;
    for (std::size_t r = 0; r < config.retrievers.size(); ++r) {
      encoded.emplace_back(std::size_t(keys) * 132);
      fm::view<const float, 2> from(rows.data(), keys * planted::tokens_per_key, planted::width);
      fm::view<std::byte, 2> to(encoded.back().data(), keys, 132);
      REQUIRE(index.encode_index_keys(std::int32_t(r), from, to, {}, fm::serial_threads()) == fm::status::ok);
    }
    for (std::size_t w = 0; w < doc.positions.size(); ++w) {
      window_scores one;
      one.tag = doc.tag;
      one.labels = ft::label_window(doc, doc.positions[w], {}, planted::windows());
      if (one.labels.candidates() == 0) continue;
      const ft::window_mass mass = ft::mass_of_window(doc, doc.positions[w], planted::windows());
      for (std::size_t c = 0; c < mass.sum.size(); ++c) one.mass[std::int64_t(c)] = mass.sum[c];
      const std::int64_t per_chunk = planted::entries_per_chunk / planted::tokens_per_key;
      one.scores.assign(std::size_t(one.labels.complete_chunks), -INFINITY);
      std::vector<float> hidden(planted::width), queries(std::size_t(config.heads) * 128),
          gates(std::size_t(config.heads)), logits(inputs.size());
      doc.queries[0].read(std::int64_t(w), hidden.data());
      std::vector<float> scratch(1024);
      for (std::size_t r = 0; r < config.retrievers.size(); ++r) {
        REQUIRE(index.encode_query(std::int32_t(r), hidden.data(), doc.positions[w], queries.data(),
                                   gates.data(),
                                   {scratch.data(), scratch.size() * sizeof(float)}) == fm::status::ok);
        REQUIRE(index.score_keys(std::int32_t(r), queries.data(), gates.data(), encoded[r].data(), keys, keys,
                                 fm::index_key_layout::interleaved, logits.data(),
                                 fm::serial_threads()) == fm::status::ok);
        for (std::int64_t k = 0; k < one.labels.complete_chunks * per_chunk; ++k) {
          float& score = one.scores[std::size_t(k / per_chunk)];
          score = std::max(score, logits[std::size_t(k)]);
        }
      }
      out.push_back(std::move(one));
    }
  }
  return out;
}

struct counted {
  std::int64_t positives = 0, found = 0, above = 0;
  double footprint = 0, windows = 0, coverage = 0, oracle = 0, with_mass = 0;
};

counted count(const std::vector<window_scores>& all, double budget) {
  counted c;
  for (const window_scores& w : all) {
    const auto& l = w.labels;
    std::vector<std::int64_t> order;
    for (std::int64_t i = l.first_candidate; i < l.end_candidate; ++i) order.push_back(i);
    std::vector<std::int64_t> heavy = order;
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return w.scores[std::size_t(a)] > w.scores[std::size_t(b)]; });
    std::stable_sort(heavy.begin(), heavy.end(), [&](auto a, auto b) { return w.mass.at(a) > w.mass.at(b); });
    const auto always = l.complete_chunks - l.candidates();
    const auto k = std::size_t(std::clamp<std::int64_t>(
        std::llround(budget * double(l.complete_chunks)) - always, 1, l.candidates()));
    double total = 0, got = 0, best = 0;
    for (const auto i : order) total += w.mass.at(i);
    for (std::size_t i = 0; i < k; ++i) {
      got += w.mass.at(order[i]);
      best += w.mass.at(heavy[i]);
    }
    std::int64_t above = 0;
    for (const auto i : order) above += w.scores[std::size_t(i)] > 0;
    for (const auto& p : l.positives) {
      ++c.positives;
      c.found += std::count(order.begin(), order.begin() + std::ptrdiff_t(k), std::int64_t(p.chunk));
      c.above += w.scores[std::size_t(p.chunk)] > 0;
    }
    c.footprint += double(always + above) / double(l.complete_chunks);
    c.windows += 1;
    if (total > 0) {
      c.coverage += got / total;
      c.oracle += best / total;
      c.with_mass += 1;
    }
  }
  return c;
}

}  // namespace

TEST_CASE("the trainer's forward pass is what the library makes of the saved artifact", "[train]") {
  const auto seed = GENERATE(flashmemory_test::fresh_seeds(3));
  const bool bf16 = GENERATE(false, true);
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("indexer.safetensors");
  CAPTURE(seed, bf16);
  const ft::memory_source source(planted::geometry(), planted::many(seed, 3, 2, 40));
  fm::dual_encoder_config c = trained(source, 2);
  c.bf16_rounding = bf16;
  ft::save_artifact(c, {}, path);
  const fm::dual_encoder_config loaded = fm::load_dual_encoder(path);
  const std::vector<window_scores> expected = by_the_library(source, loaded);
  const td::dual_model model(c, source.geometry(), planted::entries_per_chunk);
  std::size_t at = 0;
  std::int64_t flipped = 0, total = 0;
  for (std::size_t d = 0; d < source.documents().size(); ++d) {
    if (source.documents()[d].split != ft::dataset_split::validation) continue;
    const td::example from = td::make_example(source.load(std::int64_t(d)), 0, "x", {}, planted::windows());
    std::vector<std::int64_t> windows;
    for (std::size_t w = 0; w < from.labels.size(); ++w) {
      if (from.labels[w].candidates() > 0) windows.push_back(std::int64_t(w));
    }
    td::document_batch batch;
    batch.fill(model.shape, model.taps, from, windows);
    std::vector<float> best(std::size_t(batch.chunks()) * windows.size(), -INFINITY);
    for (std::size_t r = 0; r < 2; ++r) {
      td::encoder<float> encoder(model.shape);
      encoder.forward(model.of(std::int64_t(r)), batch.input(r, model.taps), fm::serial_threads());
      for (std::size_t i = 0; i < best.size(); ++i) best[i] = std::max(best[i], encoder.scores()[i]);
    }
    for (std::size_t w = 0; w < windows.size(); ++w, ++at) {
      float largest = 0;
      for (const float z : expected[at].scores) largest = std::max(largest, std::fabs(z));
      for (std::int64_t chunk = 0; chunk < expected[at].labels.end_candidate; ++chunk) {
        const float mine = best[std::size_t(chunk) * windows.size() + w];
        const float theirs = expected[at].scores[std::size_t(chunk)];
        // A key value on the border of two e4m3 codes may be rounded to either, by the order of sums: one of 128
        // values then differs by an eighth at most, in all windows.
        CHECK(std::fabs(mine - theirs) <= 3e-2f * largest);
        flipped += std::fabs(mine - theirs) > 1e-4f * largest;
        ++total;
      }
    }
  }
  CHECK(at == expected.size());
  CAPTURE(flipped, total);
  CHECK(flipped * 20 <= total);
}

TEST_CASE("evaluation counts what a plain count over the library's scores counts", "[train]") {
  const auto seed = GENERATE(flashmemory_test::fresh_seeds(2));
  const std::int64_t chunks = GENERATE(9, 60);
  CAPTURE(seed, chunks);
  const ft::memory_source source(planted::geometry(), planted::many(seed, 3, 4, chunks));
  const fm::dual_encoder_config c = trained(source, 2);
  const std::vector<window_scores> all = by_the_library(source, c);
  const ft::evaluation result = ft::evaluate(source, c, everything());
  CHECK(result.documents == 4);
  const ft::group_result& g = result.groups.front();
  CHECK(g.name == "all");
  CHECK(g.windows == std::int64_t(all.size()));
  for (const ft::budget_result& b : g.budgets) {
    const counted n = count(all, b.budget);
    CAPTURE(b.budget);
    // One borderline fp8 rounding may move one chunk across the budget.
    CHECK(g.positives == n.positives);
    CHECK(b.recall == Approx(double(n.found) / double(n.positives)).margin(1.01 / double(n.positives)));
    CHECK(b.coverage == Approx(n.coverage / n.with_mass).margin(1.01 / n.with_mass));
    CHECK(b.oracle_coverage == Approx(n.oracle / n.with_mass).margin(1e-9));
    CHECK(g.threshold_footprint == Approx(n.footprint / n.windows).margin(1e-3));
    CHECK(g.threshold_recall ==
          Approx(double(n.above) / double(n.positives)).margin(1.01 / double(n.positives)));
  }
  std::int64_t by_tag = 0, by_position = 0;
  for (const ft::group_result& other : result.groups) {
    if (other.name.rfind("tag ", 0) == 0) by_tag += other.positives;
    if (other.name.rfind("position ", 0) == 0) by_position += other.positives;
  }
  CHECK(by_tag == g.positives);
  CHECK(by_position == g.positives);
  CHECK(ft::to_table(result).find("tag odd") != std::string::npos);
  CHECK(ft::to_json(result).find("\"tag even\"") != std::string::npos);
}

TEST_CASE("calibration reaches its goal with the least that does", "[train]") {
  const auto seed = GENERATE(flashmemory_test::fresh_seeds(2));
  const double recall = GENERATE(0.5, 0.9, 1.0);
  const bool per_layer = GENERATE(false, true);
  CAPTURE(seed, recall, per_layer);
  const ft::memory_source source(planted::geometry(), planted::many(seed, 4, 4, 60));
  fm::dual_encoder_config c = trained(source, 2);
  c.retrievers[1].logit_offset += 3;  // out of step
  const fm::dual_encoder_config before = c;
  const ft::calibration done = ft::calibrate(source, c, everything(), {recall, 0, per_layer});
  CHECK(done.recall >= recall);
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(c.retrievers[r].logit_offset == Approx(before.retrievers[r].logit_offset + float(done.offsets[r])));
    CHECK(c.retrievers[r].wq_b == before.retrievers[r].wq_b);
  }
  const ft::group_result g = ft::evaluate(source, c, everything()).groups.front();
  CHECK(g.threshold_recall == Approx(done.recall).margin(1e-9));
  CHECK(g.threshold_footprint == Approx(done.footprint).margin(1e-6));
  // A threshold that is higher by more than rounding loses the goal.
  fm::dual_encoder_config higher = c;
  for (auto& w : higher.retrievers) w.logit_offset -= 0.5f;
  const ft::group_result less = ft::evaluate(source, higher, everything()).groups.front();
  CHECK((less.threshold_recall < recall || less.threshold_footprint == g.threshold_footprint));
  if (per_layer) {
    fm::dual_encoder_config together = before;
    CHECK(done.footprint <= ft::calibrate(source, together, everything(), {recall, 0, false}).footprint);
  }
}

TEST_CASE("calibration to a footprint keeps no more than that", "[train]") {
  const double footprint = GENERATE(0.15, 0.3, 1.0);
  CAPTURE(footprint);
  const ft::memory_source source(planted::geometry(), planted::many(11, 4, 4, 60));
  fm::dual_encoder_config c = trained(source, 2);
  const ft::calibration done = ft::calibrate(source, c, everything(), {0, footprint, true});
  CHECK(done.footprint <= footprint);
  CHECK(ft::evaluate(source, c, everything()).groups.front().threshold_footprint ==
        Approx(done.footprint).margin(1e-6));
  CHECK(done.footprint > footprint - 0.02);
}

TEST_CASE("a chunk that too few tokens attend to is not needed", "[train]") {
  const std::int32_t least = GENERATE(1, 2, 3, 4);
  CAPTURE(least);
  // Chunk 2 is attended to at three tokens, by two heads at one of them; chunk 4 twice at the same token.
  ft::document doc = planted::make(1, 20, ft::dataset_split::train);
  doc.attention = {};
  const auto add = [&](std::uint16_t head, std::uint32_t chunk) {
    doc.attention.layer.push_back(0);
    doc.attention.head.push_back(head);
    doc.attention.entry.push_back(chunk * planted::entries_per_chunk);
    doc.attention.mass.push_back(0.6f);
  };
  const auto token = [&](std::int64_t position) {
    doc.attention.positions.push_back(position);
    doc.attention.offsets.push_back(std::int64_t(doc.attention.entry.size()));
  };
  add(0, 2);
  token(201);
  add(0, 2);
  add(1, 2);
  token(203);
  add(0, 4);
  add(1, 4);
  token(204);
  add(1, 2);
  token(216);
  add(0, 4);
  token(217);  // beyond the window
  ft::label_rule rule;
  rule.min_tokens = least;
  std::vector<std::int64_t> expected;
  if (least <= 3) expected.push_back(2);
  if (least <= 1) expected.push_back(4);
  std::vector<std::int64_t> positives;
  for (const auto& p : ft::label_window(doc, 200, rule, planted::windows()).positives)
    positives.push_back(p.chunk);
  CHECK(positives == expected);
  rule.min_tokens = 0;
  CHECK_THROWS_WITH(ft::validate(rule), Catch::Contains("min_tokens"));
}

TEST_CASE("goals and data that cannot be calibrated are refused", "[train]") {
  const ft::memory_source source(planted::geometry(), planted::many(11, 2, 1, 30));
  fm::dual_encoder_config c = trained(source, 1);
  CHECK_THROWS_AS(ft::calibrate(source, c, everything(), {0, 0}), fm::argument_error);
  CHECK_THROWS_AS(ft::calibrate(source, c, everything(), {0.9, 0.1}), fm::argument_error);
  CHECK_THROWS_AS(ft::calibrate(source, c, everything(), {1.5, 0}), fm::argument_error);
  CHECK_THROWS_AS(ft::calibrate(source, c, everything(), {std::nan(""), 0}), fm::argument_error);
  const ft::memory_source training_only(planted::geometry(), planted::many(11, 2, 0, 30));
  CHECK_THROWS_WITH(ft::evaluate(training_only, c, everything()), Catch::Contains("validation"));
  ft::evaluation_options bad = everything();
  bad.budgets = {0};
  CHECK_THROWS_WITH(ft::evaluate(source, c, bad), Catch::Contains("budget"));
}

TEST_CASE("an artifact's training record comes back, and is refused where it does not belong", "[train]") {
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("indexer.safetensors");
  const ft::memory_source source(planted::geometry(), planted::many(11, 2, 1, 30));
  fm::dual_encoder_config c = trained(source, 2);
  ft::training_record record;
  record.windows = planted::windows();
  record.run = "{\"seed\":1}";
  record.recordings = source.fingerprint();
  record.start = "bilinear";
  record.calibrated_on = "held out";
  record.calibration = ft::calibrate(source, c, everything(), {0.9, 0, true});
  record.calibrated = true;
  ft::save_artifact(c, record, path);
  const ft::training_record back = ft::load_training_record(path);
  CHECK(back.windows.tau == record.windows.tau);
  CHECK(back.windows.entries_per_chunk == 16);
  CHECK(back.run == record.run);
  CHECK(back.recordings == record.recordings);
  CHECK(back.start == record.start);
  CHECK(back.calibrated_on == record.calibrated_on);
  CHECK(back.calibrated);
  CHECK(back.calibration.offsets == record.calibration.offsets);
  CHECK(back.calibration.goal.recall == 0.9);
  CHECK(!back.library_version.empty());
  CHECK(fm::load_dual_encoder(path).retrievers[1].wk == c.retrievers[1].wk);

  fm::kv_geometry store;
  store.entries_per_chunk = 16;
  CHECK_NOTHROW(ft::check_compatible(back, store));
  store.entries_per_chunk = 64;
  CHECK_THROWS_WITH(ft::check_compatible(back, store), Catch::Contains("entries_per_chunk = 16"));

  const fm::safetensors_file file(path);
  const std::string note = file.metadata().at("training");
  c.retrievers[0].logit_offset += 1;
  fm::save_dual_encoder(c, path, {{"training", note}});
  CHECK_THROWS_WITH(ft::load_training_record(path), Catch::Contains("other weights"));
  fm::save_dual_encoder(c, path);
  CHECK_THROWS_WITH(ft::load_training_record(path), Catch::Contains("there is none"));
  for (const char* damaged : {"", "[]", "{}", "{\"version\":2}", "{\"version\":\"1\"}"}) {
    fm::save_dual_encoder(c, path, {{"training", damaged}});
    CHECK_THROWS_AS(ft::load_training_record(path), fm::format_error);
  }
  CHECK_THROWS_AS(fm::save_dual_encoder(c, path, {{"config", "x"}}), fm::argument_error);
}

TEST_CASE("an artifact says nothing of when it was made: the same run makes the same bytes", "[train]") {
  const flashmemory_test::temporary_folder folder;
  const ft::memory_source source(planted::geometry(), planted::many(11, 2, 1, 30));
  const auto bytes_of = [&](const std::string& path) {
    ft::training_record record;
    record.windows = planted::windows();
    fm::dual_encoder_config c = trained(source, 2);
    record.calibration = ft::calibrate(source, c, everything(), {0.9, 0, true});
    record.calibrated = true;
    const ft::evaluation result = ft::evaluate(source, c, everything());
    CHECK(result.seconds > 0);
    record.evaluation = ft::to_json(result);
    ft::save_artifact(c, record, path);
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  CHECK(bytes_of(folder.file("a")) == bytes_of(folder.file("b")));
}
