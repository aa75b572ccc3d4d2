// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::late_policy;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

status start(fm::chunk_store& store, const engine_sequence& s, const ids& chunks,
             fm::recall_report* report = nullptr) {
  return store.start_recall(s.handle, fm::view<const fm::chunk_id, 1>(chunks.data(), chunks.size()), report,
                            host);
}

status finish(fm::chunk_store& store, const engine_sequence& s, fm::recall_report* report = nullptr,
              late_policy late = late_policy::keep) {
  return store.finish_recall(s.handle, late, report, host);
}

/// 20 complete chunks and an open one; sink 0, recent 18 and 19, open 20.
struct long_sequence {
  explicit long_sequence(std::int64_t quota, fm::store_options o = small_options()) : store(o) {
    s = open(store, tokens(200, quota));
    REQUIRE(grow(store, s, 82, 11) == status::ok);
  }
  void conserved() const {
    const auto c = store.counters();
    CHECK(c.selected == c.hits + c.recalled + c.refused);
    CHECK(c.bytes_recalled == c.recalled * std::int64_t(fm::chunk_layout(store.geometry()).chunk_bytes()));
  }
  fm::tiered_chunk_store store;
  engine_sequence s;
};

/// Appends a chunk of the source, whose length is that of `s` or more.
status import_from(const long_sequence& source, fm::chunk_id id, fm::chunk_store& store,
                   const engine_sequence& s) {
  const auto bytes = read_chunk(source.store, source.s, id);
  return store.append_chunk(s.handle, fm::view<const std::byte, 1>(bytes.data(), bytes.size()), 4);
}

}  // namespace

TEST_CASE("the old set stays until a started recall is finished") {
  long_sequence t(9);
  REQUIRE(recall(t.store, t.s, {5, 6}) == status::ok);
  fm::recall_report first, last;
  REQUIRE(start(t.store, t.s, {7, 3, 6}, &first) == status::ok);
  CHECK(first.selected == 6);
  CHECK(first.hits == 4);
  CHECK(first.recalled == 2);
  CHECK(resident_ids(t.store, t.s) == ids{0, 5, 6, 18, 19, 20});
  CHECK(info(t.store, t.s).pending_chunks == 2);
  CHECK(all_chunks_right(t.store, t.s));
  CHECK(t.store.poll_recall(t.s.handle) == status::ok);
  CHECK(t.store.counters().recalls == 1);
  REQUIRE(finish(t.store, t.s, &last) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 3, 6, 7, 18, 19, 20});
  CHECK(last.selected == 6);
  CHECK(last.hits == 4);
  CHECK(last.recalled == 2);
  CHECK(last.evicted == 1);
  CHECK(last.bytes == 2 * std::int64_t(fm::chunk_layout(t.store.geometry()).chunk_bytes()));
  CHECK(info(t.store, t.s).pending_chunks == 0);
  CHECK(t.store.counters().recalls == 2);
  CHECK(t.store.counters().faults == 0);
  CHECK(all_chunks_right(t.store, t.s));
  t.conserved();
}

TEST_CASE("start and finish in turn are what recall does") {
  long_sequence one(8), two(8);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 40; ++round) {
    ids wanted;
    for (fm::chunk_id id = 0; id < 20; ++id)
      if (random() % 3 == 0) wanted.push_back(id);
    std::shuffle(wanted.begin(), wanted.end(), random);
    fm::recall_report a, b;
    REQUIRE(recall(one.store, one.s, wanted, &a) == status::ok);
    REQUIRE(start(two.store, two.s, wanted) == status::ok);
    REQUIRE(finish(two.store, two.s, &b) == status::ok);
    REQUIRE(resident_ids(one.store, one.s) == resident_ids(two.store, two.s));
    REQUIRE(a.selected == b.selected);
    REQUIRE(a.hits == b.hits);
    REQUIRE(a.recalled == b.recalled);
    REQUIRE(a.refused == b.refused);
    REQUIRE(a.evicted == b.evicted);
    REQUIRE(a.bytes == b.bytes);
  }
  CHECK(all_chunks_right(two.store, two.s));
  two.conserved();
}

TEST_CASE("chunks completed between start and finish stay, and forced ones are those of the flip") {
  long_sequence t(12);
  REQUIRE(start(t.store, t.s, {7, 3}) == status::ok);
  REQUIRE(grow(t.store, t.s, 11, 3) == status::ok);  // completes 20, 21 and 22; 23 is open
  fm::recall_report r;
  REQUIRE(finish(t.store, t.s, &r) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 3, 7, 20, 21, 22, 23});
  CHECK(r.evicted == 2);
  CHECK(r.selected == 5);
  CHECK(all_chunks_right(t.store, t.s));
  t.conserved();
}

TEST_CASE("what the flip's quota has no room for any more is dropped from the end and counted as refused") {
  long_sequence t(9);
  fm::recall_report r;
  REQUIRE(start(t.store, t.s, {7, 3, 18, 9, 4, 5}, &r) == status::ok);
  CHECK(r.refused == 0);
  CHECK(r.recalled == 5);
  for (std::uint64_t i = 0; i < 15; ++i)  // 20, 21, 22 and 23 complete, 24 open
    REQUIRE(grow(t.store, t.s, 1, 30 + i) == status::ok);
  REQUIRE(finish(t.store, t.s, &r) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 3, 7, 18, 20, 21, 22, 23, 24});
  CHECK(r.recalled == 2);
  CHECK(r.refused == 3);
  CHECK(r.hits == 3);
  CHECK(r.selected == 8);
  CHECK(all_chunks_right(t.store, t.s));
  t.conserved();
  REQUIRE(recall(t.store, t.s, {7, 3, 9, 4, 5}) == status::ok);  // nothing has leaked
  CHECK(resident_ids(t.store, t.s) == ids{0, 3, 4, 5, 7, 9, 22, 23, 24});
}

TEST_CASE("starting twice, finishing nothing and bad requests are refused and change nothing") {
  long_sequence t(9);
  CHECK(finish(t.store, t.s) == status::out_of_order);
  CHECK(t.store.poll_recall(t.s.handle) == status::ok);
  CHECK(t.store.cancel_recall(t.s.handle) == status::ok);
  CHECK(start(t.store, t.s, {20}) == status::out_of_range);
  CHECK(start(t.store, t.s, {3, 3}) == status::bad_argument);
  CHECK(finish(t.store, t.s) == status::out_of_order);
  REQUIRE(start(t.store, t.s, {7}) == status::ok);
  CHECK(start(t.store, t.s, {3}) == status::out_of_order);
  CHECK(finish(t.store, t.s, nullptr, late_policy(9)) == status::bad_argument);
  int not_a_stream = 0;
  const fm::stream_ref other(reinterpret_cast<CUstream_st*>(&not_a_stream));
  CHECK(t.store.finish_recall(t.s.handle, late_policy::wait, nullptr, other) == status::unsupported);
  CHECK(recall(t.store, t.s, {21}) == status::out_of_range);  // leaves what is under way alone
  REQUIRE(finish(t.store, t.s) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 7, 18, 19, 20});
  engine_sequence closed = open(t.store, tokens(20, 0));
  REQUIRE(t.store.close(closed.handle) == status::ok);
  CHECK(start(t.store, closed, {}) == status::stale_sequence);
  CHECK(finish(t.store, closed) == status::stale_sequence);
  CHECK(t.store.poll_recall(closed.handle) == status::stale_sequence);
  CHECK(t.store.cancel_recall(closed.handle) == status::stale_sequence);
  CHECK(t.store.counters().recalls_failed == 10);
  CHECK(t.store.counters().recalls_cancelled == 0);
}

TEST_CASE("cancel, recall, truncate and close give up a recall and all its slots") {
  long_sequence t(9);
  for (int round = 0; round < 50; ++round) {
    REQUIRE(start(t.store, t.s, {7, 3, 9, 4, 5}) == status::ok);
    REQUIRE(t.store.cancel_recall(t.s.handle) == status::ok);
    CHECK(info(t.store, t.s).pending_chunks == 0);
    REQUIRE(start(t.store, t.s, {1, 2}) == status::ok);
    REQUIRE(recall(t.store, t.s, {8}) == status::ok);
    CHECK(resident_ids(t.store, t.s) == ids{0, 8, 18, 19, 20});
    engine_sequence other = open(t.store, tokens(100, 8));
    REQUIRE(grow(t.store, other, 70, 8) == status::ok);
    REQUIRE(start(t.store, other, {4, 5}) == status::ok);
    REQUIRE(t.store.close(other.handle) == status::ok);
    REQUIRE(start(t.store, t.s, {10, 15}) == status::ok);
    REQUIRE(t.store.truncate(t.s.handle, 62) == status::ok);  // chunk 15 is open then
    CHECK(finish(t.store, t.s) == status::out_of_order);
    t.s.tokens = 62;
    t.s.tags.resize(62);
    REQUIRE(grow(t.store, t.s, 20, std::uint64_t(round) + 50) == status::ok);
    REQUIRE(all_chunks_right(t.store, t.s));
  }
  CHECK(t.store.counters().recalls_cancelled == 200);
  t.conserved();
}

TEST_CASE("a rollback that leaves the asked chunks alone leaves the recall alone") {
  long_sequence t(9);
  REQUIRE(start(t.store, t.s, {7, 10}) == status::ok);
  REQUIRE(t.store.truncate(t.s.handle, 77) == status::ok);
  t.s.tokens = 77;
  t.s.tags.resize(77);
  REQUIRE(finish(t.store, t.s) == status::ok);
  CHECK(resident_ids(t.store, t.s) == ids{0, 7, 10, 17, 18, 19});
  CHECK(all_chunks_right(t.store, t.s));
  t.conserved();
}

TEST_CASE("recalls under way share the transition pool and never take what other sequences may need") {
  fm::store_options o = small_options();
  o.transition_chunks = 4;
  long_sequence t(9, o);
  engine_sequence other = open(t.store, tokens(200, 9));
  REQUIRE(grow(t.store, other, 82, 6) == status::ok);
  fm::recall_report r;
  REQUIRE(start(t.store, t.s, {7, 3, 9}, &r) == status::ok);
  CHECK(r.recalled == 3);
  REQUIRE(start(t.store, other, {7, 3, 9}, &r) == status::ok);
  CHECK(r.recalled == 1);
  CHECK(r.refused == 2);
  // Both decode up to their quotas while the recalls are under way.
  for (std::uint64_t i = 0; i < 20; ++i) {
    REQUIRE(grow(t.store, t.s, 1, 100 + i) == status::ok);
    REQUIRE(grow(t.store, other, 1, 200 + i) == status::ok);
  }
  CHECK(info(t.store, t.s).resident_chunks == 9);
  CHECK(info(t.store, other).resident_chunks == 9);
  // A rollback that needs slots for its newest chunks takes them from recalls.
  REQUIRE(finish(t.store, t.s) == status::ok);
  REQUIRE(finish(t.store, other) == status::ok);
  CHECK(all_chunks_right(t.store, t.s));
  CHECK(all_chunks_right(t.store, other));
  REQUIRE(start(t.store, t.s, {4, 5, 6, 8}, &r) == status::ok);
  REQUIRE(t.store.truncate(other.handle, 41) == status::ok);
  other.tokens = 41;
  other.tags.resize(41);
  CHECK(all_chunks_right(t.store, other));
  CHECK(all_chunks_right(t.store, t.s));
  t.conserved();
}

TEST_CASE("a fork shares chunks with a recall under way and neither takes them from the other") {
  long_sequence t(9);
  REQUIRE(start(t.store, t.s, {7, 3}) == status::ok);
  engine_sequence child = t.s;
  child.handle = t.store.fork(t.s.handle, tokens(200, 9));
  REQUIRE(recall(t.store, child, {7, 12}) == status::ok);
  REQUIRE(start(t.store, child, {3, 7}) == status::ok);
  REQUIRE(t.store.cancel_recall(t.s.handle) == status::ok);
  CHECK(all_chunks_right(t.store, child));
  REQUIRE(finish(t.store, child) == status::ok);
  CHECK(resident_ids(t.store, child) == ids{0, 3, 7, 18, 19, 20});
  CHECK(all_chunks_right(t.store, child));
  REQUIRE(t.store.close(t.s.handle) == status::ok);
  CHECK(all_chunks_right(t.store, child));
}

TEST_CASE("a read that fails while a recall is started costs that chunk, and gives no slot away") {
  failing_backing::switches control;
  fm::store_options o = small_options();
  fm::tiered_chunk_store store(o, failing_ram(o, &control));
  engine_sequence s = open(store, tokens(200, 9));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  const snapshot before(store, s);
  control.failing_reads = 2;
  for (int nth = 0; nth < 3; ++nth) {
    control.fail_read = control.reads + nth;
    REQUIRE(start(store, s, {3, 8, 5}) == status::ok);
    CHECK(store.last_fault().chunk == ids{3, 8, 5}[std::size_t(nth)]);
    CHECK(info(store, s).pending_chunks == 2);
    REQUIRE(store.cancel_recall(s.handle) == status::ok);
    CHECK(snapshot(store, s) == before);
    CHECK(info(store, s).pending_chunks == 0);
  }
  control.fail_read = -1;
  REQUIRE(start(store, s, {3, 8, 5}) == status::ok);
  REQUIRE(finish(store, s) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE(
    "a chunk that is imported finds a slot where a recall under way has taken all that are not in the set") {
  long_sequence source(9);
  fm::store_options o = small_options();
  o.transition_chunks = 2;
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(200, 4, 0, 1));
  const auto import_chunk = [&](fm::chunk_id id) { return import_from(source, id, store, s); };
  for (fm::chunk_id id = 0; id < 6; ++id) REQUIRE(import_chunk(id) == status::ok);
  s.tokens = 24;
  REQUIRE(recall(store, s, {0, 1}) == status::ok);
  REQUIRE(import_chunk(6) == status::ok);
  CHECK(resident_ids(store, s) == ids{0, 1, 5, 6});
  REQUIRE(start(store, s, {2, 3}) == status::ok);
  REQUIRE(info(store, s).pending_chunks == 2);
  CHECK(import_chunk(7) == status::ok);
  CHECK(resident_ids(store, s) == ids{0, 1, 5, 7});
  CHECK(info(store, s).pending_chunks == 0);
  CHECK(store.counters().recalls_cancelled == 1);
  for (fm::chunk_id id = 0; id < 8; ++id)
    CHECK(read_chunk(store, s, id) == read_chunk(source.store, source.s, id));
}

TEST_CASE("an imported chunk that a rollback reopens makes room like any other, shared with a fork or not") {
  const bool shared = GENERATE(false, true);
  CAPTURE(shared);
  long_sequence source(9);
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 3, 0, 1));
  REQUIRE(import_from(source, 0, store, s) == status::ok);
  REQUIRE(import_from(source, 1, store, s) == status::ok);
  if (shared) (void)store.fork(s.handle, tokens(200, 3, 0, 1));
  REQUIRE(store.truncate(s.handle, 7) == status::ok);
  s.tokens = 7;
  s.tags.assign(source.s.tags.begin(), source.s.tags.begin() + 7);
  for (const std::int64_t more : {1, 4, 4}) REQUIRE(grow(store, s, more, 3) == status::ok);
  CHECK(resident_ids(store, s) == ids{1, 2, 3});
  REQUIRE(import_from(source, 4, store, s) == status::ok);
  CHECK(resident_ids(store, s) == ids{2, 3, 4});
}
