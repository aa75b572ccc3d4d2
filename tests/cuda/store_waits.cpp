// SPDX-License-Identifier: MIT
#include "cuda/core/blocks.hpp"
#include "cuda/core/device_wait.hpp"
#include "tests/cuda/store_device.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE("asking an event that is not there yet leaves no error for the next launch to report") {
  REQUIRE_GPU();
  gate door;
  door.close();
  device_stream stream;
  door.hold(stream.get());
  fm::cuda::detail::event event;
  must(event.record(stream.get()));
  CHECK(event.query() == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(event.wait(std::chrono::milliseconds(1)) == cudaErrorNotReady);
  CHECK(cudaGetLastError() == cudaSuccess);
  door.open();
  stream.wait();
  CHECK(event.query() == cudaSuccess);
}

TEST_CASE("waiting for a device that does not finish ends at the deadline") {
  REQUIRE_GPU();
  gate door;
  door.close();
  device_stream stream;
  door.hold(stream.get());
  CHECK(fm::cuda::detail::wait_for_device(std::chrono::milliseconds(10)) == cudaErrorNotReady);
  door.open();
  stream.wait();
  CHECK(fm::cuda::detail::wait_for_device(std::chrono::milliseconds(20000)) == cudaSuccess);
}

TEST_CASE(
    "a store that goes away while the device is stuck ends at its deadline, and gives nothing back that may "
    "be in use") {
  REQUIRE_GPU();
  struct counted {
    int taken = 0, given = 0;
  } memory;
  fm::cuda::context device;
  device.deadline = std::chrono::milliseconds(10);
  device.memory.context = &memory;
  device.memory.allocate = [](void* self, std::size_t bytes, std::size_t) -> void* {
    void* block = nullptr;
    if (cudaMalloc(&block, bytes) != cudaSuccess) return nullptr;
    ++static_cast<counted*>(self)->taken;
    return block;
  };
  device.memory.deallocate = [](void* self, void*, std::size_t, std::size_t) {
    ++static_cast<counted*>(self)->given;  // and kept: a test's few megabytes
  };
  const bool stuck = GENERATE(false, true);
  gate door;
  device_stream reader;
  {
    transfer_switches control;
    const fm::store_options o = small_options();
    auto store = make_device_store(o, &control, device);
    const auto s = open(*store, tokens(100, 0));
    CHECK(memory.taken > 0);
    if (stuck) {
      door.close();
      door.hold(reader.get());
    }
  }
  CHECK(memory.given == (stuck ? 0 : memory.taken));
  door.open();
  reader.wait();
}

TEST_CASE(
    "behind a chunk's readable end on the device there is nothing of another sequence when the store "
    "scrubs") {
  REQUIRE_GPU();
  fm::store_options o = small_options();
  o.scrub = true;
  const fm::kv_geometry& g = o.geometry;
  const std::size_t bytes = fm::chunk_layout(g).chunk_bytes();
  transfer_switches control;
  auto store = make_device_store(o, &control);
  device_stream compute;
  scratch_ring ring(std::size_t{1} << 20);
  const auto clean = [&](const engine_sequence& s) {
    compute.wait();
    must(cudaDeviceSynchronize());
    const fm::resident_set set = resident(*store, s);
    const fm::resident_chunk& last = set.chunks[set.count - 1];
    std::vector<std::byte> slot(bytes);
    must(cudaMemcpy(slot.data(), last.data, bytes, cudaMemcpyDeviceToHost));
    for (std::int32_t layer = 0; layer < g.layers; ++layer)
      for (std::int64_t e = 0; e < last.entries; ++e)
        for_each_part(g, layer, e, [&](std::size_t offset, std::size_t n) {
          std::fill_n(slot.begin() + std::ptrdiff_t(offset), n, std::byte{0});
        });
    return std::all_of(slot.begin(), slot.end(), [](std::byte b) { return b == std::byte{0}; });
  };
  engine_sequence a = open(*store, tokens(200, 8));
  REQUIRE(grow_on_device(*store, a, 60, 1, ring, compute.ref()) == status::ok);
  REQUIRE(store->close(a.handle) == status::ok);
  engine_sequence b = open(*store, tokens(200, 8));
  REQUIRE(grow_on_device(*store, b, 1, 2, ring, compute.ref()) == status::ok);
  CHECK(clean(b));
  REQUIRE(grow_on_device(*store, b, 2, 3, ring, compute.ref()) == status::ok);
  REQUIRE(store->truncate(b.handle, 1) == status::ok);
  const engine_sequence child{store->fork(b.handle, tokens(200, 8)), b.tags, 1};
  CHECK(clean(child));
}
