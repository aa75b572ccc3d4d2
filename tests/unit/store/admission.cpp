// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using Catch::Matchers::Contains;
using fm::status;

namespace {

/// The smallest budget with which `use` is not refused, found by trying.
template <class Use>
std::size_t least_fast_bytes(fm::store_options o, const Use& use) {
  std::size_t low = 0, high = o.fast_bytes;
  while (high - low > 1) {
    o.fast_bytes = low + (high - low) / 2;
    try {
      fm::tiered_chunk_store store(o);
      use(store);
      high = o.fast_bytes;
    } catch (const fm::admission_error&) {
      low = o.fast_bytes;
    }
  }
  return high;
}

}  // namespace

TEST_CASE("a store refuses budgets in which not even one chunk fits and says what it needs") {
  fm::store_options o = small_options();
  const std::string chunk = std::to_string(fm::chunk_layout(o.geometry).chunk_bytes());
  o.fast_bytes = 300;
  CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::admission_error);
  CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains("300") && Contains("fast_bytes"));
  o = small_options();
  o.backing_bytes = fm::chunk_layout(o.geometry).chunk_bytes() - 1;
  CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::admission_error);
  CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains(chunk) && Contains("backing_bytes"));
}

TEST_CASE("a store refuses options that mean nothing and names them") {
  fm::store_options o = small_options();
  o.max_sequences = 0;
  CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains("max_sequences"));
  CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::argument_error);
  o = small_options();
  o.transition_chunks = -1;
  CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains("transition_chunks"));
  CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::argument_error);
  o = small_options();
  o.memory = {};
  CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains("memory"));
  CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::argument_error);
  CHECK_THROWS_AS(fm::tiered_chunk_store(small_options(), nullptr), fm::argument_error);
}

TEST_CASE("open refuses options that cannot work and names them") {
  fm::tiered_chunk_store store(small_options());
  const auto refused = [&](const fm::sequence_options& o, const std::string& field) {
    CAPTURE(field);
    REQUIRE_THROWS_AS(store.open(o), fm::argument_error);
    REQUIRE_THROWS_WITH(store.open(o), Contains(field));
    REQUIRE(store.usage().sequences == 0);
  };
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  refused(tokens(0), "max_tokens");
  refused(tokens(-5), "max_tokens");
  refused(tokens(most), "max_tokens");
  refused(tokens(100, -1), "max_resident_chunks");
  refused(tokens(100, 9, -1), "sink_chunks");
  refused(tokens(100, 9, 1, -1), "recent_chunks");
  refused(tokens(100, 4, 1, 2), "max_resident_chunks is 4; it must be at least 5");
  refused(tokens(100, 9, std::numeric_limits<int>::max(), std::numeric_limits<int>::max()),
          "max_resident_chunks");
  CHECK_NOTHROW(store.open(tokens(100, 5, 1, 2)));
  CHECK_NOTHROW(store.open(tokens(12, 3, 1, 2)));  // covers all three chunks
}

TEST_CASE("open checks both tiers before it takes anything, and the message carries the arithmetic") {
  fm::store_options o = small_options();
  const auto chunk = fm::chunk_layout(o.geometry).chunk_bytes();
  o.backing_bytes = 10 * chunk + 5;
  counting_memory memory;
  o.memory = memory.resource();
  fm::tiered_chunk_store store(o);
  const std::size_t in_use = memory.in_use;
  const std::int64_t calls = memory.calls;
  const fm::store_usage before = store.usage();

  SECTION("the backing store is too small") {
    CHECK_THROWS_AS(store.open(tokens(44, 5)), fm::admission_error);
    CHECK_THROWS_WITH(
        store.open(tokens(44, 5)),
        Contains("11 chunks x " + std::to_string(chunk) + " bytes = " + std::to_string(11 * chunk)) &&
            Contains("0 reserved of " + std::to_string(o.backing_bytes)) &&
            Contains("the backing store has no room"));
  }
  SECTION("the fast tier is too small") {
    o.backing_bytes = std::size_t{1} << 24;
    o.fast_bytes = 40 * (chunk + 64);
    fm::tiered_chunk_store narrow(o);
    CHECK_THROWS_AS(narrow.open(tokens(40 * 4 * 10, 40)), fm::admission_error);
    CHECK_THROWS_WITH(narrow.open(tokens(40 * 4 * 10, 40)),
                      Contains("80 new slots (40 of the quota, transition pool of 40 slots) x " +
                               std::to_string(chunk + 64) + " bytes") &&
                          Contains("in use of " + std::to_string(o.fast_bytes)) &&
                          Contains("the fast tier has no room"));
    CHECK(narrow.usage().sequences == 0);
    return;
  }
  SECTION("both are too small") { CHECK_THROWS_WITH(store.open(tokens(1 << 20)), Contains("neither tier")); }
  SECTION("sizes far beyond any memory") {
    const std::int64_t most = std::numeric_limits<std::int32_t>::max() * std::int64_t{4};
    CHECK_THROWS_AS(store.open(tokens(most)), fm::admission_error);
  }
  CHECK(memory.in_use == in_use);
  CHECK(memory.calls == calls);
  CHECK(store.usage().fast_bytes == before.fast_bytes);
  CHECK(store.usage().backing_reserved_bytes == 0);
}

TEST_CASE("the fast tier never takes more than its budget, and an admitted sequence needs no more later") {
  fm::store_options o = small_options();
  const std::int64_t quota = GENERATE(0, 5, 9);
  CAPTURE(quota);
  const auto use = [&](fm::tiered_chunk_store& store) {
    engine_sequence s = open(store, tokens(80, quota));
    REQUIRE(grow(store, s, 30, 1) == status::ok);
    REQUIRE(recall(store, s, {1, 2}) == status::ok);
    REQUIRE(recall(store, s, {}) == status::ok);
    REQUIRE(grow(store, s, 4, 2) == status::ok);
    REQUIRE(recall(store, s, {3, 4}) == status::ok);
    REQUIRE(all_chunks_right(store, s));
  };
  temporary_path path;
  o.backing_path = path.string();
  const std::size_t least = least_fast_bytes(o, use);
  counting_memory memory;
  o.memory = memory.resource();
  o.fast_bytes = least;
  fm::tiered_chunk_store store(o);
  use(store);
  CHECK(memory.peak == store.usage().fast_peak_bytes);
  CHECK(memory.peak == least);  // the budget is used to the last byte, and what is counted is what is taken
  CHECK(memory.in_use == store.usage().fast_bytes);
}

TEST_CASE("sequences that fit one by one fit together only as far as the budget goes") {
  fm::store_options o = small_options();
  const auto chunk = fm::chunk_layout(o.geometry).chunk_bytes();
  o.backing_bytes = 20 * chunk;
  fm::tiered_chunk_store store(o);
  const auto a = store.open(tokens(40, 5));
  CHECK(store.usage().backing_reserved_bytes == 10 * chunk);
  store.open(tokens(40, 5));
  CHECK_THROWS_AS(store.open(tokens(4)), fm::admission_error);
  REQUIRE(store.close(a) == status::ok);
  CHECK_NOTHROW(store.open(tokens(40, 5)));
  CHECK(store.usage().sequences == 2);
}

TEST_CASE("open refuses more than max_sequences sequences") {
  fm::store_options o = small_options();
  o.max_sequences = 2;
  fm::tiered_chunk_store store(o);
  store.open(tokens(8));
  store.open(tokens(8));
  CHECK_THROWS_AS(store.open(tokens(8)), fm::admission_error);
  CHECK_THROWS_WITH(store.open(tokens(8)), Contains("max_sequences"));
}

TEST_CASE("closing gives slots, keys and tables back, whatever order sequences come and go in") {
  fm::store_options o = small_options();
  counting_memory memory;
  temporary_path path;
  o.backing_path = path.string();
  o.memory = memory.resource();
  fm::tiered_chunk_store store(o);
  const std::size_t empty = memory.in_use;
  CHECK(empty == store.usage().fast_bytes);
  const auto alone = store.open(tokens(100, 6));
  const std::size_t with_one = memory.in_use;
  std::vector<fm::sequence_handle> more;
  for (int i = 0; i < 5; ++i) more.push_back(store.open(tokens(40 + 30 * i, i % 2 ? 0 : 5 + i)));
  CHECK(memory.in_use == store.usage().fast_bytes);
  for (const int i : {2, 0, 4, 1, 3}) REQUIRE(store.close(more[std::size_t(i)]) == status::ok);
  CHECK(memory.in_use == store.usage().fast_bytes);
  CHECK(memory.in_use == with_one);
  REQUIRE(store.close(alone) == status::ok);
  CHECK(memory.in_use == empty);
  CHECK(store.usage().backing_reserved_bytes == 0);
  CHECK(store.usage().fast_peak_bytes == memory.peak);
}

TEST_CASE("a memory resource that runs dry at any allocation leaves the store as it was") {
  fm::store_options o = small_options();
  counting_memory memory;
  o.memory = memory.resource();
  // On a file, so that slots are memory too.
  const temporary_path path;
  o.backing_path = path.string();
  std::int64_t needed;
  {
    fm::tiered_chunk_store store(o);
    needed = memory.calls;
  }
  for (std::int64_t n = 0; n < needed; ++n) {
    memory.allowed = n;
    CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::admission_error);
    CHECK(memory.in_use == 0);
  }
  memory.allowed = -1;
  fm::tiered_chunk_store store(o);
  engine_sequence first = open(store, tokens(40, 6));
  REQUIRE(grow(store, first, 33, 3) == status::ok);
  const std::size_t in_use = memory.in_use;
  const bool forking = GENERATE(false, true);
  bool succeeded = false;
  std::int64_t n = 0;
  for (; !succeeded; ++n) {
    REQUIRE(n < 200);
    memory.allowed = n;
    try {
      if (forking)
        store.fork(first.handle, tokens(200, 7));
      else
        store.open(tokens(200, 7));
      succeeded = true;
    } catch (const fm::admission_error&) {
      REQUIRE(memory.in_use == in_use);
      REQUIRE(store.usage().fast_bytes == in_use);
      REQUIRE(store.usage().sequences == 1);
    }
  }
  CHECK(n > 8);
  CHECK(all_chunks_right(store, first));
}

TEST_CASE("a resident whole sequence needs no transition pool") {
  fm::store_options o = small_options();
  fm::tiered_chunk_store store(o);
  const std::size_t empty = store.usage().fast_bytes;
  store.open(tokens(64));
  const std::size_t slot = fm::chunk_layout(o.geometry).chunk_bytes() + 64;
  CHECK(store.usage().fast_bytes - empty >= 16 * slot);
  CHECK(store.usage().fast_bytes - empty < 32 * slot);
}

TEST_CASE("handles of closed sequences are stale and invented ones unknown, in every call") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(40));
  const fm::sequence_handle old = s.handle;
  REQUIRE(store.close(old) == status::ok);
  engine_sequence next = open(store, tokens(40));
  REQUIRE(next.handle.index == old.index);
  REQUIRE(next.handle != old);
  REQUIRE(grow(store, next, 9, 4) == status::ok);

  const std::vector<std::pair<fm::sequence_handle, status>> handles = {
      {old, status::stale_sequence},
      {{old.index, old.generation + 7}, status::unknown_sequence},
      {{old.index, 0}, status::unknown_sequence},
      {{3, 1}, status::unknown_sequence},
      {{1000, 1}, status::unknown_sequence}};
  for (const auto& [handle, expected] : handles) {
    CAPTURE(handle.index, handle.generation);
    const snapshot before(store, next);
    const std::int64_t faults = store.counters().faults;
    const made_rows rows = make_rows(store.geometry(), {1}, 0);
    const fm::batch_item item{handle, 9, 1};
    fm::resident_set set;
    fm::index_key_pages pages;
    fm::sequence_info i;
    std::vector<std::byte> chunk(fm::chunk_layout(store.geometry()).chunk_bytes());
    const auto keys = make_keys(store.geometry(), 1, 1);
    CHECK(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == expected);
    CHECK(store.last_fault().sequence == handle.index);
    CHECK(store.last_fault().code == expected);
    CHECK(store.append_index_keys(handle, 0, 0, key_view(store.geometry(), keys, 1), host) == expected);
    CHECK(store.recall(handle, {}, nullptr, host) == expected);
    CHECK(store.truncate(handle, 0) == expected);
    CHECK(store.close(handle) == expected);
    CHECK(store.resident(handle, 0, &set) == expected);
    CHECK(store.index_keys(handle, 0, &pages) == expected);
    CHECK(store.info(handle, &i) == expected);
    CHECK(store.read_chunk(handle, 0, fm::view<std::byte, 1>(chunk.data(), chunk.size())) == expected);
    CHECK(store.append_chunk(handle, fm::view<const std::byte, 1>(chunk.data(), chunk.size()), 4) ==
          expected);
    CHECK_FALSE(store.is_open(handle));
    CHECK(store.is_open(next.handle));
    CHECK(store.counters().faults == faults + 10);
    try {
      store.fork(handle, tokens(40));
      FAIL("fork of a wrong handle");
    } catch (const fm::error& e) {
      CHECK(e.code() == expected);
    }
    CHECK(snapshot(store, next) == before);
    CHECK(all_chunks_right(store, next));
  }
  CHECK(store.counters().recalls_failed == std::int64_t(handles.size()));
}
