// SPDX-License-Identifier: MIT
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

/// A store on a file or in memory with a sequence of 20 complete chunks and an open one.
struct long_sequence {
  temporary_path path;
  fm::store_options options = small_options();
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;

  explicit long_sequence(std::int64_t quota, bool on_file = false, std::size_t fast_bytes = 1 << 20,
                         std::int64_t sequences = 8) {
    if (on_file) options.backing_path = path.string();
    options.fast_bytes = fast_bytes;
    options.backing_bytes = std::size_t(sequences) * 50 * fm::chunk_layout(options.geometry).chunk_bytes();
    store = std::make_unique<fm::tiered_chunk_store>(options);
    s = open(*store, tokens(200, quota));
    REQUIRE(grow(*store, s, 82, 11) == status::ok);
  }
};

}  // namespace

TEST_CASE("a prompt may be resident as a whole and the quota then fall to the budget") {
  long_sequence t(0, GENERATE(false, true));
  CHECK(resident(*t.store, t.s).count == 21);
  const std::size_t before = t.store->usage().fast_bytes;
  t.store->set_quota(t.s.handle, 9);
  CHECK(info(*t.store, t.s).options.max_resident_chunks == 9);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 13, 14, 15, 16, 17, 18, 19, 20});  // the oldest went
  CHECK(t.store->usage().fast_bytes < before);
  CHECK(all_chunks_right(*t.store, t.s));
  REQUIRE(recall(*t.store, t.s, {3, 4}) == status::ok);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 3, 4, 18, 19, 20});
  REQUIRE(decode(*t.store, t.s, 30, 7) == status::ok);
  CHECK(all_chunks_right(*t.store, t.s));
}

TEST_CASE("a smaller quota keeps what a recall has selected before what nobody has, the newest of each") {
  long_sequence t(14);
  REQUIRE(recall(*t.store, t.s, {2, 5, 7, 9}) == status::ok);
  // 18 to 21 become recent and are so no longer, and nobody has chosen them.
  for (int i = 0; i < 15; ++i) REQUIRE(grow(*t.store, t.s, 1, 3) == status::ok);
  REQUIRE(resident_ids(*t.store, t.s) == ids{0, 2, 5, 7, 9, 18, 19, 20, 21, 22, 23, 24});
  t.store->set_quota(t.s.handle, 9);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 2, 5, 7, 9, 21, 22, 23, 24});
  t.store->set_quota(t.s.handle, 7);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 5, 7, 9, 22, 23, 24});
  t.store->set_quota(t.s.handle, 5);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 9, 22, 23, 24});
  CHECK(all_chunks_right(*t.store, t.s));
}

TEST_CASE("a larger quota leaves more to be recalled, and 0 brings everything back") {
  long_sequence t(6, GENERATE(false, true));
  t.store->set_quota(t.s.handle, 12);
  fm::recall_report r;
  REQUIRE(recall(*t.store, t.s, {1, 2, 3, 4, 5, 6, 7, 8}, &r) == status::ok);
  CHECK(r.refused == 0);
  CHECK(resident(*t.store, t.s).count == 12);
  t.store->set_quota(t.s.handle, 0);
  CHECK(resident(*t.store, t.s).count == 21);
  CHECK(all_chunks_right(*t.store, t.s));
  REQUIRE(grow(*t.store, t.s, 40, 9) == status::ok);
  CHECK(resident(*t.store, t.s).count == 31);
  CHECK(all_chunks_right(*t.store, t.s));
}

TEST_CASE("a quota that the budget has no room for is refused with the arithmetic, and nothing changes") {
  const fm::store_options plain = small_options();
  const std::size_t enough = fm::store_bytes_for(plain, tokens(200, 9), 1).fast;
  long_sequence t(9, false, enough + 512, 1);
  REQUIRE(recall(*t.store, t.s, {3}) == status::ok);
  const snapshot before(*t.store, t.s);
  const std::int64_t more = GENERATE(0, 30);
  try {
    t.store->set_quota(t.s.handle, more);
    FAIL("admitted");
  } catch (const fm::admission_error& e) {
    CHECK(std::string(e.what()).find("quota of " + std::to_string(more == 0 ? 50 : more)) !=
          std::string::npos);
  }
  CHECK(info(*t.store, t.s).options.max_resident_chunks == 9);
  CHECK(resident_ids(*t.store, t.s) == before.ids);
  CHECK(t.store->usage().fast_bytes == before.usage.fast_bytes);
  CHECK(t.store->counters().admissions_refused == 1);
  REQUIRE(recall(*t.store, t.s, {3, 4}) == status::ok);
  CHECK(all_chunks_right(*t.store, t.s));
}

TEST_CASE("lowering one sequence's quota makes room for another one") {
  const fm::store_options plain = small_options();
  const std::size_t bytes = fm::store_bytes_for(plain, tokens(200, 0), 1).fast;
  long_sequence t(0, false, bytes + 8192, 2);
  CHECK_THROWS_AS(t.store->open(tokens(200, 9)), fm::admission_error);
  t.store->set_quota(t.s.handle, 9);
  engine_sequence other = open(*t.store, tokens(200, 9));
  REQUIRE(grow(*t.store, other, 100, 4) == status::ok);
  CHECK_THROWS_AS(t.store->set_quota(t.s.handle, 0), fm::admission_error);
  CHECK(all_chunks_right(*t.store, other));
  CHECK(all_chunks_right(*t.store, t.s));
}

TEST_CASE("quotas that cannot work are refused by name") {
  long_sequence t(9);
  CHECK_THROWS_AS(t.store->set_quota(t.s.handle, 4), fm::argument_error);
  CHECK_THROWS_AS(t.store->set_quota(t.s.handle, -1), fm::argument_error);
  CHECK_THROWS_AS(t.store->set_quota({}, 9), fm::error);
  const fm::batch_item item{t.s.handle, t.s.tokens, 1};
  const auto tags = new_tags(t.options.geometry, t.s, 1, 1);
  const made_rows rows = make_rows(t.options.geometry, tags, 0);
  REQUIRE(t.store->append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  CHECK_THROWS_AS(t.store->set_quota(t.s.handle, 12), fm::argument_error);
  REQUIRE(t.store->truncate(t.s.handle, t.s.tokens) == status::ok);
  const auto handle = t.s.handle;
  REQUIRE(t.store->close(handle) == status::ok);
  CHECK_THROWS_AS(t.store->set_quota(handle, 9), fm::error);
}

TEST_CASE("a chunk that cannot be read leaves the quota as it was") {
  failing_backing::switches control;
  const fm::store_options o = small_options();
  fm::tiered_chunk_store store(o, failing_ram(o, &control));
  engine_sequence s = open(store, tokens(200, 9));
  REQUIRE(grow(store, s, 82, 11) == status::ok);
  REQUIRE(recall(store, s, {3}) == status::ok);
  const auto before = resident_ids(store, s);
  control.fail_read = control.reads + 4;
  control.failing_reads = 100;
  CHECK_THROWS_AS(store.set_quota(s.handle, 0), fm::error);
  CHECK(info(store, s).options.max_resident_chunks == 9);
  CHECK(resident_ids(store, s) == before);
  control.fail_read = -1;
  REQUIRE(recall(store, s, {3, 4}) == status::ok);
  store.set_quota(s.handle, 0);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("quotas that change at random lose nothing") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  long_sequence t(9, seed % 2 == 0, 4 << 20);
  engine_sequence other = open(*t.store, tokens(200, 0));
  REQUIRE(grow(*t.store, other, 50, 4) == status::ok);
  for (int round = 0; round < 60; ++round) {
    engine_sequence& s = random() % 2 == 0 ? t.s : other;
    const std::int64_t complete = s.tokens / 4;
    switch (random() % 5) {
      case 0:  // append() is promised room in a quota of sink + 2 recent + 2 besides the one chunk that is selected
        t.store->set_quota(s.handle, random() % 3 == 0 ? 0 : 9 + std::int64_t(random() % 20));
        break;
      case 1:
        if (s.tokens < 190)
          REQUIRE(grow(*t.store, s, 1 + std::int64_t(random() % 9), random()) == status::ok);
        break;
      case 2:
        REQUIRE(recall(*t.store, s, {fm::chunk_id(random() % std::uint32_t(complete))}) == status::ok);
        break;
      case 3: {
        const std::int64_t back = std::min<std::int64_t>(s.tokens - 30, std::int64_t(random() % 12));
        REQUIRE(t.store->truncate(s.handle, s.tokens - back) == status::ok);
        s.tokens -= back;
        s.tags.resize(std::size_t(s.tokens));
        break;
      }
      default:
        REQUIRE(all_chunks_right(*t.store, s));
    }
    const auto i = info(*t.store, s);
    if (i.options.max_resident_chunks > 0) REQUIRE(i.resident_chunks <= i.options.max_resident_chunks);
    if (i.options.max_resident_chunks == 0) REQUIRE(i.resident_chunks == (s.tokens + 3) / 4);
  }
  REQUIRE(all_chunks_right(*t.store, t.s));
  REQUIRE(all_chunks_right(*t.store, other));
}
