// SPDX-License-Identifier: MIT
#include "tests/cuda/store_device.hpp"

using namespace store_testing;
using fm::late_policy;
using fm::status;

// Each of these holds one stream up at a gate while the store does something that must wait for it. Without the
// order that the tier promises, wrong bytes are found every time, not now and then.

namespace {

using ids = std::vector<fm::chunk_id>;

/// A sequence of 20 complete chunks and an open one, quota 12; everything has been used once, so that nothing is
/// loaded or allocated while a gate is closed.
struct stage {
  explicit stage(fm::cuda::recall_method method = fm::cuda::recall_method::kernel) {
    fm::kv_geometry g = small_geometry();
    g.kv_heads = 4;
    g.key_dim = g.value_dim = 64;
    g.entries_per_chunk = 16;
    fm::store_options o = small_options(g);
    o.fast_bytes = o.backing_bytes = std::size_t{32} << 20;
    fm::cuda::context device;
    fm::cuda::device_store_options how;
    how.on_demand = method;
    device.deadline = std::chrono::milliseconds(20000);
    store = make_device_store(o, &control, device, nullptr, how);
    bytes = fm::chunk_layout(g).chunk_bytes();
    probe = device_array<std::byte>(bytes);
    s = open(*store, tokens(1600, 12));
    REQUIRE(grow(326, 1) == status::ok);
    REQUIRE(recall({4, 5}) == status::ok);
    REQUIRE(start({4, 6}) == status::ok);
    REQUIRE(finish(late_policy::wait) == status::ok);
    REQUIRE(recall({}) == status::ok);
    before = store->counters();
    must(cudaMemcpyAsync(probe.data(), resident(*store, s).chunks[0].data, bytes, cudaMemcpyDeviceToDevice,
                         compute.get()));
    compute.wait();
  }

  status grow(std::int64_t count, std::uint64_t seed) {
    return grow_on_device(*store, s, count, seed, ring, compute.ref());
  }
  status recall(const ids& list) {
    return store->recall(s.handle, fm::view<const fm::chunk_id, 1>(list.data(), list.size()), nullptr,
                         compute.ref());
  }
  status start(const ids& list) {
    return store->start_recall(s.handle, fm::view<const fm::chunk_id, 1>(list.data(), list.size()), nullptr,
                               compute.ref());
  }
  status finish(late_policy late) { return store->finish_recall(s.handle, late, nullptr, compute.ref()); }
  const std::byte* slot_of(fm::chunk_id id) const {
    const auto set = resident(*store, s);
    for (std::int64_t i = 0; i < set.count; ++i)
      if (set.chunks[i].id == id) return set.chunks[i].data;
    return nullptr;
  }
  std::vector<std::byte> expected(fm::chunk_id id) const {
    return expected_chunk(store->geometry(), s.tags, id);
  }
  bool finished() const { return *static_cast<const volatile unsigned char*>(done.get()) != 0; }
  static void* pinned_byte() {
    void* byte = nullptr;
    must(cudaHostAlloc(&byte, 1, cudaHostAllocMapped));
    *static_cast<unsigned char*>(byte) = 0;
    return byte;
  }
  static void linger() { std::this_thread::sleep_for(std::chrono::milliseconds(30)); }

  transfer_switches control;
  device_stream compute;
  scratch_ring ring{std::size_t{8} << 20};
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;
  device_array<std::byte> probe;
  std::unique_ptr<void, cudaError_t (*)(void*)> done{pinned_byte(), cudaFreeHost};
  std::size_t bytes = 0;
  fm::store_counters before;
};

}  // namespace

TEST_CASE("a copy into a slot waits for the readers of what lay there", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  REQUIRE(t.recall({3}) == status::ok);
  const std::byte* const slot = t.slot_of(3);
  gate reader;
  reader.close();
  reader.hold(t.compute.get());
  must(cudaMemcpyAsync(t.probe.data(), slot, t.bytes, cudaMemcpyDeviceToDevice, t.compute.get()));
  REQUIRE(t.recall({}) == status::ok);  // nothing to copy, so 3 goes at once
  REQUIRE(t.start({7}) == status::ok);
  stage::linger();
  CHECK(t.store->poll_recall(t.s.handle) == status::pending);
  reader.open();
  REQUIRE(t.finish(late_policy::wait) == status::ok);
  REQUIRE(t.slot_of(7) == slot);  // else this test shows nothing
  t.compute.wait();
  CHECK(t.probe.get() == t.expected(3));
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("recall() waits for the readers of what lay there, on any stream and by any method", "[gpu]") {
  REQUIRE_GPU();
  using fm::cuda::recall_method;
  const auto method = GENERATE(recall_method::automatic, recall_method::kernel, recall_method::copy_engine);
  const bool on_default_stream = GENERATE(false, true);
  CAPTURE(int(method), on_default_stream);
  stage t(method);
  const cudaStream_t stream = on_default_stream ? cudaStreamLegacy : t.compute.get();
  const auto recall = [&](const ids& list) {
    return t.store->recall(t.s.handle, fm::view<const fm::chunk_id, 1>(list.data(), list.size()), nullptr,
                           fm::stream_ref(stream));
  };
  const ids old = {3, 2, 9, 8, 11, 4, 5, 6, 7, 10}, next = {12, 13, 14, 15, 16, 17, 0, 1};
  REQUIRE(recall(old) == status::ok);
  const std::byte* const slot = t.slot_of(3);
  gate reader;
  reader.close();
  reader.hold(stream);
  must(cudaMemcpyAsync(t.probe.data(), slot, t.bytes, cudaMemcpyDeviceToDevice, stream));
  REQUIRE(recall({}) == status::ok);
  std::thread opener([&] {
    stage::linger();
    reader.open();
  });
  const status code = recall(next);
  opener.join();
  REQUIRE(code == status::ok);
  bool reused = false;  // else this test shows nothing
  for (const fm::chunk_id id : next) reused = reused || t.slot_of(id) == slot;
  CHECK(reused);
  must(cudaStreamSynchronize(stream));
  CHECK(t.probe.get() == t.expected(3));
  CHECK(all_device_chunks_right(*t.store, t.s));
  REQUIRE(t.start({3, 12}) == status::ok);  // by way of the lane again, after the copies on the stream
  REQUIRE(t.finish(late_policy::wait) == status::ok);
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("a chunk is written through only when its rows are there", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  REQUIRE(t.grow(9, 2) == status::ok);  // one row of chunk 20 is missing
  t.compute.wait();
  gate writer;
  writer.close();
  writer.hold(t.compute.get());
  REQUIRE(t.grow(1, 3) == status::ok);
  stage::linger();
  writer.open();
  REQUIRE(t.grow(48, 4) == status::ok);
  REQUIRE(t.recall({}) == status::ok);
  REQUIRE(t.slot_of(20) == nullptr);
  CHECK(read_chunk(*t.store, t.s, 20) == t.expected(20));
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("whole chunks of a prompt are written through only when their rows are there", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  gate writer;
  writer.close();
  writer.hold(t.compute.get());
  REQUIRE(t.grow(16 * 40, 3) == status::ok);
  stage::linger();
  writer.open();
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("pieces of whole chunks wait for the buffer they pass through", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  t.control.door.close();
  t.control.hold_saves = true;
  REQUIRE(t.grow(16 * 40, 3) == status::ok);  // 37 pieces a layer, and 64 buffers
  t.control.hold_saves = false;
  stage::linger();
  CHECK(cudaStreamQuery(t.compute.get()) == cudaErrorNotReady);
  t.control.door.open();
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("rows wait for the write-through of what lay in their slot", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  REQUIRE(t.grow(9, 2) == status::ok);
  t.compute.wait();
  const std::byte* const slot = t.slot_of(20);
  t.control.door.close();
  t.control.hold_saves = true;
  REQUIRE(t.grow(1, 3) == status::ok);  // chunk 20 is complete; its copy to the host is held up
  REQUIRE(t.store->truncate(t.s.handle, 330) == status::ok);  // and it is open again, in the same slot
  t.control.hold_saves = false;
  t.s.tokens = 330;
  t.s.tags.resize(330);
  REQUIRE(t.slot_of(20) == slot);
  REQUIRE(t.grow(2, 9) == status::ok);
  stage::linger();
  CHECK(cudaStreamQuery(t.compute.get()) == cudaErrorNotReady);
  t.control.door.open();
  t.compute.wait();
  REQUIRE(t.grow(10, 10) == status::ok);
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("rows of a new chunk wait for the write-through of the chunk that had its slot", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  REQUIRE(t.grow(9, 2) == status::ok);
  t.compute.wait();
  const std::byte* const slot = t.slot_of(20);
  engine_sequence other = t.s;
  other.handle = t.store->fork(t.s.handle, tokens(1600, 12));
  t.control.door.close();
  t.control.hold_saves = true;
  REQUIRE(t.grow(1, 3) == status::ok);
  t.control.hold_saves = false;
  REQUIRE(t.store->truncate(t.s.handle, 0) == status::ok);  // every slot of the sequence is free
  t.s.tokens = 0;
  t.s.tags.clear();
  // The newest free slot is taken first; rows go into one after another until it is that one.
  bool used = false;
  for (std::uint64_t i = 0; i < 12 && !used; ++i) {
    REQUIRE(t.grow(i == 0 ? 1 : 16, 20 + i) == status::ok);
    const auto set = resident(*t.store, t.s);
    for (std::int64_t c = 0; c < set.count; ++c) used = used || set.chunks[c].data == slot;
    if (t.s.tokens > 100) break;
  }
  REQUIRE(used);
  stage::linger();
  CHECK(cudaStreamQuery(t.compute.get()) == cudaErrorNotReady);
  t.control.door.open();
  t.compute.wait();
  CHECK(all_device_chunks_right(*t.store, t.s));
  CHECK(all_device_chunks_right(*t.store, other));
}

TEST_CASE("a chunk is not read back before it has been written", "[gpu]") {
  REQUIRE_GPU();
  for (const auto method : {fm::cuda::recall_method::kernel, fm::cuda::recall_method::copy_engine}) {
    stage t(method);
    t.control.door.close();
    t.control.hold_saves = true;
    REQUIRE(t.grow(58, 2) == status::ok);  // completes 20 to 23
    t.control.hold_saves = false;
    REQUIRE(t.recall({}) == status::ok);
    REQUIRE(t.slot_of(20) == nullptr);
    REQUIRE(t.start({20, 21}) == status::ok);
    stage::linger();
    CHECK(t.store->poll_recall(t.s.handle) == status::pending);
    CHECK(t.finish(late_policy::keep) == status::pending);
    std::thread opens([&] {  // while finish() waits
      stage::linger();
      t.control.door.open();
    });
    const status finished = t.finish(late_policy::wait);
    opens.join();
    REQUIRE(finished == status::ok);
    t.compute.wait();
    CHECK(all_device_chunks_right(*t.store, t.s));
    CHECK(t.store->counters().recalls_late == t.before.recalls_late + 2);
    CHECK(t.store->counters().recalls_waited == t.before.recalls_waited + 1);
  }
}

TEST_CASE("rows wait for a copy that was given up but is still under way into their slot", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  t.control.door.close();
  t.control.hold_loads = true;
  REQUIRE(t.start({7}) == status::ok);
  t.control.hold_loads = false;
  REQUIRE(t.store->cancel_recall(t.s.handle) == status::ok);
  REQUIRE(t.grow(11, 5) == status::ok);  // completes 20; 21 gets the slot that the copy writes
  stage::linger();
  CHECK(cudaStreamQuery(t.compute.get()) == cudaErrorNotReady);
  t.control.door.open();
  t.compute.wait();
  CHECK(all_device_chunks_right(*t.store, t.s));
  CHECK(t.store->counters().recalls_cancelled == 1);
}

TEST_CASE("decoding goes on beside a recall and never waits for it", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  t.control.door.close();
  t.control.hold_loads = true;
  REQUIRE(t.start({2, 7, 3}) == status::ok);
  t.control.hold_loads = false;
  for (std::uint64_t i = 0; i < 40; ++i) {
    REQUIRE(t.grow(1, 100 + i) == status::ok);
    REQUIRE(t.store->poll_recall(t.s.handle) == status::pending);
  }
  // The copies are still at the gate, and all rows are written. Seen by what the stream writes last, not by asking for
  // its state: the answer that it is done makes compute-sanitizer wait for the whole device.
  must(cudaMemsetAsync(t.done.get(), 1, 1, t.compute.get()));
  for (int i = 0; i < 5000 && !t.finished(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(t.finished());
  CHECK(t.slot_of(7) == nullptr);
  t.control.door.open();
  REQUIRE(t.finish(late_policy::wait) == status::ok);
  CHECK(t.slot_of(7) != nullptr);
  CHECK(all_device_chunks_right(*t.store, t.s));
}

TEST_CASE("what one stream was given happens before what the next one is given", "[gpu]") {
  REQUIRE_GPU();
  stage t;
  device_stream next;
  gate first;
  first.close();
  first.hold(t.compute.get());
  REQUIRE(t.grow(5, 5) == status::ok);
  REQUIRE(grow_on_device(*t.store, t.s, 5, 6, t.ring, next.ref()) == status::ok);
  stage::linger();
  CHECK(cudaStreamQuery(next.get()) == cudaErrorNotReady);
  first.open();
  next.wait();
  CHECK(all_device_chunks_right(*t.store, t.s));
}
