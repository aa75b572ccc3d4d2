// SPDX-License-Identifier: MIT
#include <flashmemory/indexer/index_key.hpp>
#include <limits>
#include <random>

#include "src/core/index_key.hpp"
#include "tests/catch.hpp"
#include "tests/reference/pooled_keys.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;

namespace {

constexpr index_key_type all_types[] = {index_key_type::e4m3, index_key_type::bf16, index_key_type::f16,
                                        index_key_type::int8, index_key_type::mxfp4};

index_key_geometry shape_of(index_key_type type, std::int32_t dim) {
  index_key_geometry g;
  g.type = type;
  g.dim = dim;
  return g;
}

std::vector<std::byte> quantised(const std::vector<float>& values, const index_key_geometry& g) {
  std::vector<std::byte> key(std::size_t(g.bytes()) + 1, std::byte{0xa5});
  quantise_index_key(values.data(), g, key.data());
  REQUIRE(key.back() == std::byte{0xa5});
  key.pop_back();
  return key;
}

}  // namespace

TEST_CASE("each value of a quantised key is the nearest that its scale has, and is read back as that",
          "[index_key]") {
  const auto type = GENERATE(from_range(std::begin(all_types), std::end(all_types)));
  const auto seed = GENERATE(flashmemory_test::fresh_seeds(20));
  CAPTURE(int(type), seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const index_key_geometry g = shape_of(type, type == index_key_type::mxfp4 ? 96 : 1 + int(random() % 100));
  std::vector<float> values(std::size_t(g.dim), 0.0f);
  const float scale = std::ldexp(1.0f, int(random() % 24) - 12);
  for (float& x : values) x = scale * normal(random) * (random() % 8 == 0 ? 5.0f : 1.0f);
  if (type == index_key_type::f16)
    for (float& x : values) x = std::fmin(std::fmax(x, -60000.0f), 60000.0f);
  const auto key = quantised(values, g);
  CHECK(detail::finite_index_key(g, key.data()));
  const auto read = reference::index_key_values(g, key.data());
  std::vector<float> got(values.size());
  dequantise_index_key(key.data(), g, got.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i, values[i], read[i]);
    REQUIRE(double(got[i]) == Approx(read[i]).epsilon(1e-6));
    const double error = std::fabs(read[i] - double(values[i]));
    if (type == index_key_type::mxfp4) {
      const std::size_t first = i / 32 * 32;
      double largest = 0, nearest = 1e300;
      for (std::size_t k = first; k < first + 32; ++k)
        largest = std::max(largest, std::fabs(double(values[k])));
      const int exponent = std::uint8_t(key[std::size_t(g.value_bytes()) + i / 32]) - 127;
      const double unit = std::ldexp(1.0, exponent);
      REQUIRE(largest <= 7 * unit);
      REQUIRE(largest > 3.5 * unit);
      for (int code = 0; code < 16; ++code)
        nearest = std::min(nearest, std::fabs(reference::e2m1_value(code) * unit - double(values[i])));
      REQUIRE(error == Approx(nearest).margin(1e-6 * unit));
    } else if (type == index_key_type::int8) {
      float step;
      std::memcpy(&step, key.data() + g.dim, 4);
      REQUIRE(error <= 0.5001 * double(step));
    } else if (type == index_key_type::e4m3) {
      float step;
      std::memcpy(&step, key.data() + g.dim, 4);
      REQUIRE(std::uint8_t(key[i]) == reference::e4m3_nearest(double(values[i] / step)));
    } else {
      REQUIRE(error <= std::fabs(double(values[i])) / (type == index_key_type::bf16 ? 256 : 2048) + 0x1p-25);
    }
  }
}

TEST_CASE("values half way between two of four bits go to the even code", "[index_key]") {
  std::vector<float> values = {4, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, 7, -0.25f, -5, -7};
  const std::vector<double> wanted = {4, 0, 1, 1, 2, 2, 4, 4, 6, 0, -4, -6};
  values.resize(32);
  const auto g = shape_of(index_key_type::mxfp4, 32);
  const auto read = reference::index_key_values(g, quantised(values, g).data());
  for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(read[i] == wanted[i]);
  values[0] = 7.25f;  // beyond 7 the unit is 2
  const auto wider = reference::index_key_values(g, quantised(values, g).data());
  CHECK(wider[0] == 8);
  CHECK(wider[4] == 2);
}

TEST_CASE("a key of zeros is one, the smallest floats are no trouble, and what is no number is told",
          "[index_key]") {
  const auto type = GENERATE(from_range(std::begin(all_types), std::end(all_types)));
  CAPTURE(int(type));
  const auto g = shape_of(type, 64);
  std::vector<float> values(64, 0.0f);
  for (const double x : reference::index_key_values(g, quantised(values, g).data())) CHECK(x == 0);
  values[40] = std::numeric_limits<float>::denorm_min();
  CHECK(detail::finite_index_key(g, quantised(values, g).data()));
  values[40] = 1;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    values[7] = bad;
    const auto key = quantised(values, g);
    CHECK_FALSE(detail::finite_index_key(g, key.data()));
    std::vector<float> got(64);
    dequantise_index_key(key.data(), g, got.data());
    if (type != index_key_type::bf16 && type != index_key_type::f16) CHECK(std::isnan(got[7]));
  }
}
