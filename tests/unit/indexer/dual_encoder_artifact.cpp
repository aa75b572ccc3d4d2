// SPDX-License-Identifier: MIT
#include <flashmemory/io/safetensors.hpp>
#include <functional>
#include <limits>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/indexer/dual_encoder_support.hpp"
#include "tests/unit/io/safetensors_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;
using Catch::Matchers::Contains;

namespace {

void check_same(const dual_encoder_config& a, const dual_encoder_config& b) {
  CHECK(a.hidden == b.hidden);
  CHECK(a.rank == b.rank);
  CHECK(a.heads == b.heads);
  CHECK(a.q_norm_eps == b.q_norm_eps);
  CHECK(a.bf16_rounding == b.bf16_rounding);
  CHECK(a.rope.dim == b.rope.dim);
  CHECK(a.rope.base == b.rope.base);
  CHECK(a.rope.factor == b.rope.factor);
  CHECK(a.rope.original_length == b.rope.original_length);
  CHECK(a.rope.beta_fast == b.rope.beta_fast);
  CHECK(a.rope.beta_slow == b.rope.beta_slow);
  CHECK(a.rope.max_positions == b.rope.max_positions);
  CHECK(a.tokens_per_key == b.tokens_per_key);
  CHECK(a.key_window == b.key_window);
  CHECK(a.key_scale_floor == b.key_scale_floor);
  CHECK(a.combine == b.combine);
  CHECK(a.reduce == b.reduce);
  CHECK(a.model_fingerprint == b.model_fingerprint);
  REQUIRE(a.retrievers.size() == b.retrievers.size());
  for (std::size_t r = 0; r < a.retrievers.size(); ++r) {
    const auto &x = a.retrievers[r], &y = b.retrievers[r];
    CHECK(x.name == y.name);
    CHECK(x.query_layer == y.query_layer);
    CHECK(x.key_layer == y.key_layer);
    CHECK(x.wq_a == y.wq_a);
    CHECK(x.q_norm == y.q_norm);
    CHECK(x.wq_b == y.wq_b);
    CHECK(x.weights_proj == y.weights_proj);
    CHECK(x.wk == y.wk);
    CHECK(x.logit_offset == y.logit_offset);
  }
}

/// A safetensors file as data that tests can bend before it is written.
struct draft {
  struct item {
    tensor_source tensor;
    std::vector<std::byte> data;
  };
  std::vector<item> items;
  std::map<std::string, std::string> metadata;

  item& at(const std::string& name) {
    for (item& i : items) {
      if (i.tensor.name == name) return i;
    }
    throw std::out_of_range(name);
  }

  void remove(const std::string& name) {
    std::erase_if(items, [&](const item& i) { return i.tensor.name == name; });
  }

  void add(const std::string& name, tensor_type type, std::vector<std::int64_t> shape) {
    item i;
    i.tensor.name = name;
    i.tensor.type = type;
    i.tensor.shape = std::move(shape);
    i.data.resize(std::size_t(i.tensor.elements()) * size_of(type));
    items.push_back(std::move(i));
  }

  void write(const std::string& path) {
    std::vector<tensor_source> tensors;
    for (item& i : items) {
      i.tensor.data = i.data.data();
      i.tensor.bytes = i.data.size();
      tensors.push_back(i.tensor);
    }
    write_safetensors(path, tensors, metadata);
  }
};

draft draft_of(const std::string& path) {
  const safetensors_file file(path);
  draft d;
  d.metadata = file.metadata();
  for (const tensor_entry& t : file.tensors()) d.items.push_back({t, {t.data, t.data + t.bytes}});
  return d;
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("A saved dual encoder loads with every field and weight as it was", "[artifact]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const temporary_folder folder;
  const std::string path = folder.file("indexer.safetensors");
  for (const bool with_keys : {false, true}) {
    auto config = random_config(random, 13, 5, 3, 3, with_keys);
    save_dual_encoder(config, path);
    check_same(load_dual_encoder(path), config);
    config.q_norm_eps = 1.2345e-5f;
    config.bf16_rounding = false;
    config.rope = {64, 12345.678, 2.5, 4096, 33.25, 1.5, 777};
    config.tokens_per_key = 2;
    config.key_window = 9;
    config.key_scale_floor = 448e-12f;
    config.combine = ensemble::mean;
    config.reduce = with_keys ? key_reduction::sum : key_reduction::count_positive;
    config.model_fingerprint = "tiny \"model\" \xe2\x82\xac";
    config.retrievers[1].name = "l6k2";
    save_dual_encoder(config, path);
    check_same(load_dual_encoder(path), config);
    check_same(load_dual_encoder(path, {1, 2, 3, 4}), config);  // the map is for files without metadata
  }
}

TEST_CASE("save_dual_encoder() refuses a configuration that could not be loaded, and writes nothing",
          "[artifact]") {
  std::mt19937 random(1);
  const temporary_folder folder;
  auto config = random_config(random, 13, 5, 3, 1, false);
  config.retrievers[0].wq_a[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(save_dual_encoder(config, folder.file("x")), argument_error);
  config.retrievers[0].wq_a[3] = 0;
  config.model_fingerprint = "\xff";
  CHECK_THROWS_AS(save_dual_encoder(config, folder.file("x")), argument_error);
  config.model_fingerprint.clear();
  CHECK_THROWS_AS(save_dual_encoder(config, folder.file("no/x")), io_failure);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("A damaged or foreign artifact is refused, naming the file and the tensor or field", "[artifact]") {
  std::mt19937 random(2);
  const temporary_folder folder;
  const std::string path = folder.file("good"), bad = folder.file("bad");
  save_dual_encoder(random_config(random, 13, 5, 3, 2, true), path);
  const draft good = draft_of(path);
  const auto refuse = [&](const std::function<void(draft&)>& change, const std::string& says) {
    draft d = good;
    change(d);
    d.write(bad);
    CAPTURE(says);
    CHECK_THROWS_AS(load_dual_encoder(bad), format_error);
    CHECK_THROWS_WITH(load_dual_encoder(bad), Contains(bad) && Contains(says));
  };
  const std::vector<std::string> tensors = {"wq_a.weight", "q_norm_weight", "wq_b.weight",
                                            "weights_proj.weight"};
  for (const std::string& t : tensors) {
    const std::string name = "retrievers.r1." + t;
    refuse([&](draft& d) { d.remove(name); }, name);
    refuse([&](draft& d) { d.at(name).tensor.type = tensor_type::i32; }, name);
    refuse([&](draft& d) { d.at(name).tensor.shape.push_back(1); }, name);
    refuse(
        [&](draft& d) {
          const float nan = std::numeric_limits<float>::quiet_NaN();
          std::memcpy(d.at(name).data.data() + 4, &nan, 4);
        },
        name);
  }
  const auto wk = std::string("retrievers.r1.wk.weight");
  refuse([&](draft& d) { d.remove(wk); }, "'r1' has no wk");
  refuse([&](draft& d) { std::reverse(d.at(wk).tensor.shape.begin(), d.at(wk).tensor.shape.end()); }, wk);
  const auto offset = std::string("retrievers.r0.logit_offset");
  refuse([&](draft& d) { d.at(offset).tensor.shape = {1, 1}; }, offset);
  refuse([&](draft& d) { d.remove(offset), d.add(offset, tensor_type::f32, {2}); }, offset);
  refuse([&](draft& d) { d.remove(offset), d.add(offset, tensor_type::u8, {}); }, offset);
  refuse(
      [&](draft& d) {
        d.add("retrievers.r2.wq_a.weight", tensor_type::f32, {5, 13});
      },
      "retrievers.r2.wq_a");
  refuse([&](draft& d) { d.add("retrievers.r0.bias", tensor_type::f32, {5}); }, "retrievers.r0.bias");
  refuse([&](draft& d) { d.add("other", tensor_type::f32, {5}); }, "'other'");

  refuse([](draft& d) { d.metadata["version"] = "2"; }, "version '2'");
  refuse([](draft& d) { d.metadata.erase("version"); }, "'version'");
  refuse([](draft& d) { d.metadata["format"] = "flashmemory.session"; }, "flashmemory.session");
  refuse([](draft& d) { d.metadata.erase("config"); }, "'config'");
  refuse([](draft& d) { d.metadata["config"] = "{"; }, "config");
  refuse([](draft& d) { d.metadata["config"] = "[]"; }, "config");
  refuse([](draft& d) { d.metadata["config"] = std::string(100000, '['); }, "config");
  const std::pair<const char*, std::pair<const char*, const char*>> edits[] = {
      {"\"hidden\":13", {"\"hidden\":12", "wq_a.weight"}},
      {"\"hidden\":13", {"\"hidden\":-13", "wq_a.weight"}},
      {"\"hidden\":13", {"\"hidden\":13.0", "'hidden'"}},
      {"\"hidden\":13", {"\"hidden\":4294967309", "'hidden'"}},
      {"\"hidden\":13", {"\"hidden\":\"13\"", "'hidden'"}},
      {"\"hidden\":13", {"\"hiden\":13", "'hidden'"}},
      {"\"rank\":5", {"\"rank\":null", "'rank'"}},
      {"\"rank\":5", {"\"rank\":6", "wq_a.weight"}},
      {"\"heads\":3", {"\"heads\":4", "wq_b.weight"}},
      {"\"heads\":3", {"\"heads\":3,\"tails\":3", "'tails'"}},
      {"\"bf16_rounding\":true", {"\"bf16_rounding\":1", "'bf16_rounding'"}},
      {"\"tokens_per_key\":4", {"\"tokens_per_key\":0", "tokens_per_key"}},
      {"\"key_window\":4", {"\"key_window\":3", "key_window"}},
      {"\"key_scale_floor\":", {"\"key_scale_floor\":-1,\"x\":", "'x'"}},
      {"\"dim\":0", {"\"dim\":63", "rope.dim"}},
      {"\"base\":160000.0", {"\"base\":\"x\"", "'base'"}},
      {"\"max_positions\":524288", {"\"max_positions\":0", "max_positions"}},
      {"\"max_positions\":524288", {"\"max_position\":524288", "'max_positions'"}},
      {"\"ensemble\":\"max\"", {"\"ensemble\":\"median\"", "'ensemble'"}},
      {"\"reduction\":\"max\"", {"\"reduction\":\"min\"", "'reduction'"}},
      {"\"model_fingerprint\":\"\"", {"\"model_fingerprint\":0", "'model_fingerprint'"}},
      {"\"name\":\"r1\"", {"\"name\":\"r0\"", "r1.wq_a.weight"}},
      {"\"name\":\"r1\"", {"\"name\":\"r9\"", "retrievers.r9.wq_a.weight"}},
      {"\"name\":\"r1\"", {"\"name\":7", "'name'"}},
      {"\"key_layer\":1", {"\"key_layer\":-1", "'r1'"}},
      {"\"query_layer\":0", {"\"query_layer\":true", "'query_layer'"}},
      {"\"retrievers\":[", {"\"retrievers\":[3,", "config.retrievers[0]"}},
      {"\"retrievers\":[", {"\"retriever\":[", "'retrievers'"}},
  };
  for (const auto& [from, edit] : edits) {
    refuse([&, from = from, edit = edit](draft& d) { replace(d.metadata["config"], from, edit.first); },
           edit.second);
  }
  auto bytes = bytes_of(path);
  bytes.resize(bytes.size() - 1);
  write_bytes(bad, bytes);
  CHECK_THROWS_AS(load_dual_encoder(bad), format_error);
  CHECK_THROWS_AS(load_dual_encoder(folder.file("none")), io_failure);
}

TEST_CASE("bf16 and f16 weights and a logit_offset of one element are accepted", "[artifact]") {
  std::mt19937 random(3);
  const temporary_folder folder;
  const std::string path = folder.file("x");
  auto config = random_config(random, 4, 2, 1, 1, false);
  for (auto* values : {&config.retrievers[0].wq_a, &config.retrievers[0].wq_b}) {
    for (float& v : *values) v = std::ldexp(std::round(std::ldexp(v, 4)), -4);  // exact in both
    for (float& v : *values) v = std::clamp(v, -7.0f, 7.0f);
  }
  save_dual_encoder(config, path);
  draft d = draft_of(path);
  auto& a = d.at("retrievers.r0.wq_a.weight");
  auto& b = d.at("retrievers.r0.wq_b.weight");
  d.at("retrievers.r0.logit_offset").tensor.shape = {1};
  a.tensor.type = tensor_type::bf16;
  a.data.clear();
  for (const float v : config.retrievers[0].wq_a) {
    const auto bits = std::uint16_t(std::bit_cast<std::uint32_t>(v) >> 16);
    a.data.insert(a.data.end(), {std::byte(bits & 255), std::byte(bits >> 8)});
  }
  b.tensor.type = tensor_type::f16;
  b.data.clear();
  for (const float v : config.retrievers[0].wq_b) {
    const auto f = std::bit_cast<std::uint32_t>(v);
    const auto bits = v == 0 ? 0u : (f >> 16 & 0x8000u) | ((f >> 13 & 0x3ffffu) - ((127u - 15u) << 10));
    b.data.insert(b.data.end(), {std::byte(bits & 255), std::byte(bits >> 8 & 255)});
  }
  d.write(path);
  check_same(load_dual_encoder(path), config);
}

TEST_CASE("A checkpoint in the reference's names loads with the reference's numerics", "[artifact]") {
  const auto path = std::string(FLASHMEMORY_TEST_DATA) + "/golden/indexer_small.safetensors";
  const auto config = load_dual_encoder(path);
  CHECK(config.hidden == 96);
  CHECK(config.rank == 48);
  CHECK(config.heads == 4);
  CHECK(config.bf16_rounding);
  CHECK(config.rope.dim == 64);
  CHECK(config.rope.base == 160000);
  CHECK(config.q_norm_eps == 1e-6f);
  CHECK(config.tokens_per_key == 4);
  CHECK(config.combine == ensemble::max);
  CHECK(config.reduce == key_reduction::max);
  REQUIRE(config.retrievers.size() == 2);
  CHECK(config.retrievers[0].name == "l10");
  CHECK(config.retrievers[0].query_layer == 10);
  CHECK(config.retrievers[1].key_layer == 12);
  CHECK(config.retrievers[1].wk.empty());
  const auto mapped = load_dual_encoder(path, {22, 26});
  CHECK(mapped.retrievers[0].query_layer == 22);
  CHECK(mapped.retrievers[0].key_layer == 22);
  CHECK(mapped.retrievers[1].query_layer == 26);
  CHECK_THROWS_AS(load_dual_encoder(path, {22}), argument_error);
  CHECK_THROWS_AS(load_dual_encoder(path, {22, 26, 42}), argument_error);
}

TEST_CASE("IDs are taken in numeric order and freqs_cis is ignored", "[artifact]") {
  const temporary_folder folder;
  const auto path = folder.file("x");
  draft d;
  for (const std::string id : {"l10", "l9"}) {
    d.add("retrievers." + id + ".wq_a.weight", tensor_type::f32, {2, 3});
    d.add("retrievers." + id + ".q_norm_weight", tensor_type::f32, {2});
    d.add("retrievers." + id + ".wq_b.weight", tensor_type::f32, {256, 2});
    d.add("retrievers." + id + ".weights_proj.weight", tensor_type::f32, {2, 3});
    d.add("retrievers." + id + ".freqs_cis", tensor_type::f32, {5, 32, 2});
  }
  d.metadata["format"] = "pt";
  d.write(path);
  const auto config = load_dual_encoder(path, {100, 200});
  REQUIRE(config.retrievers.size() == 2);
  CHECK(config.retrievers[0].name == "l9");
  CHECK(config.retrievers[0].query_layer == 100);
  CHECK(config.retrievers[1].name == "l10");
  CHECK(config.heads == 2);
}

TEST_CASE("A checkpoint that contradicts itself is refused", "[artifact]") {
  const temporary_folder folder;
  const auto path = folder.file("x");
  draft good;
  for (const std::string id : {"l3", "l5"}) {
    good.add("retrievers." + id + ".wq_a.weight", tensor_type::f32, {2, 3});
    good.add("retrievers." + id + ".q_norm_weight", tensor_type::f32, {2});
    good.add("retrievers." + id + ".wq_b.weight", tensor_type::f32, {256, 2});
    good.add("retrievers." + id + ".weights_proj.weight", tensor_type::f32, {2, 3});
  }
  good.write(path);
  CHECK_NOTHROW(load_dual_encoder(path));
  const auto refuse = [&](const std::function<void(draft&)>& change, const std::string& says) {
    draft d = good;
    change(d);
    d.write(path);
    CAPTURE(says);
    CHECK_THROWS_AS(load_dual_encoder(path), format_error);
    CHECK_THROWS_WITH(load_dual_encoder(path), Contains(path) && Contains(says));
  };
  const auto reshape = [](draft& d, const std::string& name, tensor_type type,
                          std::vector<std::int64_t> shape) {
    d.remove(name);
    d.add(name, type, std::move(shape));
  };
  refuse([](draft& d) { d.items.clear(); }, "neither metadata");
  refuse([](draft& d) { d.remove("retrievers.l3.wq_a.weight"); }, "retrievers.l3.wq_a.weight");
  refuse([](draft& d) { d.remove("retrievers.l5.wq_b.weight"); }, "retrievers.l5.wq_b.weight");
  refuse([&](draft& d) { reshape(d, "retrievers.l3.wq_a.weight", tensor_type::f32, {6}); }, "matrix");
  refuse([&](draft& d) { reshape(d, "retrievers.l3.wq_a.weight", tensor_type::f32, {0, 3}); }, "matrix");
  refuse(
      [&](draft& d) {
        reshape(d, "retrievers.l3.wq_b.weight", tensor_type::f32, {255, 2});
      },
      "multiple of 128");
  refuse([&](draft& d) { reshape(d, "retrievers.l5.wq_a.weight", tensor_type::f32, {2, 4}); }, "l5.wq_a");
  refuse([&](draft& d) { reshape(d, "retrievers.l5.wq_a.weight", tensor_type::f64, {2, 3}); }, "F64");
  for (const std::string name : {"retrievers.l.x", "retrievers.7.x", "retrievers.l-1.x", "retrievers.l1e3.x",
                                 "retrievers.l99999999999.x", "retrievers.", "retrievers.l3",
                                 "retrievers.l03.x", "retrievers.l3.other"}) {
    refuse([&](draft& d) { d.add(name, tensor_type::u8, {1}); },
           name == "retrievers.l03.x" ? "the same" : name);
  }
}
