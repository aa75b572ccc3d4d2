// SPDX-License-Identifier: MIT
#include <atomic>
#include <cerrno>
#include <map>
#include <set>
#include <thread>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

/// A store with one sequence of 20 complete chunks and an open one over a medium that fails on demand.
struct world {
  failing_backing::switches control;
  fm::store_options options;
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;

  explicit world(std::int64_t quota = 9, fm::store_options o = small_options()) : options(std::move(o)) {
    control.verify = true;
    store = std::make_unique<fm::tiered_chunk_store>(options, failing_ram(options, &control));
    s = open(*store, tokens(400, quota));
    REQUIRE(grow(*store, s, 82, 11) == status::ok);
  }
  /// Every read from the n-th from now on fails, `count` of them, or returns a changed byte.
  void fail(std::int64_t n, std::int64_t count) {
    control.fail_read = control.reads + n;
    control.failing_reads = count;
  }
  void change(std::int64_t n, std::int64_t count) {
    control.flip_read = control.reads + n;
    control.failing_reads = count;
  }
  void heal() { control.fail_read = control.flip_read = -1; }
  ids bad(const engine_sequence& of) const {
    ids out(64);
    out.resize(std::size_t(store->bad_chunks(of.handle, fm::view<fm::chunk_id, 1>(out.data(), 64))));
    return out;
  }
};

}  // namespace

TEST_CASE("a recall leaves a corrupt chunk out, names and counts it, and brings the rest into force") {
  world w;
  const bool late = GENERATE(false, true);
  w.change(1, 2);  // 3 is read once, 5 twice
  fm::recall_report r;
  const ids wanted{3, 5, 7};
  if (late) {
    REQUIRE(w.store->start_recall(w.s.handle, fm::view<const fm::chunk_id, 1>(wanted.data(), 3), &r, host) ==
            status::ok);
    CHECK(r.unreadable == 1);
    REQUIRE(w.store->poll_recall(w.s.handle) == status::ok);
    REQUIRE(w.store->finish_recall(w.s.handle, fm::late_policy::keep, &r, host) == status::ok);
  } else {
    REQUIRE(recall(*w.store, w.s, wanted, &r) == status::ok);
  }
  CHECK(resident_ids(*w.store, w.s) == ids{0, 3, 7, 18, 19, 20});
  CHECK(r.selected == r.hits + r.recalled + r.refused);
  CHECK(r.recalled == 2);
  CHECK(r.refused == 1);
  CHECK(r.unreadable == 1);
  CHECK(r.bad == 1);
  CHECK(r.first_unreadable == 5);
  const fm::fault f = w.store->last_fault();
  CHECK(f.code == status::corrupt_chunk);
  CHECK(f.chunk == 5);
  CHECK(f.sequence == w.s.handle.index);
  CHECK(w.bad(w.s) == ids{5});
  CHECK(info(*w.store, w.s).bad_chunks == 1);
  const fm::store_counters c = w.store->counters();
  CHECK(c.chunks_unreadable == 1);
  CHECK(c.chunks_bad == 1);
  CHECK(c.recalls == 1);
  CHECK(c.recalls_failed == 0);
  CHECK(c.faults == 0);  // no call has failed
  CHECK(resident_bytes_right(*w.store, w.s));
  REQUIRE(grow(*w.store, w.s, 9, 12) == status::ok);
  w.heal();
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("a place that an unreadable chunk leaves goes to the next of the request") {
  world w(7);  // three places beside 0, 18, 19 and 20
  w.change(0, 2);
  fm::recall_report r;
  REQUIRE(recall(*w.store, w.s, {3, 5, 7, 9, 11}, &r) == status::ok);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 5, 7, 9, 18, 19, 20});
  CHECK(r.unreadable == 1);
  CHECK(r.refused == 2);
}

TEST_CASE("a chunk that the medium refuses is bad after three recalls, and good once it was read again") {
  world w;
  w.fail(0, 1000);
  for (int i = 1; i <= 4; ++i) {
    CAPTURE(i);
    fm::recall_report r;
    REQUIRE(recall(*w.store, w.s, {4}, &r) == status::ok);
    CHECK(r.unreadable == 1);
    CHECK(r.bad == (i >= 3 ? 1 : 0));
    CHECK(w.store->last_fault().code == status::io_error);
    CHECK(w.bad(w.s) == (i >= 3 ? ids{4} : ids{}));
  }
  CHECK(w.store->counters().chunks_bad == 1);
  const engine_sequence child{w.store->fork(w.s.handle, tokens(400, 9)), w.s.tags, w.s.tokens};
  CHECK(w.bad(child) == ids{4});  // the chunk is theirs together
  w.heal();
  REQUIRE(recall(*w.store, w.s, {4}) == status::ok);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 4, 18, 19, 20});
  CHECK(w.bad(w.s).empty());
  CHECK(w.bad(child).empty());
  CHECK(info(*w.store, w.s).bad_chunks == 0);
}

TEST_CASE("refusals count only while they come running") {
  world w;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 2; ++i) {
      w.fail(0, 1000);
      REQUIRE(recall(*w.store, w.s, {4}) == status::ok);
      CHECK(w.bad(w.s).empty());
    }
    w.heal();
    REQUIRE(recall(*w.store, w.s, {4}) == status::ok);
    REQUIRE(recall(*w.store, w.s, {}) == status::ok);
  }
}

TEST_CASE("a bad chunk that a rollback drops is forgotten with it, and its record starts anew") {
  world w;
  w.change(0, 2);
  REQUIRE(recall(*w.store, w.s, {12}) == status::ok);
  REQUIRE(w.bad(w.s) == ids{12});
  w.heal();
  const bool reopened = GENERATE(false, true);
  REQUIRE(w.store->truncate(w.s.handle, reopened ? 50 : 40) == status::ok);
  w.s.tokens = reopened ? 50 : 40;
  w.s.tags.resize(std::size_t(w.s.tokens));
  CHECK(w.bad(w.s).empty());
  REQUIRE(grow(*w.store, w.s, 42, 77) == status::ok);
  CHECK(w.bad(w.s).empty());
  CHECK(info(*w.store, w.s).bad_chunks == 0);
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("closing the sequences that have a bad chunk leaves none behind") {
  world w;
  w.change(0, 2);
  REQUIRE(recall(*w.store, w.s, {12}) == status::ok);
  w.heal();
  REQUIRE(w.store->close(w.s.handle) == status::ok);
  CHECK(w.store->bad_chunks(w.s.handle, {}) == 0);
  engine_sequence next = open(*w.store, tokens(400, 9));
  REQUIRE(grow(*w.store, next, 300, 5) == status::ok);
  CHECK(w.bad(next).empty());
}

TEST_CASE("decoding goes on although no recall ever succeeds, and what was selected stays") {
  world w(8);
  REQUIRE(recall(*w.store, w.s, {5, 9}) == status::ok);  // 0 5 9 18 19 20: two places are left
  for (int t = 0; t < 200; ++t) REQUIRE(grow(*w.store, w.s, 1, 100 + std::uint64_t(t)) == status::ok);
  const std::int64_t complete = info(*w.store, w.s).complete_chunks;
  const auto now = resident_ids(*w.store, w.s);
  CHECK(now.size() <= 8);
  CHECK(std::count(now.begin(), now.end(), 5) == 1);
  CHECK(std::count(now.begin(), now.end(), 9) == 1);
  for (std::int64_t id : {std::int64_t{0}, complete - 1, complete - 2})
    CHECK(std::count(now.begin(), now.end(), fm::chunk_id(id)) == 1);
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("where only selected chunks are left to make room, an append says that the quota is full") {
  world w(8);
  REQUIRE(recall(*w.store, w.s, {5, 9, 11, 13, 18, 19}) == status::ok);  // all eight places but 0's and 20's
  REQUIRE(grow(*w.store, w.s, 2, 1) == status::ok);                      // the open chunk is complete
  const snapshot before(*w.store, w.s);
  CHECK(grow(*w.store, w.s, 1, 2) == status::budget_exceeded);
  CHECK(snapshot(*w.store, w.s) == before);
  REQUIRE(recall(*w.store, w.s, {5, 9, 11, 18}) == status::ok);
  CHECK(grow(*w.store, w.s, 1, 2) == status::ok);
}

TEST_CASE("the open chunk's neighbours that a recall named stay selected when they are recent no more") {
  world w(10);
  REQUIRE(recall(*w.store, w.s, {18, 5}) == status::ok);  // 0 5 18 19 20
  for (int t = 0; t < 60; ++t) REQUIRE(grow(*w.store, w.s, 1, 100 + std::uint64_t(t)) == status::ok);
  const auto now = resident_ids(*w.store, w.s);
  CHECK(std::count(now.begin(), now.end(), 18) == 1);
  CHECK(std::count(now.begin(), now.end(), 19) == 0);
}

TEST_CASE("an append that fails has dropped no chunk and ended no recall, however short slots are") {
  // With a large transition pool nothing has to go before the append has succeeded; with the smallest one, or with many
  // sequences in the batch, slots of chunks that make room are used at once and filled again.
  const std::int64_t pool = GENERATE(0, 3);
  const int count = GENERATE(1, 4);
  fm::store_options o = small_options();
  o.transition_chunks = pool;
  failing_backing::switches control;
  control.verify = true;
  fm::tiered_chunk_store store(o, failing_ram(o, &control));
  std::vector<engine_sequence> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(open(store, tokens(200, 7)));
    for (int n : {40, 4, 4, 4}) REQUIRE(grow(store, all.back(), n, std::uint64_t(100 * i + n)) == status::ok);
  }
  const fm::chunk_id wanted = 3;
  const bool recalling = GENERATE(false, true);
  if (recalling)
    REQUIRE(store.start_recall(all[0].handle, fm::view<const fm::chunk_id, 1>(&wanted, 1), nullptr, host) ==
            status::ok);
  std::vector<snapshot> before;
  for (const auto& s : all) before.emplace_back(store, s);
  const std::int64_t pending = info(store, all[0]).pending_chunks;

  std::vector<fm::batch_item> items;
  std::vector<std::uint64_t> tags;
  for (const auto& s : all) {
    items.push_back({s.handle, s.tokens, 40});
    const auto more = new_tags(o.geometry, s, 40, 900 + s.handle.index);
    tags.insert(tags.end(), more.begin(), more.end());
  }
  const std::int64_t first_write = control.writes;
  int failed = 0;
  // Whichever of the writes of layer 0 fails.
  for (;; ++failed) {
    control.fail_write = control.writes + failed;
    const made_rows rows = make_rows(o.geometry, tags, 0);
    const status code =
        store.append(fm::batch(items.data(), items.size()), 0, rows.k_view, rows.v_view, host);
    if (code == status::ok) break;
    CAPTURE(failed, pool, count, recalling);
    REQUIRE(code == status::io_error);
    for (std::size_t i = 0; i < all.size(); ++i) {
      REQUIRE(snapshot(store, all[i]) == before[i]);
      REQUIRE(resident_bytes_right(store, all[i]));
    }
    REQUIRE(info(store, all[0]).pending_chunks == pending);
  }
  CHECK(failed > 4);
  CHECK(control.writes > first_write);
  control.fail_write = -1;
  const made_rows rows = make_rows(o.geometry, tags, 1);
  REQUIRE(store.append(fm::batch(items.data(), items.size()), 1, rows.k_view, rows.v_view, host) ==
          status::ok);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].tags.insert(all[i].tags.end(), tags.begin() + std::ptrdiff_t(40 * i),
                       tags.begin() + std::ptrdiff_t(40 * (i + 1)));
    all[i].tokens += 40;
    CHECK(all_chunks_right(store, all[i]));
    CHECK(resident_ids(store, all[i]).size() <= 7);
  }
}

TEST_CASE("behind a chunk's readable end there is nothing of another sequence when the store scrubs") {
  fm::store_options o = small_options();
  o.scrub = GENERATE(false, true);
  // Slots that are copies are used again at once, so that what was there can be seen; records in place may be fresh ones.
  const bool copies = o.scrub ? GENERATE(false, true) : true;
  const temporary_path path;
  if (copies) o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  const fm::kv_geometry& g = o.geometry;
  const fm::chunk_layout layout(g);
  const std::size_t bytes = layout.chunk_bytes();
  const auto fill = [&](engine_sequence& s, int count, std::uint64_t seed) {
    REQUIRE(grow(store, s, count, seed) == status::ok);
  };
  // Whether what is behind the first entries of the newest resident chunk is all zero.
  const auto clean = [&](const engine_sequence& s) {
    const fm::resident_set set = resident(store, s);
    const fm::resident_chunk& last = set.chunks[set.count - 1];
    std::vector<bool> readable(bytes, false);
    for (std::int32_t layer = 0; layer < g.layers; ++layer)
      for (std::int64_t e = 0; e < last.entries; ++e)
        for_each_part(g, layer, e, [&](std::size_t offset, std::size_t n) {
          std::fill_n(readable.begin() + std::ptrdiff_t(offset), n, true);
        });
    bool zero = true;
    for (std::size_t i = 0; i < bytes; ++i) zero = zero && (readable[i] || last.data[i] == std::byte{0});
    return zero;
  };
  engine_sequence a = open(store, tokens(200, 8));
  fill(a, 60, 1);
  REQUIRE(recall(store, a, {}) == status::ok);
  REQUIRE(store.close(a.handle) == status::ok);
  engine_sequence b = open(store, tokens(200, 8));
  fill(b, 1, 2);
  CHECK(clean(b) == o.scrub);
  // What a rollback leaves behind the end is the sequence's own, and does not come along to a fork.
  fill(b, 2, 3);
  REQUIRE(store.truncate(b.handle, 1) == status::ok);
  b.tokens = 1;
  b.tags.resize(1);
  const engine_sequence child{store.fork(b.handle, tokens(200, 8)), b.tags, 1};
  CHECK(clean(child) == o.scrub);
  CHECK(resident_bytes_right(store, child));
  // A chunk that only a pass made, and a kernel would write.
  const fm::batch_item item{b.handle, 1, 5};
  REQUIRE(store.begin_pass(fm::batch(&item, 1), host) == status::ok);
  const fm::resident_set set = resident(store, b);
  const std::byte* const fresh = set.chunks[set.count - 1].data;
  CHECK(std::all_of(fresh, fresh + bytes, [](std::byte x) { return x == std::byte{0}; }) == o.scrub);
}

TEST_CASE("every event has a running total, and tells who and why") {
  std::map<fm::store_event_kind, std::vector<fm::store_event>> heard;
  fm::store_options o = small_options();
  o.max_sequences = 2;
  o.events.context = &heard;
  o.events.notify = [](void* to, const fm::store_event& e) {
    (*static_cast<decltype(heard)*>(to))[e.kind].push_back(e);
  };
  world w(9, o);
  using kind = fm::store_event_kind;
  w.change(0, 1);
  REQUIRE(recall(*w.store, w.s, {3, 4}) == status::ok);
  w.change(0, 2);
  REQUIRE(recall(*w.store, w.s, {5}) == status::ok);
  CHECK(recall(*w.store, w.s, {77}) == status::out_of_range);
  w.heal();
  open(*w.store, tokens(40, 0));
  CHECK_THROWS_AS(w.store->open(tokens(40, 0)), fm::admission_error);
  CHECK_THROWS_AS(w.store->fork(w.s.handle, tokens(400, 9)), fm::admission_error);
  const fm::store_counters c = w.store->counters();
  CHECK(c.recalls == 2);
  CHECK(std::int64_t(heard[kind::recalled].size()) == c.recalls);
  CHECK(std::int64_t(heard[kind::recalled][0].bytes) == c.bytes_recalled);
  CHECK(heard[kind::recalled][0].sequence == w.s.handle.index);
  CHECK(c.read_retries == 2);
  CHECK(std::int64_t(heard[kind::read_retried].size()) == c.read_retries);
  CHECK(heard[kind::read_retried][0].why.chunk == 3);
  CHECK(c.chunks_unreadable == 1);
  CHECK(std::int64_t(heard[kind::chunk_unreadable].size()) == c.chunks_unreadable);
  CHECK(heard[kind::chunk_unreadable][0].why.chunk == 5);
  CHECK(heard[kind::chunk_unreadable][0].why.code == status::corrupt_chunk);
  CHECK(std::int64_t(heard[kind::chunk_bad].size()) == c.chunks_bad);
  CHECK(std::int64_t(heard[kind::recall_failed].size()) == c.recalls_failed);
  CHECK(heard[kind::recall_failed][0].why.code == status::out_of_range);
  CHECK(c.admissions_refused == 2);
  CHECK(std::int64_t(heard[kind::admission_refused].size()) == c.admissions_refused);
}

TEST_CASE("a handle of another store names nothing") {
  fm::tiered_chunk_store a(small_options()), b(small_options());
  engine_sequence x = open(a, tokens(100, 0)), y = open(b, tokens(100, 0));
  REQUIRE(grow(b, y, 10, 3) == status::ok);
  fm::resident_set set;
  CHECK(b.resident(x.handle, 0, &set) == status::unknown_sequence);
  CHECK(std::string(b.last_fault().what) == "handle of another store");
  CHECK_FALSE(b.is_open(x.handle));
  CHECK(b.truncate(x.handle, 0) == status::unknown_sequence);
  CHECK(b.close(x.handle) == status::unknown_sequence);
  CHECK_THROWS_AS(b.fork(x.handle, tokens(100, 0)), fm::error);
  CHECK(info(b, y).tokens == 10);
}

namespace {

/// Counts how often a read begins while another one is under way.
class watched final : public fm::backing_store {
 public:
  watched(std::unique_ptr<fm::backing_store> inner, bool concurrent)
      : inner_(std::move(inner)), concurrent_(concurrent) {}
  fm::status write(std::int64_t r, std::size_t at, const void* data, std::size_t n,
                   int* e) noexcept override {
    return inner_->write(r, at, data, n, e);
  }
  fm::status read(std::int64_t r, std::size_t at, void* data, std::size_t n, int* e) const noexcept override {
    if (inside_.fetch_add(1) > 0) met = true;
    const fm::status code = inner_->read(r, at, data, n, e);
    // A medium of several threads waits here for another one to come, as long as that takes.
    while (concurrent_ && !met) std::this_thread::yield();
    inside_.fetch_sub(1);
    return code;
  }
  bool needs_verification() const noexcept override { return true; }
  bool concurrent_reads() const noexcept override { return concurrent_; }
  mutable std::atomic<bool> met{false};

 private:
  std::unique_ptr<fm::backing_store> inner_;
  bool concurrent_;
  mutable std::atomic<int> inside_{0};
};

}  // namespace

TEST_CASE("const reads of several threads meet only in a medium that says that they may") {
  const bool concurrent = GENERATE(false, true);
  const fm::store_options o = small_options();
  const auto bytes = fm::chunk_layout(o.geometry).chunk_bytes();
  auto medium = std::make_unique<watched>(
      fm::make_ram_backing(std::int64_t(o.backing_bytes / bytes), bytes, fm::default_memory()), concurrent);
  watched& inside = *medium;
  fm::tiered_chunk_store store(o, std::move(medium));
  engine_sequence s = open(store, tokens(200, 8));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  std::atomic<int> wrong{0};
  const auto work = [&] {
    std::vector<std::byte> out(bytes);
    for (int i = 0; i < 2000; ++i)
      wrong += store.read_chunk(s.handle, fm::chunk_id(2 + i % 12),
                                fm::view<std::byte, 1>(out.data(), bytes)) != status::ok;
  };
  std::thread first(work), second(work);
  first.join();
  second.join();
  CHECK(wrong == 0);
  CHECK(inside.met == concurrent);
}
