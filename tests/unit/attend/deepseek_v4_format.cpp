// SPDX-License-Identifier: MIT
#include <cmath>
#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/reference/deepseek_v4.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory;
namespace v4 = flashmemory::deepseek_v4;
namespace reference = flashmemory_test::reference;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

reference::v4_entry quantise(const std::vector<float>& values) {
  reference::v4_entry entry;
  entry.row.fill(0xee);
  entry.scales.fill(0xee);
  v4::quantise_entry(values.data(), reinterpret_cast<std::byte*>(entry.row.data()),
                     reinterpret_cast<std::byte*>(entry.scales.data()));
  return entry;
}

std::vector<float> dequantise(const reference::v4_entry& entry) {
  std::vector<float> values(512, -1);
  v4::dequantise_entry(reinterpret_cast<const std::byte*>(entry.row.data()),
                       reinterpret_cast<const std::byte*>(entry.scales.data()), values.data());
  return values;
}

void check_same(const std::vector<float>& values) {
  const auto ours = quantise(values), expected = reference::v4_quantise(values);
  CHECK(ours.row == expected.row);
  CHECK(ours.scales == expected.scales);
  const auto back = dequantise(ours);
  const auto exact = reference::v4_dequantise(expected);
  for (std::size_t i = 0; i < 512; ++i) {
    if (std::isnan(exact[i])) {
      CHECK(std::isnan(back[i]));
    } else if (back[i] != static_cast<float>(exact[i])) {  // what rounds up to 2^128 is infinite in either
      CAPTURE(i);
      CHECK(back[i] == static_cast<float>(exact[i]));
    }
  }
}

}  // namespace

TEST_CASE("V4 pages have the sizes engines use", "[attend][v4]") {
  CHECK(v4::page_bytes(64) == 37440);
  CHECK(v4::page_bytes(2) == 1728);
  CHECK(v4::page_bytes(256) == 149760);
  CHECK(v4::page_bytes(1) == 1152);
  CHECK(v4::row_offset(63) == 63 * 576);
  CHECK(v4::scale_offset(64, 0) == 36864);
  CHECK(v4::scale_offset(2, 1) == 1160);
  for (const int n : {1, 2, 4, 64, 128, 256}) CHECK(v4::scale_offset(n, n - 1) + 8 <= v4::page_bytes(n));
}

TEST_CASE("quantised V4 entries are the reference's, byte for byte", "[attend][v4]") {
  const auto seed = flashmemory_test::fresh_seed();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 30; ++round) {
    std::vector<float> values(512);
    for (std::size_t g = 0; g < 8; ++g) {
      const float size = std::exp2(std::round(normal(random) * 12));
      for (std::size_t i = 0; i < 64; ++i) values[64 * g + i] = normal(random) * size;
    }
    check_same(values);
  }
}

TEST_CASE("V4 scales change exactly above a power of two times 448", "[attend][v4]") {
  for (const int exponent : {-22, -9, -1, 0, 1, 7, 8, 100, 119}) {
    const float edge = std::ldexp(448.0f, exponent);
    for (const float amax : {std::nextafter(edge, 0.0f), edge, std::nextafter(edge, inf)}) {
      std::vector<float> values(512, 0);
      values[0] = -amax;
      values[63] = amax / 3;
      CAPTURE(exponent, amax);
      check_same(values);
      const float floor = 1e-4f;
      const int expected = exponent + (amax > edge ? 1 : 0);
      if (amax >= floor) CHECK(int(quantise(values).scales[0]) == expected + 127);
    }
  }
}

TEST_CASE("V4 groups of zeros and of tiny numbers have the floor's scale", "[attend][v4]") {
  std::vector<float> values(512, 0.0f);
  values[100] = -1e-30f;
  values[200] = std::numeric_limits<float>::denorm_min();
  values[300] = 1e-4f;
  values[400] = 9e-5f;
  check_same(values);
  const auto entry = quantise(values);
  for (std::size_t g = 0; g < 7; ++g) CHECK(int(entry.scales[g]) == 127 - 22);
  CHECK(int(entry.scales[7]) == 0);
  CHECK(int(entry.row[100]) == 0x80);
}

TEST_CASE("V4 groups that are not finite read as NaN and leave the others alone", "[attend][v4]") {
  std::vector<float> values(512);
  for (std::size_t i = 0; i < 512; ++i) values[i] = float(i) - 250;
  values[70] = std::numeric_limits<float>::quiet_NaN();
  values[130] = inf;
  values[191] = -inf;
  values[450] = inf;
  values[451] = std::numeric_limits<float>::quiet_NaN();
  check_same(values);
  const auto back = dequantise(quantise(values));
  for (std::size_t i = 0; i < 512; ++i) CHECK(std::isnan(back[i]) == ((i >= 64 && i < 192) || i == 451));
  CHECK(back[450] == inf);
}

TEST_CASE("the largest floats are quantised as the reference does", "[attend][v4]") {
  std::vector<float> values(512, std::numeric_limits<float>::max());
  check_same(values);
  values.assign(512, -3e38f);
  check_same(values);
}

TEST_CASE("every V4 code and scale dequantises to its value", "[attend][v4]") {
  for (int byte = 0; byte < 256; ++byte) {
    reference::v4_entry entry;
    entry.scales.fill(static_cast<std::uint8_t>(byte));
    for (std::size_t i = 0; i < 448; ++i) entry.row[i] = static_cast<std::uint8_t>(i);
    const auto exact = reference::v4_dequantise(entry);
    const auto back = dequantise(entry);
    for (std::size_t i = 0; i < 448; ++i) {
      const bool same =
          std::isnan(exact[i]) ? std::isnan(back[i]) : double(back[i]) == double(float(exact[i]));
      if (!same) {
        CAPTURE(byte, i, exact[i], back[i]);
        CHECK(same);
      }
    }
  }
}

TEST_CASE("appended V4 rows land in their places and nowhere else", "[attend][v4]") {
  const auto seed = flashmemory_test::fresh_seed();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const int per_page : {1, 2, 64, 256}) {
    const std::int64_t stride = v4::page_bytes(per_page) + 33, pages = 3;
    std::vector<std::uint8_t> memory(std::size_t(stride * pages), 0xaa), expected = memory;
    v4::page_pool pool;
    pool.pages = reinterpret_cast<std::byte*>(memory.data());
    pool.page_stride = stride;
    pool.num_pages = pages;
    pool.entries_per_page = per_page;
    const std::vector<std::int32_t> places{std::int32_t(pages * per_page - 1), -1, 0};
    std::vector<float> values(3 * 512);
    for (float& x : values) x = normal(random);
    fault error;
    REQUIRE(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 3, 512),
                               view<const std::int32_t, 1>(places.data(), 3), &error) == status::ok);
    for (const std::size_t r : {std::size_t{0}, std::size_t{2}}) {
      const auto entry = reference::v4_quantise(std::vector<float>(
          values.begin() + std::ptrdiff_t(r * 512), values.begin() + std::ptrdiff_t((r + 1) * 512)));
      const int page = places[r] / per_page, slot = places[r] % per_page;
      std::copy(entry.row.begin(), entry.row.end(), expected.begin() + page * stride + v4::row_offset(slot));
      std::copy(entry.scales.begin(), entry.scales.end(),
                expected.begin() + page * stride + v4::scale_offset(per_page, slot));
    }
    CHECK(memory == expected);

    const std::int32_t outside = std::int32_t(pages * per_page);
    CHECK(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 1, 512),
                             view<const std::int32_t, 1>(&outside, 1), &error) == status::out_of_range);
    CHECK(error.actual == outside);
    CHECK(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f16, 3, 512),
                             view<const std::int32_t, 1>(places.data(), 3)) == status::bad_dtype);
    CHECK(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 3, 511),
                             view<const std::int32_t, 1>(places.data(), 3)) == status::bad_shape);
    CHECK(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 3, 512),
                             view<const std::int32_t, 1>(places.data(), 2)) == status::bad_shape);
    pool.entries_per_page = 3;
    CHECK(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 3, 512),
                             view<const std::int32_t, 1>(places.data(), 3)) == status::bad_argument);
    CHECK(memory == expected);
  }
}

TEST_CASE("bf16 rows are quantised as their values", "[attend][v4]") {
  std::vector<std::uint16_t> halves(512);
  std::vector<float> values(512);
  for (std::size_t i = 0; i < 512; ++i) {
    halves[i] = std::uint16_t(0x3c00 + i * 3);
    values[i] = float(reference::bf16_value(halves[i]));
  }
  std::vector<std::byte> a(1152), b(1152);
  v4::page_pool pool;
  pool.page_stride = 1152;
  pool.num_pages = 1;
  pool.entries_per_page = 1;
  const std::int32_t place = 0;
  pool.pages = a.data();
  REQUIRE(v4::append_entries(pool, const_tensor<2>(halves.data(), dtype::bf16, 1, 512),
                             view<const std::int32_t, 1>(&place, 1)) == status::ok);
  pool.pages = b.data();
  REQUIRE(v4::append_entries(pool, const_tensor<2>(values.data(), dtype::f32, 1, 512),
                             view<const std::int32_t, 1>(&place, 1)) == status::ok);
  CHECK(a == b);
}
