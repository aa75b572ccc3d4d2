// SPDX-License-Identifier: MIT
#include <thread>

#include "src/store/slot_pool.hpp"
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

namespace {

/// The tag that the store keeps behind the bytes of a slot.
fm::detail::fast_slot& slot_of(const fm::tiered_chunk_store& store, const fm::resident_chunk& chunk) {
  const auto bytes = fm::chunk_layout(store.geometry()).chunk_bytes();
  return *reinterpret_cast<fm::detail::fast_slot*>(const_cast<std::byte*>(chunk.data) + bytes);
}

/// A store whose slots are copies, as those of any backing store that is not plain host memory.
struct copying_store {
  failing_backing::switches never;
  fm::tiered_chunk_store store{small_options(), failing_ram(small_options(), &never)};
};

}  // namespace

TEST_CASE("a slot whose owner or generation is not the chunk's is a counted stale_slot, never read") {
  copying_store copies;
  fm::tiered_chunk_store& store = copies.store;
  engine_sequence s = open(store, tokens(80, 6));
  REQUIRE(grow(store, s, 43, 1) == status::ok);
  const fm::resident_set set = resident(store, s);
  fm::detail::fast_slot& slot = slot_of(store, set.chunks[2]);
  const fm::detail::fast_slot right = slot;
  REQUIRE(right.data == set.chunks[2].data);
  const bool generation = GENERATE(false, true);
  if (generation)
    ++slot.generation;
  else
    slot.owner = slot_of(store, set.chunks[1]).owner;
  fm::resident_set out;
  out.count = -5;
  CHECK(store.resident(s.handle, 1, &out) == status::stale_slot);
  CHECK(out.count == -5);
  CHECK(store.last_fault().chunk == set.chunks[2].id);
  CHECK(store.last_fault().sequence == s.handle.index);
  CHECK(store.last_fault().layer == 1);
  std::vector<std::byte> bytes(fm::chunk_layout(store.geometry()).chunk_bytes());
  CHECK(store.read_chunk(s.handle, set.chunks[2].id, fm::view<std::byte, 1>(bytes.data(), bytes.size())) ==
        status::stale_slot);
  CHECK(store.counters().faults == 2);
  slot.owner = right.owner;
  slot.generation = right.generation;
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("appending to a slot that is not the open chunk's any more is refused") {
  copying_store copies;
  fm::tiered_chunk_store& store = copies.store;
  engine_sequence s = open(store, tokens(80, 6));
  REQUIRE(grow(store, s, 42, 1) == status::ok);
  fm::detail::fast_slot& slot = slot_of(store, resident(store, s).chunks[3]);
  ++slot.generation;
  CHECK(grow(store, s, 1, 2) == status::stale_slot);
  --slot.generation;
  CHECK(grow(store, s, 1, 2) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("a pool hands each slot to one record at a time, with a generation that never returns") {
  counting_memory memory;
  fm::detail::fast_memory fast(memory.resource(), 4096);
  fm::detail::slot_pool pool(fast, 128);
  REQUIRE(pool.grow_to(3));
  CHECK(fast.in_use() == 3 * (128 + 64));
  fm::detail::chunk_record records[4];
  for (int i = 0; i < 3; ++i) REQUIRE(pool.acquire(records[i]));
  CHECK(!pool.acquire(records[3]));
  CHECK(records[3].slot == nullptr);
  const auto old = records[1];
  pool.release(records[1]);
  CHECK(!holds(old));
  REQUIRE(pool.acquire(records[3]));
  CHECK(records[3].slot == old.slot);
  CHECK(!holds(old));
  CHECK(holds(records[3]));
  CHECK(records[3].generation > old.generation);
  pool.trim_to(0);
  CHECK(pool.total() == 3);  // all are in use
  for (auto& record : records) pool.release(record);
  pool.trim_to(1);
  CHECK(pool.total() == 1);
  CHECK(!pool.grow_to(1000));
  CHECK(fast.in_use() <= 4096);
  pool.trim_to(0);
  CHECK(memory.in_use == 0);
}

TEST_CASE("records keep their place in the backing store, and unused segments are given back") {
  counting_memory memory;
  fm::detail::fast_memory fast(memory.resource(), 1 << 20);
  fm::detail::record_pool pool(fast, 2, 41);
  const std::size_t announced = pool.bytes_to_grow_to(41);
  REQUIRE(pool.grow_to(41));
  CHECK(fast.in_use() == announced);
  std::vector<fm::detail::chunk_record*> taken;
  std::vector<bool> seen(41);
  while (fm::detail::chunk_record* record = pool.acquire()) {
    REQUIRE(record->backing >= 0);
    REQUIRE(record->backing < 41);
    REQUIRE(!seen[std::size_t(record->backing)]);
    seen[std::size_t(record->backing)] = true;
    taken.push_back(record);
  }
  CHECK(taken.size() == 41);
  pool.trim_to(0);
  CHECK(fast.in_use() == announced);
  // One segment stays in use; the records of the others are gone once they are trimmed.
  const auto kept = std::partition(taken.begin(), taken.end(), [](auto* r) { return r->backing / 16 != 1; });
  std::for_each(taken.begin(), kept, [&](auto* record) { pool.release(record); });
  pool.trim_to(0);
  CHECK(pool.available() == 0);
  REQUIRE(pool.grow_to(20));
  CHECK(pool.available() == 16);
  const std::size_t more = pool.bytes_to_grow_to(40), before = fast.in_use();
  REQUIRE(pool.grow_to(40));
  CHECK(fast.in_use() - before == more);
  std::for_each(kept, taken.end(), [&](auto* record) { pool.release(record); });
  pool.trim_to(0);
  CHECK(memory.in_use == 0);
}

#ifndef NDEBUG
TEST_CASE("freed slots are poisoned in debug builds") {
  copying_store copies;
  fm::tiered_chunk_store& store = copies.store;
  engine_sequence s = open(store, tokens(200, 6));
  REQUIRE(grow(store, s, 83, 1) == status::ok);
  REQUIRE(recall(store, s, {3}) == status::ok);
  const std::byte* const data = resident(store, s).chunks[1].data;
  REQUIRE(recall(store, s, {}) == status::ok);
  const auto bytes = fm::chunk_layout(store.geometry()).chunk_bytes();
  CHECK(std::all_of(data, data + bytes, [](std::byte b) { return b == std::byte{0xff}; }));
}
#endif

TEST_CASE("const calls may run beside each other, failing ones too") {
  copying_store copies;
  fm::tiered_chunk_store& store = copies.store;
  engine_sequence s = open(store, tokens(80, 6));
  REQUIRE(grow(store, s, 43, 1) == status::ok);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        fm::resident_set set;
        fm::sequence_info facts;
        std::vector<std::byte> chunk(fm::chunk_layout(store.geometry()).chunk_bytes());
        if (store.resident(s.handle, i % 2, &set) != status::ok || set.count != 4) ++wrong;
        if (store.resident(s.handle, 2, &set) != status::out_of_range) ++wrong;
        if (store.info(s.handle, &facts) != status::ok || facts.tokens != 43) ++wrong;
        if (store.last_fault().code != status::out_of_range) ++wrong;
        if (store.read_chunk(s.handle, i % 11, fm::view<std::byte, 1>(chunk.data(), chunk.size())) !=
            status::ok)
          ++wrong;
        if (chunk != expected_chunk(store.geometry(), s.tags, i % 11)) ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(store.counters().faults == 800);
}
