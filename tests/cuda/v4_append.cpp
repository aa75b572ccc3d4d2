// SPDX-License-Identifier: MIT
#include "cuda/v4_problem.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

/// Rows of every size, some groups with zeros, powers of two times 448, their neighbours, denormals, NaN and infinity.
std::vector<float> rows_of_all_kinds(std::size_t count, std::mt19937_64& random) {
  std::vector<float> values(count * 512);
  std::normal_distribution<float> normal;
  for (std::size_t g = 0; g < count * 8; ++g) {
    const float size = std::exp2(std::round(normal(random) * 12));
    const auto kind = random() % 12;
    for (std::size_t i = 0; i < 64; ++i) {
      float x = normal(random) * size;
      if (kind == 0) x = 0;
      if (kind == 1) x = i == 5 ? std::ldexp(448.0f, int(random() % 40) - 20) : 0.0f;
      if (kind == 2 && i == 9) x = std::nextafter(std::ldexp(448.0f, int(random() % 60) - 30), INFINITY);
      if (kind == 3) x *= 1e-38f;
      if (kind == 4) x = std::copysign(3.4e38f, x) * (i % 3 == 0 ? 1.0f : 1e-3f);
      if (kind == 5 && i == random() % 64) x = NAN;
      if (kind == 6 && i == 63) x = -INFINITY;
      if (kind == 7) x = float(int(random() % 1024) - 512) / 16 * 0x1p-3f;  // ties
      values[g * 64 + i] = x;
    }
  }
  return values;
}

void check_append(std::int32_t per_page, dtype type, bool with_table) {
  std::mt19937_64 random(new_seed("append"));
  constexpr std::size_t count = 301;
  std::vector<float> values = rows_of_all_kinds(count, random);
  const std::int64_t pages = 400 / per_page + 1, stride = v4::page_bytes(per_page) + 1152;
  std::vector<std::int32_t> places(static_cast<std::size_t>(pages * per_page));
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<std::int32_t>(i);
  std::shuffle(places.begin(), places.end(), random);
  places.resize(count);
  places[7] = places[8] = -1;
  std::vector<std::uint16_t> halves;
  if (type == dtype::bf16) {
    for (float& x : values) {
      halves.push_back(reference::bf16_bits(x));
      x = static_cast<float>(reference::bf16_value(halves.back()));
    }
  }

  std::vector<std::uint8_t> expected(static_cast<std::size_t>(stride * pages), 0xff);
  deepseek_v4::page_pool host;
  host.pages = reinterpret_cast<std::byte*>(expected.data());
  host.page_stride = stride;
  host.num_pages = pages;
  host.entries_per_page = per_page;
  REQUIRE(deepseek_v4::append_entries(host, const_tensor<2>(values.data(), dtype::f32, count, 512),
                                      view<const std::int32_t, 1>(places.data(), count)) == status::ok);

  places[8] = static_cast<std::int32_t>(pages * per_page);  // outside the pool: the kernel skips it as well
  const device_array<std::int32_t> locations(places);
  const device_array<float> floats(values);
  const device_array<std::uint16_t> shorts(halves);
  device_array<std::uint8_t> memory(expected.size());
  v4::page_pool pool;
  pool.num_pages = pages;
  pool.entries_per_page = per_page;
  std::vector<const std::byte*> table;
  for (std::int64_t p = 0; p < pages; ++p) {
    table.push_back(reinterpret_cast<const std::byte*>(memory.data()) + p * stride - 64);
  }
  const device_array<const std::byte*> device_table(table);
  if (with_table) {
    pool.table = device_table.data();
    pool.table_offset = 64;
  } else {
    pool.pages = reinterpret_cast<std::byte*>(memory.data());
    pool.page_stride = stride;
  }
  const device_stream stream;
  const const_tensor<2> rows = type == dtype::bf16 ? const_tensor<2>(shorts.data(), type, count, 512)
                                                   : const_tensor<2>(floats.data(), type, count, 512);
  REQUIRE(v4::append_entries(pool, rows, view<const std::int32_t, 1>(locations.data(), count),
                             stream.ref()) == status::ok);
  stream.wait();
  CHECK(memory.get() == expected);
}

}  // namespace

TEST_CASE("the quantiser's bytes are those of the CPU", "[cuda][v4]") {
  REQUIRE_GPU();
  for (const std::int32_t per_page : {64, 2, 256}) {
    for (const dtype type : {dtype::f32, dtype::bf16}) {
      for (const bool table : {false, true}) {
        CAPTURE(per_page, to_string(type), table);
        check_append(per_page, type, table);
      }
    }
  }
}
