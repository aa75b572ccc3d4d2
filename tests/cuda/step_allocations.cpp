// SPDX-License-Identifier: MIT
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "tests/cuda/step_world.hpp"
#include "tests/support/counted_allocations.hpp"

using namespace step_testing;

namespace {

/// Holds a stream up until it is told to go on, or goes out of scope as a failed check leaves the test.
struct gate {
  static inline std::atomic<bool> open{true};
  ~gate() { open = true; }
  void close(const device_stream& stream) {
    open = false;
    must(cudaLaunchHostFunc(
        stream.get(),
        [](void*) {
          while (!open.load()) std::this_thread::sleep_for(std::chrono::microseconds(50));
        },
        nullptr));
  }
};

}  // namespace

TEST_CASE("the calls of a step allocate nothing, eager or captured, at once or overlapped", "[gpu][step]") {
  REQUIRE_GPU();
  const bool captured = GENERATE(false, true);
  const auto apply = GENERATE(fm::apply_mode::at_once, fm::apply_mode::overlapped);
  CAPTURE(captured, int(apply));
  const number_pool pool(3);
  world_options o;
  o.captured = captured;
  o.select.apply = apply;
  world w(pool, o, 3);
  std::vector<world::sequence> sequences;
  std::vector<world::sequence*> rows;
  for (int i = 0; i < 5; ++i) {
    sequences.push_back(w.open());
    w.prefill(sequences.back(), 100 + 7 * i, std::uint64_t(i));
  }
  for (auto& s : sequences) rows.push_back(&s);
  rows.push_back(nullptr);
  REQUIRE(w.decode(rows, 1) == status::ok);  // its vectors have their size now
  const auto before = allocations.load();
  bool good = true;
  for (std::uint64_t i = 2; i < 130; ++i) good = good && w.decode(rows, i) == status::ok;
  const auto after = allocations.load();
  CHECK(good);
  CHECK(after == before);
  CHECK(w.select->counters().refreshes > 30);
}

TEST_CASE("overlapped steps return while the device has not begun them, up to the staging it was given",
          "[gpu][step]") {
  REQUIRE_GPU();
  const bool captured = GENERATE(false, true);
  CAPTURE(captured);
  const number_pool pool(4);
  world_options o;
  o.captured = captured;
  o.staging_steps = 8;
  o.deadline = std::chrono::milliseconds(30);
  o.select.apply = fm::apply_mode::overlapped;
  o.select.max_staleness = 1000;
  world w(pool, o, 4);
  std::vector<world::sequence> sequences;
  for (int i = 0; i < 6; ++i) {
    sequences.push_back(w.open());
    w.prefill(sequences.back(), 100 + 7 * i, std::uint64_t(i));
  }
  std::vector<world::sequence*> rows;
  for (auto& s : sequences) rows.push_back(&s);
  // All kernels have been launched once: the first launch of one may wait for the device.
  for (std::uint64_t i = 0; i < 60; ++i) {
    if (i == 20)
      for (auto& s : sequences) REQUIRE(w.select->request_refresh(s.handle) == status::ok);
    REQUIRE(w.decode(rows, i) == status::ok);
    w.stream.wait();
  }

  gate held;
  for (int round = 0; round < 5; ++round) {
    held.close(w.stream);
    // If any of these calls waited for the device it would wait for ever.
    for (auto& s : sequences) REQUIRE(w.select->request_refresh(s.handle) == status::ok);
    for (int i = 0; i < 6; ++i) {
      std::fprintf(stderr, "held, round %d, step %d\n", round, i);  // where it hangs if it does
      REQUIRE(w.decode(rows, std::uint64_t(100 * round + i)) == status::ok);
    }
    for (auto& s : sequences) CHECK(w.select->refreshing(s.handle));
    held.open = true;
    w.stream.wait();
    // Now the scores are there, and a few steps later the sets.
    for (int i = 0; i < 40; ++i) {
      REQUIRE(w.decode(rows, std::uint64_t(100 * round + 50 + i)) == status::ok);
      w.stream.wait();
    }
    CHECK(w.select->counters().refreshes_failed == 0);
  }
  CHECK(w.select->counters().max_staleness >= 6);

  // Further ahead than the staging memory a step is refused at the deadline, and nothing has happened.
  held.close(w.stream);
  status code = status::ok;
  int ahead = 0;
  for (; ahead < 12 && code == status::ok; ++ahead) code = w.decode(rows, std::uint64_t(ahead));
  CHECK(code == status::timed_out);
  CHECK(ahead > 6);
  CHECK(w.step->last_fault().code == status::timed_out);
  for (auto& s : sequences) {
    fm::sequence_info info;
    REQUIRE(w.store->info(s.handle, &info) == status::ok);
    CHECK(info.tokens == s.tokens);
  }
  held.open = true;
  w.stream.wait();
  CHECK(w.decode(rows, 99) == status::ok);
}
