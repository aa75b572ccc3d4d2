// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <limits>
#include <random>
#include <vector>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
using fm::index_key_layout;
using fm::index_key_type;
using fm::status;

namespace {

struct key_store_of {
  explicit key_store_of(const fm::index_key_geometry& keys) {
    fm::store_options o;
    o.geometry.layers = o.geometry.kv_heads = 1;
    o.geometry.key_dim = o.geometry.value_dim = 16;
    o.geometry.entries_per_chunk = 16;
    o.geometry.index_keys = keys;
    o.fast_bytes = o.backing_bytes = std::size_t{8} << 20;
    store = std::make_unique<fm::tiered_chunk_store>(o);
    fm::sequence_options s;
    s.max_tokens = 200;
    sequence = store->open(s);
  }
  status append(std::int64_t first, const std::vector<std::byte>& rows) {
    const std::int64_t bytes = store->geometry().index_keys.bytes();
    return store->append_index_keys(
        sequence, 0, first,
        fm::view<const std::byte, 2>(rows.data(), std::int64_t(rows.size()) / bytes, bytes),
        fm::stream_ref::host());
  }
  std::unique_ptr<fm::tiered_chunk_store> store;
  fm::sequence_handle sequence;
};

/// Bytes that are numbers in every type: small exponents.
std::vector<std::byte> numbers(std::mt19937& random, std::int64_t count) {
  std::vector<std::byte> bytes(std::size_t(count), std::byte{0});
  for (auto& b : bytes) b = std::byte(random() & 0x3b);
  return bytes;
}

}  // namespace

TEST_CASE("index keys of every type come back as they were appended, in either layout", "[store]") {
  const auto seed = flashmemory_test::fresh_seed();
  const auto type = GENERATE(index_key_type::e4m3, index_key_type::bf16, index_key_type::f16,
                             index_key_type::int8, index_key_type::mxfp4);
  const auto layout = GENERATE(index_key_layout::interleaved, index_key_layout::planar);
  const std::int32_t dim = GENERATE(32, 64, 256);
  CAPTURE(seed, fm::to_string(type), int(layout), dim);
  std::mt19937 random(seed);
  fm::index_key_geometry keys;
  keys.lanes = 1;
  keys.dim = dim;
  keys.type = type;
  keys.tokens_per_key = 2;
  keys.layout = layout;
  key_store_of s(keys);
  const std::int64_t bytes = keys.bytes(), values = keys.value_bytes(), scales = keys.scale_bytes();
  const auto rows = numbers(random, 21 * bytes);
  for (std::int64_t first = 0; first < 21; first += 3)
    REQUIRE(s.append(first, {rows.begin() + first * bytes, rows.begin() + (first + 3) * bytes}) ==
            status::ok);
  fm::index_key_pages pages;
  REQUIRE(s.store->index_keys(s.sequence, 0, &pages) == status::ok);
  REQUIRE(pages.keys == 21);
  const std::int64_t each = s.store->geometry().index_keys_per_chunk();
  REQUIRE(each == 8);
  for (std::int64_t key = 0; key < 24; ++key) {
    CAPTURE(key);
    const std::byte* const page = pages.data + key / each * each * bytes;
    const std::byte* const value =
        layout == index_key_layout::planar ? page + key % each * values : page + key % each * bytes;
    const std::byte* const scale =
        layout == index_key_layout::planar ? page + each * values + key % each * scales : value + values;
    const std::vector<std::byte> none(std::size_t(bytes), std::byte{0});  // a key that is not there yet
    const std::byte* const wanted = key < 21 ? rows.data() + key * bytes : none.data();
    CHECK(std::memcmp(value, wanted, std::size_t(values)) == 0);
    CHECK(std::memcmp(scale, wanted + values, std::size_t(scales)) == 0);
  }
}

TEST_CASE("an index key that is no number is refused, wherever its type can hide one", "[store]") {
  struct hidden {
    index_key_type type;
    std::int64_t at;
    std::vector<unsigned> bytes;
  };
  const auto bad = GENERATE(
      hidden{index_key_type::e4m3, 31, {0xff}}, hidden{index_key_type::e4m3, 0, {0x7f}},
      hidden{index_key_type::e4m3, 32, {0, 0, 0x80, 0x7f}}, hidden{index_key_type::bf16, 62, {0xc0, 0x7f}},
      hidden{index_key_type::bf16, 0, {0x80, 0xff}}, hidden{index_key_type::f16, 62, {0x00, 0x7c}},
      hidden{index_key_type::int8, 32, {1, 0, 0xc0, 0x7f}}, hidden{index_key_type::mxfp4, 16, {0xff}});
  CAPTURE(fm::to_string(bad.type), bad.at);
  fm::index_key_geometry keys;
  keys.lanes = 1;
  keys.dim = 32;
  keys.type = bad.type;
  key_store_of s(keys);
  std::vector<std::byte> rows(std::size_t(2 * keys.bytes()), std::byte{0x11});
  CHECK(s.append(0, rows) == status::ok);
  for (std::size_t i = 0; i < bad.bytes.size(); ++i)
    rows[std::size_t(keys.bytes() + bad.at) + i] = std::byte(bad.bytes[i]);
  CHECK(s.append(2, rows) == status::not_finite);
  CHECK(s.store->last_fault().actual == 3);
  fm::index_key_pages pages;
  REQUIRE(s.store->index_keys(s.sequence, 0, &pages) == status::ok);
  CHECK(pages.keys == 2);
}
