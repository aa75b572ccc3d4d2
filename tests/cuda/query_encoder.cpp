// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <flashmemory/cuda/query_encoder.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>
#include <functional>
#include <random>

#include "src/core/convert.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/reference/indexer.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using fm::status;
using namespace flashmemory_test;

namespace {

std::string data_folder() {
  const char* carried = std::getenv("FLASHMEMORY_TEST_DATA");
  return carried != nullptr ? carried : FLASHMEMORY_TEST_DATA;
}

float as_bf16(float x) {
  fm::bfloat16 y;
  fm::detail::from_float(x, y);
  return fm::detail::to_float(y);
}

/// Weights of bf16 numbers, so that both precisions hold them exactly.
fm::dual_encoder_config random_config(std::mt19937& random, std::int32_t hidden, std::int32_t rank,
                                      std::int32_t heads, std::int32_t retrievers, bool rope, bool rounding) {
  std::normal_distribution<float> normal;
  const auto noise = [&](std::int64_t count, float deviation) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& v : x) v = as_bf16(deviation * normal(random));
    return x;
  };
  fm::dual_encoder_config c;
  c.hidden = hidden;
  c.rank = rank;
  c.heads = heads;
  c.bf16_rounding = rounding;
  c.rope.dim = rope ? 64 : 0;
  for (std::int32_t r = 0; r < retrievers; ++r) {
    fm::retriever_weights w;
    w.name = std::to_string(r);
    w.query_layer = r;
    w.wq_a = noise(std::int64_t{rank} * hidden, 0.1f);
    w.q_norm = noise(rank, 1);
    w.wq_b = noise(std::int64_t{heads} * 128 * rank, 0.1f);
    w.weights_proj = noise(std::int64_t{heads} * hidden, 0.1f);
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

struct encoded {
  std::vector<std::byte> queries;
  std::vector<float> weights, full;
};

/// Runs the encoder on hidden states [retrievers][rows, hidden].
encoded encode(const cu::query_encoder& encoder, const fm::dual_encoder_config& c, fm::dtype type,
               const std::vector<std::vector<float>>& hidden, const std::vector<std::int64_t>& positions) {
  const auto rows = std::int64_t(positions.size());
  const auto retrievers = std::int64_t(c.retrievers.size());
  std::vector<device_array<std::byte>> states;
  std::vector<fm::const_tensor<2>> views;
  for (const auto& h : hidden) {
    std::vector<std::byte> bytes(h.size() * fm::size_of(type));
    for (std::size_t i = 0; i < h.size(); ++i) {
      fm::bfloat16 b;
      fm::float16 f;
      fm::detail::from_float(h[i], b);
      fm::detail::from_float(h[i], f);
      const void* from = type == fm::dtype::f32    ? static_cast<const void*>(&h[i])
                         : type == fm::dtype::bf16 ? static_cast<const void*>(&b)
                                                   : &f;
      std::memcpy(bytes.data() + i * fm::size_of(type), from, fm::size_of(type));
    }
    states.emplace_back(bytes);
    views.emplace_back(states.back().data(), type, rows, c.hidden);
  }
  const device_array<std::int64_t> where(positions);
  const auto heads = std::size_t(retrievers * rows * c.heads);
  device_array<std::byte> queries(heads * 128), scratch(encoder.workspace_bytes());
  device_array<float> weights(heads), full(heads * 128);
  const device_stream stream;
  fm::fault fault;
  const status code =
      encoder.encode(views.data(), where.data(), rows, {queries.data(), weights.data(), full.data()},
                     {scratch.data(), scratch.size()}, stream.ref(), &fault);
  CAPTURE(fm::describe(fault));
  REQUIRE(code == status::ok);
  stream.wait();
  return {queries.get(), weights.get(), full.get()};
}

}  // namespace

TEST_CASE("CUDA queries are those of the double-precision reference, and quantised per head",
          "[gpu][indexer]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  std::mt19937 random(seed);
  const bool rope = GENERATE(true, false), rounding = GENERATE(true, false);
  const auto weights = GENERATE(fm::dtype::f32, fm::dtype::bf16);
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  const std::int32_t rows = GENERATE(1, 3, 8);
  CAPTURE(seed, rope, rounding, fm::to_string(weights), fm::to_string(type), rows);
  const auto c = random_config(random, 192, 48, 5, 2, rope, rounding);
  cu::query_encoder_options options;
  options.weights = weights;
  options.max_rows = 8;
  const cu::query_encoder encoder(c, {}, options);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> hidden(2, std::vector<float>(std::size_t(rows * c.hidden)));
  for (auto& h : hidden)
    for (float& x : h)
      x = type == fm::dtype::f32 ? normal(random)
                                 : float(int(std::clamp(normal(random), -3.0f, 3.0f) * 64)) / 64;
  std::vector<std::int64_t> positions;
  for (std::int32_t i = 0; i < rows; ++i)
    positions.push_back(std::uniform_int_distribution<std::int64_t>(0, 600000)(random));
  const auto got = encode(encoder, c, type, hidden, positions);

  double worst = 0, worst_gate = 0;
  std::size_t rounded_otherwise = 0;
  for (std::size_t r = 0; r < 2; ++r)
    for (std::int32_t row = 0; row < rows; ++row) {
      const auto from = hidden[r].begin() + row * c.hidden;
      const auto want = fm::reference::encode_query(c, c.retrievers[r], {from, from + c.hidden},
                                                    positions[std::size_t(row)]);
      for (std::int32_t h = 0; h < c.heads; ++h) {
        const std::size_t at =
            (r * std::size_t(rows) + std::size_t(row)) * std::size_t(c.heads) + std::size_t(h);
        const auto& q = want.heads[std::size_t(h)];
        double norm = 0, error = 0, largest = 0;
        float amax = 0;
        for (std::size_t d = 0; d < 128; ++d) {
          const float x = got.full[at * 128 + d];
          REQUIRE(std::isfinite(x));
          norm += q[d] * q[d];
          error += (x - q[d]) * (x - q[d]);
          largest = std::max(largest, std::abs(x - q[d]));
          amax = std::max(amax, std::abs(x));
        }
        // One element that rounds to the other bf16 neighbour moves all 128 by 2^-8 / sqrt(128) of it.
        rounded_otherwise += rounding && std::sqrt(error / norm) > 1e-5;
        worst = std::max(worst, std::sqrt(error / norm));
        const float scale = std::max(amax, 1e-4f) / 448.0f;
        for (std::size_t d = 0; d < 128; ++d) {
          const double x = double(got.full[at * 128 + d]) / scale;
          const double stored = fm::reference::e4m3_value(std::uint8_t(got.queries[at * 128 + d]));
          REQUIRE(std::abs(stored - x) <= std::max(std::abs(x) / 16, 0.001) * 1.001);
        }
        const double gate = want.gates[std::size_t(h)];
        worst_gate =
            std::max(worst_gate, std::abs(got.weights[at] / scale - gate) / std::max(std::abs(gate), 0.05));
      }
    }
  CHECK(worst <= (rounding ? 4e-3 : 2e-5));
  CHECK(rounded_otherwise <= std::size_t(2 * rows * c.heads) / 2 + 1);
  CHECK(worst_gate <= 2e-5);
}

TEST_CASE("CUDA queries give the golden logits", "[gpu][indexer]") {
  REQUIRE_GPU();
  const std::string name = GENERATE("indexer_small.safetensors", "indexer_medium.safetensors");
  const auto weights = GENERATE(fm::dtype::f32, fm::dtype::bf16);
  CAPTURE(name, fm::to_string(weights));
  const std::string path = data_folder() + "/golden/" + name;
  const auto c = fm::load_dual_encoder(path);
  const fm::safetensors_file file(path);
  const auto* entry = file.find("hidden");
  REQUIRE(entry != nullptr);
  const std::int64_t rows = entry->shape[0];
  const auto hidden = fm::to_floats(file, *entry);
  const auto* keys_entry = file.find("compressed_k");
  const std::int64_t keys = keys_entry->shape[1];
  std::vector<std::int64_t> positions(static_cast<std::size_t>(rows));
  std::memcpy(positions.data(), file.find("positions")->data, positions.size() * 8);
  cu::query_encoder_options options;
  options.weights = weights;
  options.max_rows = std::int32_t(rows);
  const cu::query_encoder encoder(c, {}, options);
  const auto got = encode(encoder, c, fm::dtype::f32,
                          std::vector<std::vector<float>>(c.retrievers.size(), hidden), positions);

  double worst = 0, worst_fp8 = 0;
  for (std::size_t r = 0; r < c.retrievers.size(); ++r) {
    const auto expected = fm::to_floats(file, *file.find("expect.logits." + c.retrievers[r].name));
    for (std::int64_t row = 0; row < rows; ++row) {
      fm::reference::encoded_query full, fp8;
      for (std::int32_t h = 0; h < c.heads; ++h) {
        const std::size_t at =
            (r * std::size_t(rows) + std::size_t(row)) * std::size_t(c.heads) + std::size_t(h);
        const auto from = got.full.begin() + std::ptrdiff_t(at * 128);
        full.heads.emplace_back(from, from + 128);
        float amax = 0;
        for (std::size_t d = 0; d < 128; ++d) amax = std::max(amax, std::abs(from[std::ptrdiff_t(d)]));
        full.gates.push_back(double(got.weights[at]) / (std::max(amax, 1e-4f) / 448.0f));
        std::vector<double> stored;
        for (std::size_t d = 0; d < 128; ++d)
          stored.push_back(fm::reference::e4m3_value(std::uint8_t(got.queries[at * 128 + d])));
        fp8.heads.push_back(stored);
        fp8.gates.push_back(double(got.weights[at]));
      }
      double largest = 0, error = 0, error_fp8 = 0;
      for (std::int64_t k = 0; k < keys; ++k) {
        const auto* key = keys_entry->data + (row * keys + k) * 132;
        const double want = expected[std::size_t(row * keys + k)];
        largest = std::max(largest, std::abs(want));
        error = std::max(error,
                         std::abs(fm::reference::key_logit(full, key, c.retrievers[r].logit_offset) - want));
        error_fp8 = std::max(
            error_fp8, std::abs(fm::reference::key_logit(fp8, key, c.retrievers[r].logit_offset) - want));
      }
      worst = std::max(worst, error / largest);
      worst_fp8 = std::max(worst_fp8, error_fp8 / largest);
    }
  }
  std::printf("%s, %s weights: largest error of a logit %.2e of the row's largest, %.2e after quantisation\n",
              name.c_str(), fm::to_string(weights), worst, worst_fp8);
  // f32 weights: the golden tolerance, or one bf16 rounding of one element that falls the other way.
  CHECK(worst <= (weights == fm::dtype::f32 ? 3e-4 : 1e-2));
  CHECK(worst_fp8 <= 6e-2);
}

TEST_CASE("a query encoder refuses what cannot work by name", "[gpu][indexer]") {
  REQUIRE_GPU();
  std::mt19937 random(7);
  const auto c = random_config(random, 64, 16, 2, 2, true, true);
  const auto refused =
      [&](const char* field,
          const std::function<void(fm::dual_encoder_config&, cu::query_encoder_options&)>& spoil) {
        auto config = c;
        cu::query_encoder_options options;
        spoil(config, options);
        try {
          const cu::query_encoder encoder(config, {}, options);
          FAIL("accepted a wrong " << field);
        } catch (const fm::argument_error& e) {
          CHECK(std::string(e.what()).find(field) != std::string::npos);
        }
      };
  refused("wq_a", [](auto& config, auto&) { config.retrievers[1].wq_a[3] = NAN; });
  refused("wq_b", [](auto& config, auto&) { config.retrievers[0].wq_b.pop_back(); });
  refused("max_rows", [](auto&, auto& o) { o.max_rows = 0; });
  refused("weights", [](auto&, auto& o) { o.weights = fm::dtype::f16; });

  cu::query_encoder_options options;
  options.max_rows = 4;
  const cu::query_encoder encoder(c, {}, options);
  CHECK(encoder.weight_bytes() >= 2u * (2 * (16 + 2) * 64 + 2 * 2 * 128 * 16));
  const device_array<float> hidden(4 * 64);
  const device_array<std::int64_t> positions(std::vector<std::int64_t>{1, 2, 3, 4});
  device_array<std::byte> queries(2 * 4 * 2 * 128), scratch(encoder.workspace_bytes());
  device_array<float> weights(2 * 4 * 2);
  const device_stream stream;
  struct arguments {
    fm::const_tensor<2> hidden[2];
    const std::int64_t* positions;
    std::int64_t rows;
    cu::encoded_queries out;
    fm::workspace scratch;
  };
  const fm::const_tensor<2> good_hidden(hidden.data(), fm::dtype::f32, 4, 64);
  const arguments good{{good_hidden, good_hidden},
                       positions.data(),
                       4,
                       {queries.data(), weights.data(), nullptr},
                       {scratch.data(), scratch.size()}};
  const auto before = queries.get();
  const auto check = [&](status expected, const char* what, const std::function<void(arguments&)>& spoil) {
    arguments a = good;
    spoil(a);
    fm::fault fault;
    CAPTURE(what);
    CHECK(encoder.encode(a.hidden, a.positions, a.rows, a.out, a.scratch, stream.ref(), &fault) == expected);
    CHECK(fault.code == expected);
    CHECK(std::string(fault.what).find(what) != std::string::npos);
  };
  check(status::bad_shape, "rows", [](auto& a) { a.rows = 5; });
  check(status::bad_shape, "rows", [](auto& a) { a.rows = -1; });
  check(status::null_data, "positions", [](auto& a) { a.positions = nullptr; });
  check(status::null_data, "queries", [](auto& a) { a.out.queries = nullptr; });
  check(status::null_data, "weights", [](auto& a) { a.out.weights = nullptr; });
  check(status::null_data, "scratch", [](auto& a) { a.scratch.data = nullptr; });
  check(status::workspace_small, "scratch", [](auto& a) { --a.scratch.bytes; });
  check(status::bad_argument, "scratch",
        [](auto& a) { a.scratch.data = static_cast<char*>(a.scratch.data) + 8; });
  check(status::null_data, "hidden", [](auto& a) { a.hidden[1].data = nullptr; });
  check(status::bad_shape, "hidden rows", [](auto& a) { a.hidden[1].shape[0] = 3; });
  check(status::bad_shape, "hidden width", [](auto& a) { a.hidden[0].shape[1] = 32; });
  check(status::bad_shape, "hidden stride", [](auto& a) { a.hidden[0].stride[1] = 2; });
  CHECK(encoder.encode(good.hidden, good.positions, 4, good.out, good.scratch, fm::stream_ref::host()) ==
        status::unsupported);
  CHECK(encoder.encode(nullptr, nullptr, 0, {}, {}, stream.ref()) == status::ok);
  must(cudaDeviceSynchronize());
  CHECK(queries.get() == before);
}
