// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using Catch::Matchers::Contains;
using fm::status;

namespace {
using ids = std::vector<fm::chunk_id>;

engine_sequence fork(fm::chunk_store& store, const engine_sequence& parent, const fm::sequence_options& o) {
  engine_sequence child = parent;
  child.handle = store.fork(parent.handle, o);
  return child;
}

status truncate(fm::chunk_store& store, engine_sequence& s, std::int64_t to) {
  const status code = store.truncate(s.handle, to);
  if (code != status::ok) return code;
  s.tokens = to;
  s.tags.resize(std::size_t(store.geometry().entries_for(to)));
  return code;
}
}  // namespace

TEST_CASE("a fork shares complete chunks, copies the open one, and both go their own way") {
  fm::tiered_chunk_store store(small_options());
  const auto chunk = fm::chunk_layout(store.geometry()).chunk_bytes();
  engine_sequence parent = open(store, tokens(80));
  REQUIRE(grow(store, parent, 30, 1) == status::ok);
  const fm::store_usage before = store.usage();
  engine_sequence child = fork(store, parent, tokens(60));
  CHECK(store.usage().backing_bytes == before.backing_bytes);
  CHECK(store.counters().copies_on_write == 1);
  CHECK(info(store, child).backing_bytes == 7 * chunk);
  CHECK(resident(store, child).chunks[3].data == resident(store, parent).chunks[3].data);
  CHECK(resident(store, child).chunks[7].data != resident(store, parent).chunks[7].data);
  CHECK(all_chunks_right(store, child));
  REQUIRE(grow(store, parent, 9, 2) == status::ok);
  REQUIRE(grow(store, child, 7, 3) == status::ok);
  CHECK(parent.tags != child.tags);
  CHECK(all_chunks_right(store, parent));
  CHECK(all_chunks_right(store, child));
  REQUIRE(store.close(parent.handle) == status::ok);
  CHECK(all_chunks_right(store, child));
  REQUIRE(grow(store, child, 10, 4) == status::ok);
  CHECK(all_chunks_right(store, child));
  REQUIRE(store.close(child.handle) == status::ok);
  CHECK(store.usage().backing_bytes == 0);
}

TEST_CASE("a fork at a chunk boundary copies nothing") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence parent = open(store, tokens(80));
  REQUIRE(grow(store, parent, 28, 1) == status::ok);
  engine_sequence child = fork(store, parent, tokens(60));
  CHECK(store.counters().copies_on_write == 0);
  REQUIRE(grow(store, child, 1, 2) == status::ok);
  CHECK(all_chunks_right(store, child));
  CHECK(all_chunks_right(store, parent));
}

TEST_CASE("a fork starts with its parent's resident set as far as its quota goes") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence parent = open(store, tokens(200, 9));
  REQUIRE(grow(store, parent, 82, 1) == status::ok);
  REQUIRE(recall(store, parent, {3, 7, 12, 5}) == status::ok);
  CHECK(resident_ids(store, fork(store, parent, tokens(200, 9))) == ids{0, 3, 5, 7, 12, 18, 19, 20});
  CHECK(resident_ids(store, fork(store, parent, tokens(200, 6))) == ids{0, 7, 12, 18, 19, 20});
  CHECK(resident_ids(store, fork(store, parent, tokens(200, 9, 3, 4))) ==
        ids{0, 1, 2, 12, 16, 17, 18, 19, 20});
  engine_sequence whole = fork(store, parent, tokens(200));
  CHECK(resident(store, whole).count == 21);
  CHECK(all_chunks_right(store, whole));
  CHECK(resident_ids(store, parent) == ids{0, 3, 5, 7, 12, 18, 19, 20});
}

TEST_CASE("a chunk that two sequences pin has one slot and outlives either pin") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence parent = open(store, tokens(200, 9));
  REQUIRE(grow(store, parent, 82, 1) == status::ok);
  REQUIRE(recall(store, parent, {3, 7}) == status::ok);
  engine_sequence child = fork(store, parent, tokens(200, 9));
  CHECK(resident(store, parent).chunks[1].data == resident(store, child).chunks[1].data);
  REQUIRE(recall(store, parent, {}) == status::ok);
  CHECK(resident_bytes_right(store, child));
  fm::recall_report r;
  REQUIRE(recall(store, parent, {7}, &r) == status::ok);
  CHECK(r.hits == 4);  // still in the fast tier because of the child
  CHECK(r.recalled == 0);
  REQUIRE(store.close(child.handle) == status::ok);
  CHECK(all_chunks_right(store, parent));
}

TEST_CASE("fork refuses what cannot work and leaves no trace") {
  fm::store_options o = small_options();
  fm::tiered_chunk_store store(o);
  engine_sequence parent = open(store, tokens(80));
  REQUIRE(grow(store, parent, 30, 1) == status::ok);
  const snapshot before(store, parent);
  CHECK_THROWS_AS(store.fork(parent.handle, tokens(29)), fm::argument_error);
  CHECK_THROWS_WITH(store.fork(parent.handle, tokens(29)), Contains("29") && Contains("30"));
  CHECK_THROWS_AS(store.fork(parent.handle, tokens(100, 4)), fm::argument_error);
  CHECK_THROWS_AS(store.fork(parent.handle, tokens(1 << 20)), fm::admission_error);
  CHECK(snapshot(store, parent) == before);
  CHECK(store.usage().sequences == 1);

  const made_rows rows = make_rows(store.geometry(), {1}, 0);
  const fm::batch_item item{parent.handle, 30, 1};
  REQUIRE(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  CHECK_THROWS_AS(store.fork(parent.handle, tokens(80)), fm::argument_error);
  CHECK_THROWS_WITH(store.fork(parent.handle, tokens(80)), Contains("forward pass"));
}

TEST_CASE("a fork copies its parent's index keys and continues them alone") {
  fm::kv_geometry g = small_geometry();
  g.index_keys.layout = GENERATE(fm::index_key_layout::interleaved, fm::index_key_layout::planar);
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence parent = open(store, tokens(80));
  REQUIRE(grow(store, parent, 30, 1) == status::ok);
  const auto keys = make_keys(g, 13, 5), more = make_keys(g, 2, 6);
  REQUIRE(store.append_index_keys(parent.handle, 0, 0, key_view(g, keys, 13), host) == status::ok);
  engine_sequence child = fork(store, parent, tokens(60));
  fm::index_key_pages a, b;
  REQUIRE(store.append_index_keys(child.handle, 0, 13, key_view(g, more, 2), host) == status::ok);
  REQUIRE(store.index_keys(parent.handle, 0, &a) == status::ok);
  REQUIRE(store.index_keys(child.handle, 0, &b) == status::ok);
  CHECK(a.keys == 13);
  CHECK(b.keys == 15);
  CHECK(a.data != b.data);
  CHECK(std::memcmp(a.data, b.data, 6 * fm::chunk_layout(g).index_key_page_bytes()) == 0);
}

TEST_CASE("truncate drops tokens anywhere, and what is appended next takes their place") {
  fm::store_options o = small_options();
  temporary_path path;
  if (GENERATE(false, true)) o.backing_path = path.string();
  const std::int64_t quota = GENERATE(0, 6, 12);
  const std::int64_t to = GENERATE(82, 81, 80, 79, 77, 76, 41, 5, 4, 3, 0);
  CAPTURE(quota, to);
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(200, quota));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  REQUIRE(recall(store, s, {5, 2}) == status::ok);
  REQUIRE(truncate(store, s, to) == status::ok);
  CHECK(info(store, s).tokens == to);
  CHECK(info(store, s).complete_chunks == to / 4);
  CHECK(store.usage().backing_bytes ==
        std::size_t(to / 4) * fm::chunk_layout(store.geometry()).chunk_bytes());
  CHECK(all_chunks_right(store, s));
  const auto now = resident_ids(store, s);
  for (std::int64_t id = std::max<std::int64_t>(to / 4 - 2, 0); id < (to + 3) / 4; ++id)
    CHECK(std::count(now.begin(), now.end(), id) == 1);
  if (to > 0) CHECK(now.front() == 0);
  REQUIRE(decode(store, s, 15, 2) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("truncate into a shared chunk copies it and leaves the other sequence alone") {
  fm::tiered_chunk_store store(small_options());
  const std::int64_t quota = GENERATE(0, 6);
  CAPTURE(quota);
  engine_sequence parent = open(store, tokens(200, quota));
  REQUIRE(grow(store, parent, 80, 1) == status::ok);
  engine_sequence child = fork(store, parent, tokens(200, quota));
  REQUIRE(truncate(store, child, 38) == status::ok);
  CHECK(store.counters().copies_on_write == 1);
  CHECK(all_chunks_right(store, parent));
  CHECK(all_chunks_right(store, child));
  REQUIRE(grow(store, child, 7, 2) == status::ok);
  CHECK(all_chunks_right(store, parent));
  CHECK(all_chunks_right(store, child));
  REQUIRE(truncate(store, parent, 35) == status::ok);  // chunk 8 is shared still, 9 no longer
  CHECK(store.counters().copies_on_write == 2);
  CHECK(all_chunks_right(store, parent));
  CHECK(all_chunks_right(store, child));
}

TEST_CASE("truncate makes room among chosen chunks, oldest first, for chunks that must be resident then") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 5));
  REQUIRE(grow(store, s, 80, 1) == status::ok);
  REQUIRE(recall(store, s, {3, 4}) == status::ok);
  REQUIRE(resident_ids(store, s) == ids{0, 3, 4, 18, 19});
  REQUIRE(truncate(store, s, 50) == status::ok);
  CHECK(resident_ids(store, s) == ids{0, 4, 10, 11, 12});
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("truncate drops index keys of dropped tokens, and only those") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(80));
  REQUIRE(grow(store, s, 31, 1) == status::ok);
  const auto keys = make_keys(g, 15, 5);
  REQUIRE(store.append_index_keys(s.handle, 0, 0, key_view(g, keys, 15), host) == status::ok);
  fm::index_key_pages pages;
  for (const auto& [to, left] :
       std::vector<std::pair<int, int>>{{31, 15}, {30, 15}, {29, 14}, {28, 14}, {3, 1}, {0, 0}}) {
    REQUIRE(truncate(store, s, to) == status::ok);
    REQUIRE(store.index_keys(s.handle, 0, &pages) == status::ok);
    CHECK(pages.keys == left);
  }
}

TEST_CASE("truncate in the middle of a forward pass takes the pass back") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 9));
  REQUIRE(grow(store, s, 30, 1) == status::ok);
  const std::int64_t to = GENERATE(30, 29, 12);
  const std::int32_t count = GENERATE(1, 6, 80);
  CAPTURE(to, count);
  const auto tags = new_tags(store.geometry(), s, count, 5);
  const made_rows rows = make_rows(store.geometry(), tags, 0);
  const fm::batch_item item{s.handle, 30, count};
  REQUIRE(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  CHECK(truncate(store, s, 31) == status::out_of_range);
  REQUIRE(truncate(store, s, to) == status::ok);
  CHECK(resident(store, s, 0).tokens == to);
  CHECK(all_chunks_right(store, s));
  REQUIRE(grow(store, s, 9, 6) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("truncate refuses lengths that are not there") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(80));
  REQUIRE(grow(store, s, 30, 1) == status::ok);
  const snapshot before(store, s);
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{31}, std::numeric_limits<std::int64_t>::min(),
                                 std::numeric_limits<std::int64_t>::max()}) {
    CHECK(truncate(store, s, bad) == status::out_of_range);
    CHECK(store.last_fault().expected == 30);
    CHECK(store.last_fault().actual == bad);
    CHECK(snapshot(store, s) == before);
  }
  CHECK(store.counters().faults == 4);
}
