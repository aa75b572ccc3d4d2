// SPDX-License-Identifier: MIT
#include "tests/cuda/store_device.hpp"

using namespace store_testing;
using fm::late_policy;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

/// 20 complete chunks and an open one; sink 0, recent 18 and 19, open 20.
struct long_sequence {
  explicit long_sequence(std::int64_t quota,
                         std::chrono::milliseconds deadline = std::chrono::milliseconds(5000)) {
    fm::cuda::context device;
    device.deadline = deadline;
    fm::store_options o = small_options();
    o.fast_bytes = std::size_t{4} << 20;
    store = make_device_store(o, &control, device);
    s = open(*store, tokens(200, quota));
    REQUIRE(grow(82, 11) == status::ok);
  }
  status grow(std::int64_t count, std::uint64_t seed) {
    return grow_on_device(*store, s, count, seed, ring, stream.ref());
  }
  status recall(const ids& list, fm::recall_report* r = nullptr) {
    return store->recall(s.handle, fm::view<const fm::chunk_id, 1>(list.data(), list.size()), r,
                         stream.ref());
  }
  status start(const ids& list) {
    return store->start_recall(s.handle, fm::view<const fm::chunk_id, 1>(list.data(), list.size()), nullptr,
                               stream.ref());
  }
  status finish(late_policy late = late_policy::wait) {
    return store->finish_recall(s.handle, late, nullptr, stream.ref());
  }
  transfer_switches control;
  device_stream stream;
  scratch_ring ring{std::size_t{4} << 20};
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;
};

}  // namespace

TEST_CASE("a copy to the device that is refused or lost leaves the old set, and the same call then succeeds",
          "[gpu]") {
  REQUIRE_GPU();
  for (const bool lost : {false, true})
    for (const bool overlapped : {false, true}) {
      CAPTURE(lost, overlapped);
      long_sequence t(9);
      REQUIRE(t.recall({4, 5}) == status::ok);
      const snapshot before(*t.store, t.s);
      (lost ? t.control.lose_load : t.control.fail_load) = t.control.loads;
      if (!overlapped) {
        CHECK(t.recall({7, 3, 9}) == status::cuda_error);
      } else if (!lost) {
        CHECK(t.start({7, 3, 9}) == status::cuda_error);
      } else {
        REQUIRE(t.start({7, 3, 9}) == status::ok);
        t.stream.wait();
        while (t.store->poll_recall(t.s.handle) == status::pending) std::this_thread::yield();
        CHECK(t.store->poll_recall(t.s.handle) == status::cuda_error);
        CHECK(t.finish() == status::cuda_error);
      }
      CHECK(t.store->last_fault().os_error == cudaErrorUnknown);
      CHECK(t.finish() == status::out_of_order);
      CHECK(snapshot(*t.store, t.s) == before);
      CHECK(info(*t.store, t.s).pending_chunks == 0);
      CHECK(all_device_chunks_right(*t.store, t.s));
      for (int again = 0; again < 3; ++again) {
        REQUIRE(t.start({7, 3, 9}) == status::ok);
        REQUIRE(t.finish() == status::ok);
        CHECK(resident_ids(*t.store, t.s) == ids{0, 3, 7, 9, 18, 19, 20});
        CHECK(all_device_chunks_right(*t.store, t.s));
        REQUIRE(t.recall({}) == status::ok);
      }
    }
}

TEST_CASE("a write-through that is refused leaves the pass as it was, and the same call then succeeds",
          "[gpu]") {
  REQUIRE_GPU();
  long_sequence t(9);
  REQUIRE(t.grow(1, 2) == status::ok);
  const fm::kv_geometry& g = t.store->geometry();
  const auto tags = new_tags(g, t.s, 1, 3);
  const fm::batch_item item{t.s.handle, t.s.tokens, 1};
  const made_rows first = make_rows(g, tags, 0), last = make_rows(g, tags, 1);
  REQUIRE(append_on_device(*t.store, fm::batch(&item, 1), 0, first.k_view, first.v_view, t.ring,
                           t.stream.ref()) == status::ok);
  t.control.fail_save = t.control.saves;
  CHECK(append_on_device(*t.store, fm::batch(&item, 1), 1, last.k_view, last.v_view, t.ring,
                         t.stream.ref()) == status::cuda_error);
  CHECK(info(*t.store, t.s).tokens == 83);
  CHECK(info(*t.store, t.s).complete_chunks == 20);
  REQUIRE(append_on_device(*t.store, fm::batch(&item, 1), 1, last.k_view, last.v_view, t.ring,
                           t.stream.ref()) == status::ok);
  t.s.tags.insert(t.s.tags.end(), tags.begin(), tags.end());
  t.s.tokens += 1;
  REQUIRE(t.grow(12, 4) == status::ok);
  REQUIRE(t.recall({}) == status::ok);
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("a late recall keeps the old set, waits or is given up, as the caller says, and is counted",
          "[gpu]") {
  REQUIRE_GPU();
  long_sequence t(9, std::chrono::milliseconds(50));
  REQUIRE(t.recall({4, 5}) == status::ok);
  t.stream.wait();
  const auto before = t.store->counters();
  const ids old_set = resident_ids(*t.store, t.s);
  t.control.door.close();
  t.control.hold_loads = true;
  REQUIRE(t.start({7, 3}) == status::ok);
  CHECK(t.finish(late_policy::keep) == status::pending);
  const auto begin = std::chrono::steady_clock::now();
  CHECK(t.finish(late_policy::wait) == status::timed_out);
  const auto passed = std::chrono::steady_clock::now() - begin;
  CHECK(passed >= std::chrono::milliseconds(50));
  CHECK(passed < std::chrono::milliseconds(1000));
  CHECK(resident_ids(*t.store, t.s) == old_set);
  CHECK(t.finish(late_policy::fail) == status::timed_out);
  CHECK(t.finish(late_policy::keep) == status::out_of_order);
  CHECK(resident_ids(*t.store, t.s) == old_set);
  CHECK(t.recall({8}) == status::timed_out);  // queues behind the copies that were given up
  CHECK(resident_ids(*t.store, t.s) == old_set);
  auto c = t.store->counters();
  CHECK(c.recalls_late == before.recalls_late + 3);
  CHECK(c.recalls_waited == before.recalls_waited + 2);
  CHECK(c.recalls_cancelled == 2);
  CHECK(c.recalls_failed == 4);
  t.control.door.open();
  t.control.hold_loads = false;
  REQUIRE(t.recall({8, 7}) == status::ok);
  CHECK(resident_ids(*t.store, t.s) == ids{0, 7, 8, 18, 19, 20});
  CHECK(all_device_chunks_right(*t.store, t.s));
  c = t.store->counters();
  CHECK(c.selected == c.hits + c.recalled + c.refused);
}

TEST_CASE(
    "a recall whose chunks another sequence's recall is bringing waits for those copies, and fails with them",
    "[gpu]") {
  REQUIRE_GPU();
  for (const bool lost : {false, true}) {
    CAPTURE(lost);
    long_sequence t(9);
    engine_sequence child = t.s;
    child.handle = t.store->fork(t.s.handle, tokens(200, 9));
    REQUIRE(t.recall({}) == status::ok);
    t.stream.wait();
    t.control.door.close();
    t.control.hold_loads = true;
    if (lost) t.control.lose_load = t.control.loads;
    REQUIRE(t.start({7, 3}) == status::ok);
    t.control.hold_loads = false;
    const fm::chunk_id both[] = {7};
    REQUIRE(t.store->start_recall(child.handle, fm::view<const fm::chunk_id, 1>(both, 1), nullptr,
                                  t.stream.ref()) == status::ok);
    CHECK(t.store->poll_recall(child.handle) == status::pending);
    REQUIRE(t.store->cancel_recall(t.s.handle) == status::ok);  // the child still needs the copy
    CHECK(t.store->poll_recall(child.handle) == status::pending);
    t.control.door.open();
    const status end = t.store->finish_recall(child.handle, late_policy::wait, nullptr, t.stream.ref());
    CHECK(end == (lost ? status::cuda_error : status::ok));
    CHECK(all_device_chunks_right(*t.store, child));
    const status again =
        t.store->recall(child.handle, fm::view<const fm::chunk_id, 1>(both, 1), nullptr, t.stream.ref());
    CHECK(again == status::ok);
    CHECK(resident_ids(*t.store, child) == ids{0, 7, 18, 19, 20});
    CHECK(all_device_chunks_right(*t.store, child));
    CHECK(all_device_chunks_right(*t.store, t.s));
  }
}

TEST_CASE("a file that fails or rots under a store on the device is found as on the host", "[gpu]") {
  REQUIRE_GPU();
  failing_backing::switches control;
  control.verify = true;
  fm::store_options o = small_options();
  o.fast_bytes = std::size_t{4} << 20;
  auto store = make_device_store(o, nullptr, {}, failing_ram(o, &control));
  device_stream stream;
  scratch_ring ring(std::size_t{1} << 20);
  engine_sequence s = open(*store, tokens(200, 9));
  REQUIRE(grow_on_device(*store, s, 82, 1, ring, stream.ref()) == status::ok);
  const ids wanted{3, 8, 5};
  const fm::view<const fm::chunk_id, 1> list(wanted.data(), wanted.size());
  control.failing_reads = 2;  // the read and its repetition
  for (int nth = 0; nth < 3; ++nth) {
    fm::recall_report r;
    control.fail_read = control.reads + nth;
    CHECK(store->start_recall(s.handle, list, &r, stream.ref()) == status::ok);
    CHECK(r.first_unreadable == wanted[std::size_t(nth)]);
    CHECK(store->last_fault().code == status::io_error);
    CHECK(store->last_fault().chunk == wanted[std::size_t(nth)]);
    CHECK(store->cancel_recall(s.handle) == status::ok);
    control.fail_read = -1;
    control.flip_read = control.reads + nth;
    CHECK(store->recall(s.handle, list, &r, stream.ref()) == status::ok);
    CHECK(r.unreadable == 1);
    CHECK(r.bad == 1);
    CHECK(store->last_fault().code == status::corrupt_chunk);
    CHECK(store->last_fault().chunk == wanted[std::size_t(nth)]);
    control.flip_read = -1;
    REQUIRE(store->recall(s.handle, {}, nullptr, stream.ref()) == status::ok);
  }
  REQUIRE(store->recall(s.handle, list, nullptr, stream.ref()) == status::ok);
  CHECK(all_device_chunks_right(*store, s));
}

TEST_CASE("a store on the device refuses streams, options and devices that cannot work, and names them",
          "[gpu]") {
  REQUIRE_GPU();
  const auto o = [] {
    auto options = small_options();
    options.fast_bytes = std::size_t{4} << 20;
    return options;
  }();
  const auto throws = [&](auto change, const char* named) {
    fm::cuda::context device;
    fm::cuda::device_store_options how;
    change(device, how);
    CHECK_THROWS_WITH(fm::cuda::make_store(o, device, how), Catch::Matchers::Contains(named));
  };
  throws([](auto& d, auto&) { d.ordinal = 99; }, "context::ordinal is 99");
  throws([](auto& d, auto&) { d.num_sms = -1; }, "num_sms");
  throws([](auto&, auto& h) { h.recall_sms = 0; }, "recall_sms");
  throws([](auto&, auto& h) { h.touch_threads = 0; }, "touch_threads");
  throws([](auto&, auto& h) { h.initial_slots = -1; }, "initial_slots");
  throws([](auto& d, auto&) { d.deadline = std::chrono::milliseconds(0); }, "deadline");
  throws([](auto&, auto& h) { h.pinned_slab_bytes = 0; }, "pinned_slab_bytes");
  throws([](auto&, auto& h) { h.initial_slots = 1 << 20; }, "initial slots");
  throws([](auto& d,
            auto&) { d.memory.allocate = [](void*, std::size_t, std::size_t) -> void* { return nullptr; }; },
         "context::memory");
  auto broken = o;
  broken.geometry.layers = 0;
  CHECK_THROWS_AS(fm::cuda::make_store(broken), fm::argument_error);

  const auto store = fm::cuda::make_store(o);
  engine_sequence s = open(*store, tokens(40, 0));
  CHECK(grow(*store, s, 3, 1) == status::unsupported);
  CHECK(recall(*store, s, {}) == status::unsupported);
  CHECK(info(*store, s).tokens == 0);
}

TEST_CASE("slots of one block lie at base + stride * number, and every byte is counted", "[gpu]") {
  REQUIRE_GPU();
  auto o = small_options();
  o.fast_bytes = std::size_t{4} << 20;
  fm::cuda::device_store_options how;
  how.initial_slots = 36;
  {
    const auto store = fm::cuda::make_store(o, {}, how);
    const fm::cuda::slot_range range = fm::cuda::slots_of(*store);
    REQUIRE(range.count == 36);
    CHECK(range.chunk_bytes == fm::chunk_layout(o.geometry).chunk_bytes());
    const std::size_t empty = store->usage().fast_bytes;
    CHECK(empty >= 36 * range.chunk_bytes);
    device_stream stream;
    scratch_ring ring(std::size_t{1} << 20);
    engine_sequence a = open(*store, tokens(200, 12)), b = open(*store, tokens(200, 12));
    REQUIRE(grow_on_device(*store, a, 90, 1, ring, stream.ref()) == status::ok);
    REQUIRE(grow_on_device(*store, b, 90, 2, ring, stream.ref()) == status::ok);
    const ids wanted{3, 8, 5, 9};
    REQUIRE(store->recall(a.handle, fm::view<const fm::chunk_id, 1>(wanted.data(), wanted.size()), nullptr,
                          stream.ref()) == status::ok);
    for (const engine_sequence* s : {&a, &b}) {
      const auto set = resident(*store, *s);
      for (std::int64_t i = 0; i < set.count; ++i) {
        const std::ptrdiff_t at = set.chunks[i].data - range.data;
        CHECK(at >= 0);
        CHECK(at % std::ptrdiff_t(range.chunk_bytes) == 0);
        CHECK(at / std::ptrdiff_t(range.chunk_bytes) < range.count);
      }
    }
    // 12 + 12 slots of the quotas and 12 to exchange through: the block had them all.
    const auto i = info(*store, a);
    CHECK(store->usage().fast_bytes - empty <= 2 * (i.table_bytes + i.index_key_bytes) + 32768);
    CHECK(all_device_chunks_right(*store, a));
    CHECK(all_device_chunks_right(*store, b));
  }
}

TEST_CASE("memory comes from the engine's resources, all of it, and goes back there", "[gpu]") {
  REQUIRE_GPU();
  struct pool {
    std::map<void*, std::size_t> blocks;
    bool mismatched = false;
    bool on_device = false;
    fm::memory_resource resource() {
      fm::memory_resource r;
      r.context = this;
      r.allocate = [](void* self, std::size_t bytes, std::size_t) -> void* {
        auto& p = *static_cast<pool*>(self);
        void* block = nullptr;
        must(p.on_device ? cudaMalloc(&block, bytes) : cudaHostAlloc(&block, bytes, cudaHostAllocMapped));
        p.blocks[block] = bytes;
        return block;
      };
      r.deallocate = [](void* self, void* block, std::size_t bytes, std::size_t) {
        auto& p = *static_cast<pool*>(self);
        const auto at = p.blocks.find(block);
        p.mismatched = p.mismatched || at == p.blocks.end() || at->second != bytes;
        p.blocks.erase(block);
        must(p.on_device ? cudaFree(block) : cudaFreeHost(block));
      };
      return r;
    }
    std::size_t bytes() const {
      std::size_t sum = 0;
      for (const auto& [block, size] : blocks) sum += size;
      return sum;
    }
  };
  pool device_pool, pinned_pool;
  device_pool.on_device = true;
  counting_memory tables;
  auto o = small_options();
  o.fast_bytes = std::size_t{4} << 20;
  o.memory = tables.resource();
  fm::cuda::context device;
  device.memory = device_pool.resource();
  device.pinned = pinned_pool.resource();
  fm::cuda::device_store_options how;
  how.pinned_slab_bytes = 4096;
  {
    const auto store = fm::cuda::make_store(o, device, how);
    device_stream stream;
    scratch_ring ring(std::size_t{1} << 20);
    for (int round = 0; round < 20; ++round) {
      engine_sequence s = open(*store, tokens(100 + round, 8));
      REQUIRE(grow_on_device(*store, s, 90, std::uint64_t(round), ring, stream.ref()) == status::ok);
      CHECK(store->usage().fast_bytes == device_pool.bytes() + tables.in_use);
      CHECK(pinned_pool.bytes() <= o.backing_bytes + 64 * pinned_pool.blocks.size());
      CHECK(all_device_chunks_right(*store, s));
      REQUIRE(store->close(s.handle) == status::ok);
    }
    stream.wait();
  }
  CHECK(device_pool.blocks.empty());
  CHECK(pinned_pool.blocks.empty());
  CHECK(tables.blocks.empty());
  CHECK(!device_pool.mismatched);
  CHECK(!pinned_pool.mismatched);
  CHECK(!tables.mismatched);
}
