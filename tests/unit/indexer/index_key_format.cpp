// SPDX-License-Identifier: MIT
#include <bit>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>
#include <random>
#include <vector>

#include "tests/catch.hpp"
#include "tests/reference/indexer.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;

TEST_CASE("from_e4m3() gives the value of every byte", "[index_key]") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const double want = reference::e4m3_value(static_cast<std::uint8_t>(code));
    const float got = from_e4m3(static_cast<std::uint8_t>(code));
    if (std::isnan(want)) {
      CHECK(std::isnan(got));
    } else {
      CHECK(double(got) == want);
      CHECK(std::signbit(got) == (code >= 128));
    }
  }
}

TEST_CASE("to_e4m3() inverts from_e4m3()", "[index_key]") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const int back = to_e4m3(from_e4m3(static_cast<std::uint8_t>(code)));
    CHECK(back == ((code & 0x7f) == 0x7f ? 0x7f : code));
  }
}

TEST_CASE("to_e4m3() rounds to nearest, ties to even, around every midpoint", "[index_key]") {
  for (int code = 0; code < 0x7e; ++code) {
    CAPTURE(code);
    const float middle = (from_e4m3(std::uint8_t(code)) + from_e4m3(std::uint8_t(code + 1))) / 2;
    const int even = code % 2 == 0 ? code : code + 1;
    for (const float sign : {1.0f, -1.0f}) {
      const int bit = sign < 0 ? 0x80 : 0;
      CHECK(to_e4m3(sign * middle) == (even | bit));
      CHECK(to_e4m3(sign * std::nextafter(middle, 0.0f)) == (code | bit));
      CHECK(to_e4m3(sign * std::nextafter(middle, 1e9f)) == ((code + 1) | bit));
    }
  }
}

TEST_CASE("to_e4m3() agrees with a search over all values for random floats", "[index_key]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 20000; ++i) {
    const float value = std::ldexp(float(random()) / 4e9f - 0.5f, int(random() % 24) - 12);
    CAPTURE(value);
    REQUIRE(to_e4m3(value) == reference::e4m3_nearest(double(value)));
  }
}

TEST_CASE("to_e4m3() saturates at 448 and turns any NaN into 0x7f", "[index_key]") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float large : {448.0f, 449.0f, 463.9f, 464.0f, 465.0f, 480.0f, 1e30f, inf}) {
    CAPTURE(large);
    CHECK(to_e4m3(large) == 0x7e);
    CHECK(to_e4m3(-large) == 0xfe);
  }
  CHECK(to_e4m3(std::numeric_limits<float>::quiet_NaN()) == 0x7f);
  CHECK(to_e4m3(-std::numeric_limits<float>::quiet_NaN()) == 0x7f);
  CHECK(to_e4m3(std::numeric_limits<float>::denorm_min()) == 0x00);
  CHECK(to_e4m3(-0.0f) == 0x80);
}

TEST_CASE("round_to_bf16() keeps 8 significant bits, ties to even", "[index_key]") {
  CHECK(round_to_bf16(1.0f) == 1.0f);
  CHECK(round_to_bf16(1.00390625f) == 1.0f);        // half way, 1.0 is even
  CHECK(round_to_bf16(1.01171875f) == 1.015625f);   // half way, the upper one is even
  CHECK(round_to_bf16(1.00390637f) == 1.0078125f);  // just above
  CHECK(std::isinf(round_to_bf16(std::numeric_limits<float>::max())));
  CHECK(std::isnan(round_to_bf16(std::numeric_limits<float>::quiet_NaN())));
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 10000; ++i) {
    const float value = std::ldexp(float(random()) / 4e9f - 0.5f, int(random() % 40) - 20);
    CAPTURE(value);
    REQUIRE(double(round_to_bf16(value)) == reference::bf16(double(value)));
  }
}

TEST_CASE("The Hadamard transform of a unit vector is the signs of popcount(i & j) over sqrt(128)",
          "[index_key]") {
  for (int j = 0; j < 128; ++j) {
    std::vector<float> x(128);
    x[std::size_t(j)] = 1;
    hadamard_128(x.data());
    for (int i = 0; i < 128; ++i) {
      const float want = std::popcount(unsigned(i & j)) % 2 ? -0.0883883476f : 0.0883883476f;
      REQUIRE(x[std::size_t(i)] == Approx(want).epsilon(1e-7));
    }
  }
}

TEST_CASE("The Hadamard transform applied twice is the identity", "[index_key]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(128);
  for (float& v : x) v = normal(random);
  auto y = x;
  hadamard_128(y.data());
  const auto want = reference::hadamard(std::vector<double>(x.begin(), x.end()));
  for (std::size_t i = 0; i < 128; ++i) CHECK(double(y[i]) == Approx(want[i]).margin(2e-6));
  hadamard_128(y.data());
  for (std::size_t i = 0; i < 128; ++i) CHECK(y[i] == Approx(x[i]).margin(2e-6));
}

TEST_CASE("quantise_key() scales by max(amax, floor) / 448 in f32 and rounds each element", "[index_key]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 1e-3f, 1e-5f, 0.0f, 1e20f}) {
    for (const float floor : {1e-4f, 448e-12f}) {
      CAPTURE(size, floor);
      std::vector<float> key(128);
      float amax = 0;
      for (float& v : key) {
        v = normal(random) * size;
        amax = std::max(amax, std::fabs(v));
      }
      std::byte out[132];
      quantise_key(key.data(), out, floor);
      float scale;
      std::memcpy(&scale, out + 128, 4);
      CHECK(scale == std::max(amax, floor) / 448.0f);
      for (std::size_t i = 0; i < 128; ++i) {
        REQUIRE(int(out[i]) == reference::e4m3_nearest(double(key[i] / scale)));
      }
    }
  }
}

TEST_CASE("A floor of 448e-12 is the rule scale = max(amax / 448, 1e-12)", "[index_key]") {
  for (const float amax : {0.0f, 1e-20f, 4e-10f, 1e-9f, 0.1f, 3.0f, 500.0f}) {
    CAPTURE(amax);
    std::vector<float> key(128);
    key[77] = -amax;
    std::byte out[132];
    quantise_key(key.data(), out, 448e-12f);
    float scale;
    std::memcpy(&scale, out + 128, 4);
    CHECK(scale == Approx(std::max(amax / 448.0f, 1e-12f)).epsilon(2e-7));
  }
}

TEST_CASE("quantise_key() marks NaN elements and leaves the others right", "[index_key]") {
  std::vector<float> key(128, 2.0f);
  key[5] = std::numeric_limits<float>::quiet_NaN();
  std::byte out[132];
  quantise_key(key.data(), out, 1e-4f);
  for (std::size_t i = 0; i < 128; ++i) CHECK(int(out[i]) == (i == 5 ? 0x7f : 0x7e));
}

TEST_CASE("repack_keys() moves values before scales and back again", "[index_key]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const std::int32_t key_bytes = GENERATE(132, 20, 5);
  const std::int64_t page = GENERATE(1, 3, 16, 64);
  for (std::int64_t count : {std::int64_t{0}, std::int64_t{1}, page}) {
    if (count > page) continue;
    CAPTURE(key_bytes, page, count);
    std::vector<std::byte> rows(std::size_t(count * key_bytes));
    for (auto& b : rows) b = std::byte(random());
    std::vector<std::byte> planar(std::size_t(page * key_bytes), std::byte{0xcd});
    repack_keys(rows.data(), planar.data(), count, page, key_bytes, true);
    const auto values = std::size_t(key_bytes - 4);
    for (std::size_t i = 0; i < std::size_t(count); ++i) {
      CHECK(std::memcmp(&planar[i * values], &rows[i * std::size_t(key_bytes)], values) == 0);
      CHECK(std::memcmp(&planar[std::size_t(page) * values + i * 4],
                        &rows[i * std::size_t(key_bytes) + values], 4) == 0);
    }
    CHECK(std::count(planar.begin() + std::ptrdiff_t(std::size_t(count) * values),
                     planar.begin() + std::ptrdiff_t(std::size_t(page) * values),
                     std::byte{0xcd}) == std::ptrdiff_t(std::size_t(page - count) * values));
    std::vector<std::byte> back(rows.size());
    repack_keys(planar.data(), back.data(), count, page, key_bytes, false);
    CHECK(back == rows);
  }
}
