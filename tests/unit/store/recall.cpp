// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

/// 20 complete chunks and an open one; sink 0, recent 18 and 19, open 20.
struct long_sequence {
  explicit long_sequence(std::int64_t quota, fm::store_options o = small_options()) : store(o) {
    s = open(store, tokens(200, quota));
    REQUIRE(grow(store, s, 82, 11) == status::ok);
  }
  fm::tiered_chunk_store store;
  engine_sequence s;
};

}  // namespace

TEST_CASE("recall makes the request and what is always resident the resident set") {
  long_sequence t(9);
  fm::recall_report r;
  REQUIRE(recall(t.store, t.s, {7, 3, 12}, &r) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 3, 7, 12, 18, 19, 20});
  CHECK(r.selected == 6);
  CHECK(r.hits == 3);
  CHECK(r.recalled == 3);
  CHECK(r.refused == 0);
  CHECK(r.evicted == 0);
  CHECK(r.bytes == 3 * std::int64_t(fm::chunk_layout(t.store.geometry()).chunk_bytes()));
  CHECK(all_chunks_right(t.store, t.s));

  REQUIRE(recall(t.store, t.s, {7, 19, 0, 4}, &r) == status::ok);  // names forced chunks as well
  CHECK(resident_ids(t.store, t.s) == ids{0, 4, 7, 18, 19, 20});
  CHECK(r.selected == 5);
  CHECK(r.hits == 4);
  CHECK(r.recalled == 1);
  CHECK(r.evicted == 2);
  CHECK(all_chunks_right(t.store, t.s));

  REQUIRE(recall(t.store, t.s, {}, nullptr) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 18, 19, 20});
  CHECK(info(t.store, t.s).slot_bytes == 4 * fm::chunk_layout(t.store.geometry()).chunk_bytes());
}

TEST_CASE("what the quota has no room for is refused from the end of the request and counted") {
  long_sequence t(7);
  fm::recall_report r;
  REQUIRE(recall(t.store, t.s, {5, 9, 2, 11, 3}, &r) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 2, 5, 9, 18, 19, 20});
  CHECK(r.selected == 8);
  CHECK(r.hits == 3);
  CHECK(r.recalled == 3);
  CHECK(r.refused == 2);
  CHECK(t.store.counters().refused == 2);
}

TEST_CASE("a transition pool smaller than the change refuses the rest, and the next recall goes on") {
  fm::store_options o = small_options();
  o.transition_chunks = 3;
  long_sequence t(9, o);
  engine_sequence neighbour = open(t.store, tokens(40, 0));  // pins its whole quota
  REQUIRE(grow(t.store, neighbour, 40, 5) == status::ok);
  fm::recall_report r;
  REQUIRE(recall(t.store, t.s, {1, 2, 3, 4, 5}, &r) == status::ok);
  CHECK(r.recalled == 5);  // the quota was not used up, so there were more free slots than the pool's
  REQUIRE(recall(t.store, t.s, {6, 7, 8, 9, 5}, &r) == status::ok);
  CHECK(r.selected == 8);
  CHECK(r.recalled == 3);
  CHECK(r.refused == 1);
  CHECK(r.hits == 4);
  CHECK(resident_ids(t.store, t.s) == ids{0, 5, 6, 7, 8, 18, 19, 20});
  REQUIRE(recall(t.store, t.s, {6, 7, 8, 9, 5}, &r) == status::ok);
  CHECK(r.refused == 0);
  CHECK(resident_ids(t.store, t.s) == ids{0, 5, 6, 7, 8, 9, 18, 19, 20});
  CHECK(all_chunks_right(t.store, t.s));
}

TEST_CASE("with the default transition pool no recall within the quota is refused") {
  long_sequence t(9);
  engine_sequence other = open(t.store, tokens(200, 6));
  REQUIRE(grow(t.store, other, 90, 6) == status::ok);
  REQUIRE(recall(t.store, other, {3}) == status::ok);
  for (fm::chunk_id first = 1; first + 5 < 18; ++first) {
    fm::recall_report r;
    REQUIRE(recall(t.store, t.s, {first, first + 1, first + 2, first + 3, first + 4}, &r) == status::ok);
    REQUIRE(r.refused == 0);
    REQUIRE(resident_ids(t.store, other) == ids{0, 3, 20, 21, 22});
    REQUIRE(resident_bytes_right(t.store, other));
    REQUIRE(resident_bytes_right(t.store, t.s));
  }
}

TEST_CASE("a chunk that stays resident stays where it is") {
  long_sequence t(9);
  REQUIRE(recall(t.store, t.s, {7, 3, 12}) == status::ok);
  const fm::resident_set before = resident(t.store, t.s);
  const std::byte* const seventh = before.chunks[2].data;
  REQUIRE(recall(t.store, t.s, {7, 5}) == status::ok);
  const fm::resident_set after = resident(t.store, t.s);
  REQUIRE(after.chunks[2].id == 7);
  CHECK(after.chunks[2].data == seventh);
  CHECK(reinterpret_cast<std::uintptr_t>(seventh) % 64 == 0);
}

TEST_CASE("large slots begin on a page") {
  fm::kv_geometry g = small_geometry();
  g.entries_per_chunk = 64;
  fm::store_options o = small_options(g);
  const temporary_path path;
  o.backing_path = path.string();  // slots that are copies
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(128));
  REQUIRE(grow(store, s, 100, 1) == status::ok);
  const fm::resident_set set = resident(store, s);
  for (std::int64_t i = 0; i < set.count; ++i)
    CHECK(reinterpret_cast<std::uintptr_t>(set.chunks[i].data) % 4096 == 0);
}

TEST_CASE("a sequence whose quota covers it is resident as a whole, whatever is recalled") {
  long_sequence t(0);
  fm::recall_report r;
  REQUIRE(recall(t.store, t.s, {4}, &r) == status::ok);
  CHECK(resident(t.store, t.s).count == 21);
  CHECK(r.selected == 20);
  CHECK(r.hits == 20);
  CHECK(r.evicted == 0);
}

TEST_CASE("recall refuses chunks that are not complete, listed twice or without data, and changes nothing") {
  long_sequence t(9);
  REQUIRE(recall(t.store, t.s, {7, 3}) == status::ok);
  const snapshot before(t.store, t.s);
  const auto refused = [&](const ids& wanted, status expected, std::int64_t chunk) {
    fm::recall_report r;
    r.selected = 42;
    CHECK(recall(t.store, t.s, wanted, &r) == expected);
    CHECK(r.selected == 42);
    CHECK(t.store.last_fault().chunk == chunk);
    CHECK(t.store.last_fault().sequence == t.s.handle.index);
    CHECK(snapshot(t.store, t.s) == before);
    CHECK(resident_bytes_right(t.store, t.s));
  };
  refused({1, 20}, status::out_of_range, 20);  // the open one
  refused({1, 21}, status::out_of_range, 21);
  refused({-1}, status::out_of_range, -1);
  refused({std::numeric_limits<int>::max()}, status::out_of_range, std::numeric_limits<int>::max());
  refused({std::numeric_limits<int>::min()}, status::out_of_range, std::numeric_limits<int>::min());
  refused({5, 6, 5}, status::bad_argument, 5);
  fm::view<const fm::chunk_id, 1> bad;
  bad.shape[0] = 1;
  CHECK(t.store.recall(t.s.handle, bad, nullptr, host) == status::null_data);
  bad.shape[0] = -1;
  CHECK(t.store.recall(t.s.handle, bad, nullptr, host) == status::bad_shape);
  int not_a_stream = 0;
  CHECK(t.store.recall(t.s.handle, {}, nullptr,
                       fm::stream_ref(reinterpret_cast<CUstream_st*>(&not_a_stream))) == status::unsupported);
  CHECK(snapshot(t.store, t.s) == before);
  CHECK(t.store.counters().recalls_failed == 9);
  CHECK(t.store.counters().recalls == 1);
}

TEST_CASE("recall reads its list through the view's stride") {
  long_sequence t(9);
  const fm::chunk_id list[] = {4, -7, 9, -7, 2};
  fm::view<const fm::chunk_id, 1> wanted(list, 3);
  wanted.stride[0] = 2;
  REQUIRE(t.store.recall(t.s.handle, wanted, nullptr, host) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 2, 4, 9, 18, 19, 20});
}

TEST_CASE("a recall in the middle of a forward pass keeps what the pass is writing") {
  long_sequence t(9);
  const auto tags = new_tags(t.store.geometry(), t.s, 12, 5);
  const fm::batch_item item{t.s.handle, t.s.tokens, 12};
  const made_rows first = make_rows(t.store.geometry(), tags, 0),
                  second = make_rows(t.store.geometry(), tags, 1);
  REQUIRE(t.store.append(fm::batch(&item, 1), 0, first.k_view, first.v_view, host) == status::ok);
  REQUIRE(recall(t.store, t.s, {6}) == status::ok);
  CHECK(resident_ids(t.store, t.s, 0) == ids{0, 6, 18, 19, 20, 21, 22, 23});
  CHECK(resident_ids(t.store, t.s, 1) == ids{0, 6, 18, 19, 20});
  REQUIRE(t.store.append(fm::batch(&item, 1), 1, second.k_view, second.v_view, host) == status::ok);
  t.s.tags.insert(t.s.tags.end(), tags.begin(), tags.end());
  t.s.tokens += 12;
  CHECK(resident_ids(t.store, t.s, 1) == ids{0, 6, 18, 19, 20, 21, 22, 23});
  CHECK(all_chunks_right(t.store, t.s));
}

TEST_CASE("resident, keys, info and read_chunk refuse what does not exist and are counted") {
  long_sequence t(9);
  fm::resident_set set;
  fm::index_key_pages pages;
  CHECK(t.store.resident(t.s.handle, -1, &set) == status::out_of_range);
  CHECK(t.store.resident(t.s.handle, 2, &set) == status::out_of_range);
  CHECK(t.store.last_fault().layer == 2);
  CHECK(t.store.resident(t.s.handle, 0, nullptr) == status::null_data);
  CHECK(t.store.index_keys(t.s.handle, -1, &pages) == status::out_of_range);
  CHECK(t.store.index_keys(t.s.handle, 1, &pages) == status::out_of_range);
  CHECK(t.store.last_fault().lane == 1);
  CHECK(t.store.index_keys(t.s.handle, 0, nullptr) == status::null_data);
  CHECK(t.store.info(t.s.handle, nullptr) == status::null_data);
  std::vector<std::byte> out(fm::chunk_layout(t.store.geometry()).chunk_bytes() + 1);
  using bytes = fm::view<std::byte, 1>;
  CHECK(t.store.read_chunk(t.s.handle, -1, bytes(out.data(), out.size() - 1)) == status::out_of_range);
  CHECK(t.store.read_chunk(t.s.handle, 21, bytes(out.data(), out.size() - 1)) == status::out_of_range);
  CHECK(t.store.last_fault().chunk == 21);
  CHECK(t.store.read_chunk(t.s.handle, 1, bytes(out.data(), out.size())) == status::bad_shape);
  CHECK(t.store.read_chunk(t.s.handle, 1, bytes(static_cast<std::byte*>(nullptr), out.size() - 1)) ==
        status::null_data);
  bytes strided(out.data(), out.size() - 1);
  strided.stride[0] = 2;
  CHECK(t.store.read_chunk(t.s.handle, 1, strided) == status::bad_shape);
  CHECK(t.store.counters().faults == 12);
}
