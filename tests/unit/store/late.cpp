// SPDX-License-Identifier: MIT
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/late_tier.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

/// 20 complete chunks and an open one, in a store whose copies land late.
struct world {
  late_switches control;
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;

  explicit world(std::int64_t quota = 9, fm::store_options o = small_options()) {
    store = late_store(o, &control);
    s = open(*store, tokens(200, quota));
    REQUIRE(grow(*store, s, 82, 11) == status::ok);
  }
  status start(const engine_sequence& of, const ids& chunks, fm::recall_report* r = nullptr) {
    return store->start_recall(of.handle, fm::view<const fm::chunk_id, 1>(chunks.data(), chunks.size()), r,
                               host);
  }
  status finish(const engine_sequence& of, fm::late_policy late, fm::recall_report* r = nullptr) {
    return store->finish_recall(of.handle, late, r, host);
  }
};

const ids old_set{0, 18, 19, 20};

}  // namespace

TEST_CASE("the old set is in force until late copies have landed, and the new one is right when it is",
          "[late]") {
  world w;
  REQUIRE(w.start(w.s, {3, 5}) == status::ok);
  CHECK(info(*w.store, w.s).pending_chunks == 2);
  for (int i = 0; i < 3; ++i) {
    CHECK(w.store->poll_recall(w.s.handle) == status::pending);
    CHECK(w.finish(w.s, fm::late_policy::keep) == status::pending);
    REQUIRE(grow(*w.store, w.s, 1, 40 + std::uint64_t(i)) == status::ok);
    CHECK(resident_bytes_right(*w.store, w.s));
  }
  CHECK(w.store->counters().recalls_late == 3);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 18, 19, 20, 21});
  w.control.hold = false;
  REQUIRE(w.store->poll_recall(w.s.handle) == status::ok);
  fm::recall_report r;
  REQUIRE(w.finish(w.s, fm::late_policy::keep, &r) == status::ok);
  CHECK(r.recalled == 2);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 3, 5, 19, 20, 21});
  CHECK(all_chunks_right(*w.store, w.s));
  CHECK(w.store->counters().recalls_waited == 0);
}

TEST_CASE("who waits gets late copies, or is told that the deadline has passed and may come again",
          "[late]") {
  world w;
  REQUIRE(w.start(w.s, {3, 5}) == status::ok);
  w.control.time_out = true;
  CHECK(w.finish(w.s, fm::late_policy::wait) == status::timed_out);
  CHECK(resident_ids(*w.store, w.s) == old_set);
  CHECK(info(*w.store, w.s).pending_chunks == 2);
  w.control.time_out = false;
  REQUIRE(w.finish(w.s, fm::late_policy::wait) == status::ok);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 3, 5, 18, 19, 20});
  CHECK(all_chunks_right(*w.store, w.s));
  CHECK(w.store->counters().recalls_waited == 2);
  // recall() waits as well; at the deadline it gives up.
  w.control.time_out = true;
  CHECK(recall(*w.store, w.s, {7}) == status::timed_out);
  CHECK(info(*w.store, w.s).pending_chunks == 0);
  CHECK(resident_ids(*w.store, w.s) == ids{0, 3, 5, 18, 19, 20});
  w.control.time_out = false;
  REQUIRE(recall(*w.store, w.s, {7}) == status::ok);
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("late copies may be given up, and what they still bring harms nobody", "[late]") {
  world w;
  REQUIRE(w.start(w.s, {3, 5, 7}) == status::ok);
  const int way = GENERATE(0, 1, 2, 3);
  switch (way) {
    case 0:
      CHECK(w.finish(w.s, fm::late_policy::fail) == status::timed_out);
      break;
    case 1:
      CHECK(w.store->cancel_recall(w.s.handle) == status::ok);
      break;
    case 2:  // a rollback to before what was asked for
      REQUIRE(w.store->truncate(w.s.handle, 23) == status::ok);
      w.s.tokens = 23;
      w.s.tags.resize(23);
      break;
    default:
      REQUIRE(w.store->close(w.s.handle) == status::ok);
      w.s = open(*w.store, tokens(200, 9));
  }
  CHECK(info(*w.store, w.s).pending_chunks == 0);
  CHECK(w.store->counters().recalls_cancelled == 1);
  CHECK(w.store->poll_recall(w.s.handle) == status::ok);  // none is under way
  engine_sequence next = open(*w.store, tokens(200, 9));
  REQUIRE(grow(*w.store, next, 82, 500) == status::ok);
  REQUIRE(grow(*w.store, w.s, 20, 501) == status::ok);
  w.control.hold = false;
  REQUIRE(recall(*w.store, next, {2, 4, 6, 8}) == status::ok);
  CHECK(all_chunks_right(*w.store, next));
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("copies that fail leave the old set, and a recall that shared one of them goes on without it",
          "[late]") {
  world w;
  const engine_sequence child{w.store->fork(w.s.handle, tokens(200, 9)), w.s.tags, w.s.tokens};
  w.control.outcome = status::cuda_error;
  REQUIRE(w.start(w.s, {5, 6}) == status::ok);
  w.control.outcome = status::ok;
  REQUIRE(w.start(child, {5, 7}) == status::ok);  // 5 is on its way already
  w.control.hold = false;
  CHECK(w.finish(w.s, fm::late_policy::keep) == status::cuda_error);
  CHECK(w.store->last_fault().sequence == w.s.handle.index);
  CHECK(resident_ids(*w.store, w.s) == old_set);
  CHECK(info(*w.store, w.s).pending_chunks == 0);

  REQUIRE(w.store->poll_recall(child.handle) == status::ok);
  fm::recall_report r;
  REQUIRE(w.finish(child, fm::late_policy::keep, &r) == status::ok);
  CHECK(resident_ids(*w.store, child) == ids{0, 7, 18, 19, 20});
  CHECK(r.selected == r.hits + r.recalled + r.refused);
  CHECK(r.unreadable == 1);
  CHECK(r.first_unreadable == 5);
  CHECK(r.bad == 0);  // nothing is wrong with the chunk
  CHECK(info(*w.store, child).pending_chunks == 0);
  CHECK(all_chunks_right(*w.store, child));
  REQUIRE(recall(*w.store, child, {5, 6}) == status::ok);
  REQUIRE(recall(*w.store, w.s, {5, 6}) == status::ok);
  CHECK(all_chunks_right(*w.store, child));
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("a rollback while copies are late keeps the recall of chunks that stay, and the set is right",
          "[late]") {
  world w;
  REQUIRE(w.start(w.s, {3, 5}) == status::ok);
  REQUIRE(w.store->truncate(w.s.handle, 70) == status::ok);
  w.s.tokens = 70;
  w.s.tags.resize(70);
  REQUIRE(grow(*w.store, w.s, 9, 99) == status::ok);
  w.control.hold = false;
  REQUIRE(w.finish(w.s, fm::late_policy::keep) == status::ok);
  const ids now = resident_ids(*w.store, w.s);
  CHECK(std::count(now.begin(), now.end(), 3) == 1);
  CHECK(std::count(now.begin(), now.end(), 5) == 1);
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("whatever is late, fails or times out, no chunk is ever wrong and no slot is lost", "[late]") {
  const std::uint32_t seed = GENERATE(flashmemory_test::fresh_seeds(6));
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto below = [&](std::uint32_t n) { return random() % n; };
  fm::store_options o = small_options();
  o.transition_chunks = below(2) ? 0 : 5;
  late_switches control;
  const auto store = late_store(o, &control);
  std::vector<engine_sequence> all;
  for (int step = 0; step < 1500; ++step) {
    control.hold = below(3) != 0;
    control.time_out = below(4) == 0;
    control.outcome = below(6) == 0 ? status::cuda_error : status::ok;
    CAPTURE(step);
    if (all.size() < 2) {
      all.push_back(open(*store, tokens(200, 9)));
      continue;
    }
    const std::size_t at = below(std::uint32_t(all.size()));
    engine_sequence& s = all[at];
    ids wanted;
    for (std::int64_t c = 0; c < s.tokens / 4; ++c)
      if (below(5) == 0) wanted.push_back(fm::chunk_id(c));
    switch (below(9)) {
      case 0:
        REQUIRE(store->close(s.handle) == status::ok);
        all.erase(all.begin() + std::ptrdiff_t(at));
        continue;
      case 1:
        if (all.size() == 6) break;
        try {
          all.push_back({store->fork(s.handle, tokens(200, 9)), s.tags, s.tokens});
        } catch (const fm::error& e) {
          REQUIRE((e.code() == status::cuda_error || e.code() == status::timed_out));
        }
        break;
      case 2: {
        const auto to = std::int64_t(below(std::uint32_t(s.tokens + 1)));
        const status code = store->truncate(s.handle, to);
        if (code == status::ok) {
          s.tokens = to;
          s.tags.resize(std::size_t(to));
        } else {
          REQUIRE((code == status::cuda_error || code == status::timed_out));
        }
        break;
      }
      case 3:
      case 4: {
        const auto n = std::int64_t(1 + below(below(4) == 0 ? 30 : 3));
        if (s.tokens + n > 200) break;
        const status code = grow(*store, s, n, std::uint64_t(step));
        REQUIRE((code == status::ok || code == status::budget_exceeded));
        break;
      }
      case 5:
        (void)store->start_recall(s.handle, fm::view<const fm::chunk_id, 1>(wanted.data(), wanted.size()),
                                  nullptr, host);
        break;
      case 6:
        (void)store->finish_recall(s.handle, fm::late_policy(below(3)), nullptr, host);
        break;
      case 7:
        (void)recall(*store, s, wanted);
        break;
      default:
        (void)store->poll_recall(s.handle);
    }
    for (const engine_sequence& each : all) REQUIRE(resident_bytes_right(*store, each));
    const fm::store_counters c = store->counters();
    REQUIRE(c.selected == c.hits + c.recalled + c.refused);
  }
  control = {};
  control.hold = false;
  for (const engine_sequence& s : all) {
    REQUIRE(all_chunks_right(*store, s));
    REQUIRE(store->cancel_recall(s.handle) == status::ok);
    REQUIRE(info(*store, s).pending_chunks == 0);
  }
  for (engine_sequence& s : all) {  // every slot that the quotas promise can still be had
    ids some;
    for (std::int64_t c = 1; c < s.tokens / 4 - 2 && some.size() < 4; ++c) some.push_back(fm::chunk_id(c));
    REQUIRE(recall(*store, s, some) == status::ok);
    REQUIRE(all_chunks_right(*store, s));
  }
}
