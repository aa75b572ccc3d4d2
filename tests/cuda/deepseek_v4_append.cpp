// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>

#include "cuda/deepseek_v4/append_to.hpp"
#include "tests/cuda/deepseek_v4_problem.hpp"
#include "tests/support/fresh_seed.hpp"

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
  std::mt19937_64 random(printed_seed("append"));
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

TEST_CASE(
    "new entries go from the targets in device memory into a store's chunks as the host's store writes them",
    "[cuda][v4]") {
  REQUIRE_GPU();
  std::mt19937_64 random(printed_seed("append to"));
  const std::int32_t per_chunk = GENERATE(1, 4, 64);
  const dtype type = GENERATE(dtype::f32, dtype::bf16);
  CAPTURE(per_chunk, to_string(type));
  kv_geometry g;
  g.layers = 3;
  g.kv_heads = 1;
  g.key_dim = 512;
  g.value_dim = 128;
  g.format = kv_format::deepseek_v4;
  g.entries_per_chunk = per_chunk;
  g.tokens_per_entry = 4;
  const chunk_layout layout(g);
  const std::int64_t chunks = 70 / per_chunk + 2, entries = chunks * per_chunk;
  const std::size_t rows = static_cast<std::size_t>(entries);
  std::vector<float> k = rows_of_all_kinds(rows, random), v = rows_of_all_kinds(rows / 4 + 1, random);
  v.resize(rows * 128);
  const auto halves_of = [&](std::vector<float>& values) {
    std::vector<std::uint16_t> halves;
    for (float& x : values) {
      halves.push_back(reference::bf16_bits(x));
      if (type == dtype::bf16) x = static_cast<float>(reference::bf16_value(halves.back()));
    }
    return halves;
  };
  const device_array<std::uint16_t> k_halves(halves_of(k)), v_halves(halves_of(v));
  const device_array<float> k_floats(k), v_floats(v);
  const auto tensor_of = [&](const device_array<float>& wide, const device_array<std::uint16_t>& narrow,
                             std::int64_t dim) {
    return type == dtype::bf16 ? const_tensor<3>(narrow.data(), type, rows, 1, dim)
                               : const_tensor<3>(wide.data(), type, rows, 1, dim);
  };
  const std::int32_t layer = 1;
  device_array<std::uint8_t> memory(static_cast<std::size_t>(chunks) * layout.chunk_bytes());
  std::vector<std::uint8_t> expected(memory.size(), 0xff);
  std::vector<cuda::append_target> targets;
  for (std::int32_t row = 0; row < entries; ++row) {
    cuda::append_target t;
    t.row = row;
    t.entry = row % per_chunk;
    t.chunk =
        reinterpret_cast<std::byte*>(memory.data()) + row / per_chunk * std::int64_t(layout.chunk_bytes());
    if (row % 7 == 3) t.chunk = nullptr;
    if (row % 7 == 5) t.row = row % 2 == 0 ? -1 : static_cast<std::int32_t>(rows);
    targets.push_back(t);
    if (row % 7 == 3 || row % 7 == 5) continue;
    auto* const piece = reinterpret_cast<std::byte*>(expected.data()) +
                        row / per_chunk * std::int64_t(layout.chunk_bytes()) +
                        std::int64_t(layout.key_offset(layer, 0));
    deepseek_v4::quantise_entry(k.data() + row * 512, piece + deepseek_v4::row_offset(t.entry),
                                piece + deepseek_v4::scale_offset(per_chunk, t.entry));
    std::byte key[132];
    quantise_key(v.data() + row * 128, key, 1e-4f);
    std::byte* const keys = piece + deepseek_v4::page_bytes(per_chunk);
    std::memcpy(keys + t.entry * 128, key, 128);
    std::memcpy(keys + per_chunk * 128 + t.entry * 4, key + 128, 4);
  }
  std::shuffle(targets.begin(), targets.end(), random);
  const device_array<cuda::append_target> table(targets);
  const device_stream stream;
  REQUIRE(v4::launch_append_to(table.data(), std::int64_t(targets.size()), g, layer,
                               tensor_of(k_floats, k_halves, 512), tensor_of(v_floats, v_halves, 128),
                               stream.ref()) == status::ok);
  stream.wait();
  CHECK(memory.get() == expected);

  fault f;
  const auto k_rows = tensor_of(k_floats, k_halves, 512), v_rows = tensor_of(v_floats, v_halves, 128);
  kv_geometry other = g;
  other.format = kv_format::separate;
  CHECK(v4::launch_append_to(table.data(), 1, other, 0, k_rows, v_rows, stream.ref(), &f) ==
        status::unsupported);
  CHECK(v4::launch_append_to(table.data(), 1, g, 3, k_rows, v_rows, stream.ref(), &f) ==
        status::out_of_range);
  CHECK(v4::launch_append_to(table.data(), 1, g, 0, v_rows, v_rows, stream.ref(), &f) == status::bad_shape);
  CHECK(std::string(f.what) == "entries");
  CHECK(v4::launch_append_to(nullptr, 1, g, 0, k_rows, v_rows, stream.ref(), &f) == status::null_data);
  CHECK(v4::launch_append_to(nullptr, 0, g, 0, k_rows, v_rows, stream.ref(), &f) == status::ok);
}
