// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {
using ids = std::vector<fm::chunk_id>;

fm::view<const std::byte, 1> as_bytes(const std::vector<std::byte>& bytes) {
  return fm::view<const std::byte, 1>(bytes.data(), bytes.size());
}
}  // namespace

TEST_CASE("index keys lie in pages of the geometry's layout, whatever pieces they arrive in") {
  fm::kv_geometry g = small_geometry();
  g.entries_per_chunk = 12;
  g.index_keys.tokens_per_key = 2;  // 6 keys a page
  g.index_keys.lanes = 3;
  g.index_keys.layout = GENERATE(fm::index_key_layout::interleaved, fm::index_key_layout::planar);
  const int piece = GENERATE(1, 4, 6, 20);
  CAPTURE(int(g.index_keys.layout), piece);
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(41));
  for (std::int32_t stream = 0; stream < 3; ++stream) {
    const auto all = make_keys(g, 20, 100 + std::uint64_t(stream));
    for (std::int64_t first = 0; first < 20; first += piece) {
      const std::int64_t count = std::min<std::int64_t>(piece, 20 - first);
      // every other row of a wider array
      std::vector<std::byte> wide(std::size_t(count * 2 * g.index_keys.bytes() + 1), std::byte{0x7f});
      for (std::int64_t i = 0; i < count; ++i)
        std::memcpy(wide.data() + i * 2 * g.index_keys.bytes(),
                    all.data() + (first + i) * g.index_keys.bytes(), std::size_t(g.index_keys.bytes()));
      fm::view<const std::byte, 2> rows(wide.data(), count, g.index_keys.bytes());
      rows.stride[0] = 2 * g.index_keys.bytes();
      REQUIRE(store.append_index_keys(s.handle, stream, first, rows, host) == status::ok);
    }
    fm::index_key_pages pages;
    REQUIRE(store.index_keys(s.handle, stream, &pages) == status::ok);
    REQUIRE(pages.keys == 20);
    for (int i = 0; i < 20; ++i) {
      const std::byte* const page = pages.data + i / 6 * 6 * 12;
      const std::byte* const row = all.data() + i * 12;
      const bool planar = g.index_keys.layout == fm::index_key_layout::planar;
      CHECK(std::memcmp(planar ? page + i % 6 * 8 : page + i % 6 * 12, row, 8) == 0);
      CHECK(std::memcmp(planar ? page + 48 + i % 6 * 4 : page + i % 6 * 12 + 8, row + 8, 4) == 0);
    }
  }
}

TEST_CASE("append_index_keys refuses gaps, overflow, wrong shapes and numbers that are not finite") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(21));
  const auto keys = make_keys(g, 11, 4);
  REQUIRE(store.append_index_keys(s.handle, 0, 0, key_view(g, keys, 3), host) == status::ok);
  const snapshot before(store, s);
  const auto attempt = [&](std::int32_t stream, std::int64_t first, fm::view<const std::byte, 2> rows) {
    const status code = store.append_index_keys(s.handle, stream, first, rows, host);
    CHECK(snapshot(store, s) == before);
    CHECK(store.last_fault().lane == stream);
    CHECK(store.last_fault().sequence == s.handle.index);
    return code;
  };
  CHECK(attempt(0, 2, key_view(g, keys, 1)) == status::out_of_order);
  CHECK(store.last_fault().expected == 3);
  CHECK(store.last_fault().actual == 2);
  CHECK(attempt(0, 4, key_view(g, keys, 1)) == status::out_of_order);
  CHECK(attempt(1, 0, key_view(g, keys, 1)) == status::out_of_range);
  CHECK(attempt(-2, 0, key_view(g, keys, 1)) == status::out_of_range);
  CHECK(attempt(0, 3, key_view(g, keys, 8)) == status::sequence_full);
  CHECK(store.last_fault().expected == 7);
  CHECK(store.last_fault().actual == 8);
  auto rows = key_view(g, keys, 1);
  rows.shape[1] = 11;
  CHECK(attempt(0, 3, rows) == status::bad_shape);
  rows = key_view(g, keys, 1);
  rows.stride[1] = 2;
  CHECK(attempt(0, 3, rows) == status::bad_shape);
  rows = key_view(g, keys, -1);
  CHECK(attempt(0, 3, rows) == status::bad_shape);
  rows = key_view(g, keys, 1);
  rows.data = nullptr;
  CHECK(attempt(0, 3, rows) == status::null_data);
  for (const int nan : {0x7f, 0xff})
    for (const int at : {0, 7}) {
      auto bad = keys;
      bad[std::size_t(2 * 12 + at)] = static_cast<std::byte>(nan);
      CHECK(attempt(0, 3, key_view(g, bad, 4)) == status::not_finite);
      CHECK(store.last_fault().actual == 5);
    }
  for (const float scale : {NAN, INFINITY, -INFINITY}) {
    auto bad = keys;
    std::memcpy(bad.data() + 12 + 8, &scale, 4);
    CHECK(attempt(0, 3, key_view(g, bad, 2)) == status::not_finite);
    CHECK(store.last_fault().actual == 4);
  }
  int not_a_stream = 0;
  CHECK(store.append_index_keys(s.handle, 0, 3, key_view(g, keys, 1),
                                fm::stream_ref(reinterpret_cast<CUstream_st*>(&not_a_stream))) ==
        status::unsupported);
  CHECK(store.append_index_keys(s.handle, 0, 3, key_view(g, keys, 7), host) == status::ok);
  CHECK(store.append_index_keys(s.handle, 0, 10, key_view(g, keys, 0), host) == status::ok);
}

TEST_CASE("chunks carried over with read_chunk and append_chunk make the same sequence") {
  fm::kv_geometry g = small_geometry();
  g.tokens_per_entry = GENERATE(1, 2);
  g.index_keys.tokens_per_key = 2;
  const std::int64_t length = GENERATE(0, 1, 3, 8, 64, 66, 81);
  const std::int64_t quota = GENERATE(0, 5);
  CAPTURE(g.tokens_per_entry, length, quota);
  fm::tiered_chunk_store from(small_options(g)), to(small_options(g));
  engine_sequence a = open(from, tokens(100, quota));
  if (length > 0) REQUIRE(grow(from, a, length, 1) == status::ok);
  engine_sequence b = a;
  b.handle = to.open(tokens(100, quota));
  for (std::int64_t at = 0; at < length; at += g.tokens_per_chunk()) {
    const auto bytes = read_chunk(from, a, at / g.tokens_per_chunk());
    REQUIRE(to.append_chunk(b.handle, as_bytes(bytes), std::min(g.tokens_per_chunk(), length - at)) ==
            status::ok);
  }
  CHECK(all_chunks_right(to, b));
  CHECK(resident_ids(to, b) == resident_ids(from, a));
  CHECK(info(to, b).tokens == length);
  CHECK(to.counters().chunks_sealed == length / g.tokens_per_chunk());
  REQUIRE(decode(to, b, 9, 2) == status::ok);
  REQUIRE(recall(to, b, length > 30 ? ids{1} : ids{}) == status::ok);
  CHECK(all_chunks_right(to, b));
}

TEST_CASE("append_chunk refuses what does not fit and changes nothing") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  const auto bytes = expected_chunk(g, {1, 2, 3, 4}, 0);
  engine_sequence s = open(store, tokens(10));
  const auto attempt = [&](fm::view<const std::byte, 1> chunk, std::int64_t count) {
    const snapshot before(store, s);
    const status code = store.append_chunk(s.handle, chunk, count);
    if (code != status::ok) CHECK(snapshot(store, s) == before);
    return code;
  };
  auto wrong = as_bytes(bytes);
  wrong.shape[0] -= 1;
  CHECK(attempt(wrong, 4) == status::bad_shape);
  wrong = as_bytes(bytes);
  wrong.stride[0] = 2;
  CHECK(attempt(wrong, 4) == status::bad_shape);
  wrong = as_bytes(bytes);
  wrong.data = nullptr;
  CHECK(attempt(wrong, 4) == status::null_data);
  CHECK(attempt(as_bytes(bytes), 0) == status::bad_argument);
  CHECK(attempt(as_bytes(bytes), 5) == status::bad_argument);
  CHECK(attempt(as_bytes(bytes), 4) == status::ok);
  CHECK(attempt(as_bytes(bytes), 3) == status::ok);
  CHECK(attempt(as_bytes(bytes), 1) == status::out_of_order);
  CHECK(store.last_fault().actual == 7);
  REQUIRE(store.truncate(s.handle, 4) == status::ok);
  CHECK(attempt(as_bytes(bytes), 4) == status::ok);
  CHECK(attempt(as_bytes(bytes), 3) == status::sequence_full);
  CHECK(store.last_fault().expected == 10);
  CHECK(store.last_fault().actual == 11);
  const made_rows rows = make_rows(g, {1}, 0);
  const fm::batch_item item{s.handle, 8, 1};
  REQUIRE(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  CHECK(attempt(as_bytes(bytes), 1) == status::out_of_order);

  engine_sequence full = open(store, tokens(200, 5));
  REQUIRE(grow(store, full, 80, 1) == status::ok);
  REQUIRE(recall(store, full, {4, 5}) == status::ok);
  const snapshot before(store, full);
  CHECK(store.append_chunk(full.handle, as_bytes(bytes), 4) == status::budget_exceeded);
  CHECK(store.last_fault().expected == 5);
  CHECK(snapshot(store, full) == before);
}

TEST_CASE("entries that are not there yet read as zero even where a slot held other data before") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(40));
  REQUIRE(grow(store, s, 40, 1) == status::ok);
  REQUIRE(store.truncate(s.handle, 5) == status::ok);
  s.tokens = 5;
  s.tags.resize(5);
  CHECK(read_chunk(store, s, 1) == expected_chunk(g, s.tags, 1));
  const auto tags = new_tags(g, s, 30, 2);
  const made_rows rows = make_rows(g, tags, 0);
  const fm::batch_item item{s.handle, 5, 30};
  REQUIRE(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  auto together = s.tags;
  together.insert(together.end(), tags.begin(), tags.end());
  for (int c = 0; c < 9; ++c)
    CHECK(read_chunk(store, s, c) ==
          expected_chunk(g, together, c, [](std::int64_t layer) { return layer == 0 ? 35 : 5; }));
}
