// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/random_document.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;
using flashmemory_test::temporary_folder;
using support::random_document;
using support::same;
using support::small_geometry;

namespace {

train::recorder_options budgets(std::size_t memory, std::size_t shard) {
  train::recorder_options o;
  o.memory_budget = memory;
  o.shard_bytes = shard;
  return o;
}

}  // namespace

TEST_CASE("what was recorded is read back byte for byte, whatever the budgets", "[train][recorder]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  const std::size_t memory = GENERATE(std::size_t{9000}, std::size_t{20000}, std::size_t{1} << 20);
  const std::size_t shard = GENERATE(std::size_t{1}, std::size_t{8000});
  const fm::dtype rows = GENERATE(fm::dtype::bf16, fm::dtype::f32);
  const int tokens_per_entry = GENERATE(1, 4);
  CAPTURE(seed, memory, shard, fm::to_string(rows), tokens_per_entry);
  const temporary_folder folder;
  const auto g = small_geometry(tokens_per_entry);
  std::vector<train::document> docs;
  for (std::uint64_t i = 0; i < 12; ++i) docs.push_back(random_document(g, seed + i));
  {
    auto options = budgets(memory, shard);
    options.rows = rows;
    train::recorder recorder(folder.path(), g, options);
    for (const auto& doc : docs) recorder.add(doc);
    recorder.flush();
    CHECK(recorder.counters().documents == 12);
    CHECK(recorder.counters().peak_bytes <= memory);
  }
  const train::recordings data(folder.path());
  CHECK(data.geometry() == g);
  data.verify();
  REQUIRE(data.documents().size() == docs.size());
  for (std::size_t i = 0; i < docs.size(); ++i) {
    CAPTURE(i);
    const auto read = data.load(static_cast<std::int64_t>(i));
    CHECK(same(read, docs[i]));
    CHECK(data.documents()[i].tag == docs[i].tag);
    CHECK(data.documents()[i].tokens == docs[i].tokens);
    CHECK(data.documents()[i].queries == static_cast<std::int64_t>(docs[i].positions.size()));
  }
}

TEST_CASE("several sequences are recorded at a time, and parts of long ones are joined",
          "[train][recorder]") {
  const temporary_folder folder;
  train::recording_geometry g;
  g.layers = 1;
  g.heads = 1;
  g.keys = {{0, 8, 1, 1, 0}};
  auto options = budgets(16 << 10, 16 << 10);
  options.rows = fm::dtype::f32;
  constexpr std::int64_t tokens = 3000;
  {
    train::recorder recorder(folder.path(), g, options);
    const auto a = recorder.begin("a", train::dataset_split::train);
    const auto b = recorder.begin("b", train::dataset_split::validation);
    const auto c = recorder.begin("never finished", train::dataset_split::train);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<float> row(8, static_cast<float>(t));
      const fm::view<const float, 2> rows(row.data(), 1, 8);
      recorder.add_hidden(a, 0, t, rows);
      if (t < tokens / 2) recorder.add_hidden(b, 0, t, rows);
      recorder.add_hidden(c, 0, t, rows);
      if (t == tokens / 2) recorder.finish(b, tokens / 2);
    }
    recorder.finish(a, tokens);
    recorder.flush();
    CHECK(recorder.counters().peak_bytes <= options.memory_budget);
    CHECK(recorder.counters().shards > 3);
  }
  const train::recordings data(folder.path());
  REQUIRE(data.documents().size() == 2);
  CHECK(data.documents()[1].tag == "b");
  for (std::int64_t d = 0; d < 2; ++d) {
    const auto doc = data.load(d);
    const auto values = doc.keys[0].inputs.to_floats();
    REQUIRE(doc.keys[0].keys == (d == 0 ? tokens : tokens / 2));
    for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(values[i] == static_cast<float>(i / 8));
  }
}

TEST_CASE("averaged hidden states do not depend on how the tokens arrive", "[train][recorder]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  train::recording_geometry g;
  g.layers = 1;
  g.heads = 1;
  g.keys = {{0, 5, 4, 16, 0}, {0, 5, 4, 4, 0}, {0, 5, 3, 7, 0}};
  constexpr std::int64_t tokens = 101;
  std::vector<float> hidden(tokens * 5);
  for (float& x : hidden) x = std::uniform_real_distribution<float>(-2, 2)(random);
  const temporary_folder folder;
  {
    auto options = budgets(1 << 20, 1 << 20);
    options.rows = fm::dtype::f32;
    train::recorder recorder(folder.path(), g, options);
    for (const std::int64_t most : {std::int64_t{1}, std::int64_t{7}, std::int64_t{40}, tokens}) {
      const auto id = recorder.begin("", train::dataset_split::train);
      for (std::int64_t t = 0; t < tokens;) {
        const auto part = std::min(tokens - t, std::uniform_int_distribution<std::int64_t>(1, most)(random));
        recorder.add_hidden(id, 0, t, fm::view<const float, 2>(hidden.data() + t * 5, part, 5));
        recorder.add_hidden(id, 1, t, fm::view<const float, 2>(hidden.data(), part, 2));  // nobody reads it
        t += part;
      }
      recorder.finish(id, tokens);
    }
    recorder.flush();
  }
  const train::recordings data(folder.path());
  REQUIRE(data.documents().size() == 4);
  for (std::int64_t d = 0; d < 4; ++d) {
    const auto doc = data.load(d);
    for (std::size_t s = 0; s < g.keys.size(); ++s) {
      const auto values = doc.keys[s].inputs.to_floats();
      REQUIRE(doc.keys[s].keys == tokens / g.keys[s].tokens_per_key);
      for (std::int64_t k = 0; k < doc.keys[s].keys; ++k)
        for (std::int64_t i = 0; i < 5; ++i) {
          double sum = 0;
          const std::int64_t after = (k + 1) * g.keys[s].tokens_per_key;
          for (std::int64_t t = std::max<std::int64_t>(after - g.keys[s].window, 0); t < after; ++t)
            sum += double{hidden[static_cast<std::size_t>(t * 5 + i)]};
          CHECK(double{values[static_cast<std::size_t>(k * 5 + i)]} ==
                Approx(sum / g.keys[s].window).margin(1e-6));
        }
    }
  }
}

TEST_CASE("several writers share a folder, and their documents come in a fixed order", "[train][recorder]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const temporary_folder folder;
  const auto g = small_geometry();
  auto first = budgets(1 << 20, 1), second = budgets(1 << 20, 1);
  first.writer = "node-1";
  second.writer = "node-0";
  {
    train::recorder one(folder.path(), g, first), two(folder.path(), g, second);
    for (std::uint64_t i = 0; i < 4; ++i) {
      one.add(random_document(g, seed + i));
      two.add(random_document(g, seed + 100 + i));
    }
    CHECK_THROWS_AS(train::recorder(folder.path(), g, first), fm::io_failure);  // the name is taken
  }
  const train::recordings data(folder.path());
  REQUIRE(data.documents().size() == 8);
  for (std::uint64_t i = 0; i < 4; ++i) {
    CHECK(same(data.load(static_cast<std::int64_t>(i)), random_document(g, seed + 100 + i)));
    CHECK(same(data.load(static_cast<std::int64_t>(4 + i)), random_document(g, seed + i)));
  }
  CHECK(data.documents()[0].name == "node-0/0");
}

TEST_CASE("a recorder of the same name goes on where the manifest ends", "[train][recorder]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const temporary_folder folder;
  const auto g = small_geometry();
  std::string before;
  for (std::uint64_t run = 0; run < 3; ++run) {
    train::recorder recorder(folder.path(), g, budgets(1 << 20, 1));
    CHECK(recorder.counters().documents == static_cast<std::int64_t>(2 * run));
    recorder.add(random_document(g, seed + 2 * run));
    recorder.add(random_document(g, seed + 2 * run + 1));
    const auto lost = recorder.begin("lost", train::dataset_split::train);
    const std::vector<float> a(6, 1.0f), b(10, 1.0f);
    const float* const rows[] = {a.data(), b.data()};
    recorder.add_query(lost, 3, rows);
    recorder.flush();  // writes the part of a document that is never finished
    const std::string now = train::recordings(folder.path()).fingerprint();
    CHECK(now != before);
    before = now;
  }
  const train::recordings data(folder.path());
  REQUIRE(data.documents().size() == 6);
  for (std::uint64_t i = 0; i < 6; ++i)
    CHECK(same(data.load(static_cast<std::int64_t>(i)), random_document(g, seed + i)));
}

TEST_CASE("a recorder refuses what does not fit, and takes nothing of it", "[train][recorder]") {
  const temporary_folder folder;
  const auto g = small_geometry();
  train::recorder recorder(folder.path(), g);
  const auto id = recorder.begin("", train::dataset_split::train);
  std::vector<float> a(6, 1.0f), b(10, 1.0f);
  const float* rows[] = {a.data(), b.data()};
  recorder.add_query(id, 5, rows);
  CHECK_THROWS_AS(recorder.add_query(id, 5, rows), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_query(id, -1, rows), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_query(id + 1, 6, rows), fm::argument_error);
  b[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(recorder.add_query(id, 6, rows), Catch::Contains("queries of layer 2"));
  const float* missing[] = {a.data(), nullptr};
  CHECK_THROWS_AS(recorder.add_query(id, 6, missing), fm::argument_error);

  recorder.add_attention(id, 4, {{0, 0, 4, 0.5f}, {2, 1, 0, 1.0f}});
  CHECK_THROWS_AS(recorder.add_attention(id, 4, {}), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{0, 0, 6, 0.5f}}), fm::argument_error);  // in its future
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{3, 0, 0, 0.5f}}), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{0, 2, 0, 0.5f}}), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{0, 0, 0, 0.0f}}), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{0, 0, 0, 1.5f}}), fm::argument_error);
  CHECK_THROWS_AS(recorder.add_attention(id, 5, {{0, 0, 1, 0.1f}, {0, 0, 1, 0.2f}}), fm::argument_error);

  CHECK_THROWS_AS(recorder.add_hidden(id, 0, 1, fm::view<const float, 2>(a.data(), 1, 6)),
                  fm::argument_error);
  CHECK_THROWS_AS(recorder.add_hidden(id, 0, 0, fm::view<const float, 2>(a.data(), 1, 5)),
                  fm::argument_error);
  CHECK_THROWS_AS(recorder.add_key_inputs(id, 1, fm::view<const float, 2>(a.data(), 1, 6)),
                  fm::argument_error);
  std::byte key[132] = {};
  CHECK_THROWS_AS(recorder.add_native_keys(id, 0, fm::view<const std::byte, 2>(key, 1, 132)),
                  fm::argument_error);
  key[7] = std::byte{0x7f};
  CHECK_THROWS_AS(recorder.add_native_keys(id, 1, fm::view<const std::byte, 2>(key, 1, 132)), fm::error);
  recorder.add_key_inputs(id, 0, fm::view<const float, 2>(a.data(), 1, 6));
  CHECK_THROWS_AS(recorder.add_hidden(id, 0, 0, fm::view<const float, 2>(a.data(), 1, 6)),
                  fm::argument_error);

  CHECK_THROWS_AS(recorder.add_evidence(id, {3, 3, 0, 1}), fm::argument_error);
  CHECK_THROWS_WITH(recorder.finish(id, 5), Catch::Contains("query position 5"));
  CHECK_THROWS_WITH(recorder.finish(id, 6), Catch::Contains("index-key lane 1 has 0 keys"));
  CHECK_THROWS_AS(recorder.begin("\xff", train::dataset_split::train), fm::argument_error);
  recorder.drop(id);
  CHECK_THROWS_AS(recorder.finish(id, 6), fm::argument_error);
  CHECK(recorder.counters().dropped == 1);
  CHECK_THROWS_AS(train::recordings(folder.path()), fm::argument_error);  // no document yet
}

TEST_CASE("options, geometries and single rows that cannot work are refused", "[train][recorder]") {
  const temporary_folder folder;
  auto g = small_geometry();
  train::recorder_options o;
  o.writer = "a.b";
  CHECK_THROWS_AS(train::recorder(folder.path(), g, o), fm::argument_error);
  o = {};
  o.rows = fm::dtype::f16;
  CHECK_THROWS_AS(train::recorder(folder.path(), g, o), fm::argument_error);
  CHECK_THROWS_AS(train::recorder(folder.path(), g, budgets(100, 200)), fm::argument_error);
  CHECK_THROWS_AS(train::recorder(folder.path(), g, budgets(0, 0)), fm::argument_error);
  g.keys[0].window = 3;
  CHECK_THROWS_WITH(train::recorder(folder.path(), g), Catch::Contains("keys[0].window"));
  g = small_geometry();
  g.heads = 0;
  CHECK_THROWS_AS(train::recorder(folder.path(), g), fm::argument_error);
  g = small_geometry();
  g.keys[2].width = 7;  // two widths of one layer
  CHECK_THROWS_AS(train::recorder(folder.path(), g), fm::argument_error);
  CHECK_THROWS_AS(train::recorder(folder.path() + "/no/such", small_geometry()), fm::io_failure);

  train::recorder tight(folder.path(), small_geometry(), budgets(600, 600));
  const auto id = tight.begin("", train::dataset_split::train);
  const std::vector<float> a(6), b(10);
  const float* const rows[] = {a.data(), b.data()};
  CHECK_THROWS_AS(tight.add_query(id, 0, rows), fm::admission_error);
}
