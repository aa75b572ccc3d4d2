// SPDX-License-Identifier: MIT
#include "tests/cuda/step_world.hpp"

using namespace step_testing;

namespace {

/// Three sequences whose refreshes are asked for, with copies that the test holds up or breaks.
struct held_world {
  store_testing::transfer_switches control;
  number_pool pool{11};
  world_options options;
  std::unique_ptr<world> w;
  std::vector<world::sequence> sequences;
  std::uint64_t at = 0;

  held_world(fm::late_policy late, std::int32_t max_staleness, std::chrono::milliseconds deadline) {
    options.rows = 3;
    options.captured = true;
    options.staging_steps = 16;
    options.control = &control;
    options.deadline = deadline;
    options.select.apply = fm::apply_mode::overlapped;
    options.select.max_staleness = max_staleness;
    options.select.late = late;
    w = std::make_unique<world>(pool, options, 11);
    for (int i = 0; i < 3; ++i) {
      sequences.push_back(w->open());
      w->prefill(sequences.back(), 300 + 5 * i, std::uint64_t(i));
    }
    for (int i = 0; i < 40; ++i) REQUIRE(step() == status::ok);
    settle();
  }
  ~held_world() { control.door.open(); }

  status step() {
    const status code = w->decode({&sequences[0], &sequences[1], &sequences[2]}, at++);
    w->stream.wait();
    return code;
  }
  /// Without waiting for the stream: a new chunk may get a slot that a copy which was given up still goes to, and then
  /// the stream waits for that copy.
  status hurried_step() {
    const status code = w->decode({&sequences[0], &sequences[1], &sequences[2]}, at++);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return code;
  }
  /// Steps until nothing is under way.
  void settle() {
    for (int i = 0; i < 200 && refreshing() > 0; ++i) REQUIRE(step() == status::ok);
    REQUIRE(refreshing() == 0);
  }
  int refreshing() const {
    int count = 0;
    for (const auto& s : sequences) count += w->select->refreshing(s.handle);
    return count;
  }
  /// Refreshes whose copies wait at the gate; forgetting the set first makes sure that there is something to copy.
  void hold() {
    for (auto& s : sequences) REQUIRE(w->store->recall(s.handle, {}, nullptr, w->stream.ref()) == status::ok);
    w->stream.wait();
    control.hold_loads = true;
    control.door.close();
    for (auto& s : sequences) REQUIRE(w->select->request_refresh(s.handle) == status::ok);
  }
  void let_go() {
    control.hold_loads = false;
    control.door.open();
  }
};

}  // namespace

TEST_CASE(
    "steps go on with the old sets while copies are held up, and the sets come into force when they have "
    "landed",
    "[gpu][step]") {
  REQUIRE_GPU();
  held_world t(fm::late_policy::keep, 3, std::chrono::milliseconds(5000));
  t.hold();
  for (int i = 0; i < 10; ++i) REQUIRE(t.step() == status::ok);
  CHECK(t.refreshing() == 3);
  CHECK(t.w->select->counters().late >= 1);
  const auto small = t.w->resident(t.sequences[0]);
  t.let_go();
  t.settle();
  CHECK(t.w->resident(t.sequences[0]).size() > small.size());
  CHECK(t.w->select->counters().max_staleness >= 9);
  CHECK(t.w->select->counters().refreshes_failed == 0);
  CHECK(t.w->store->counters().faults == 0);
  for (auto& s : t.sequences) {
    fm::selection_report r;
    REQUIRE(t.w->select->report(s.handle, &r) == status::ok);
    CHECK(r.recall.refused == 0);
  }
}

TEST_CASE("a refresh that is too late is waited for up to the deadline, or given up", "[gpu][step]") {
  REQUIRE_GPU();
  const auto late = GENERATE(fm::late_policy::wait, fm::late_policy::fail);
  CAPTURE(int(late));
  held_world t(late, 2, std::chrono::milliseconds(40));
  const auto before = t.w->select->counters();
  t.hold();
  std::vector<status> codes;
  for (int i = 0; i < 8; ++i) codes.push_back(t.hurried_step());
  // Scores take a step or two, then there are max_staleness steps of patience.
  CHECK(codes[1] == status::ok);
  CHECK(std::count(codes.begin(), codes.end(), status::timed_out) >= 1);
  CHECK(std::count(codes.begin(), codes.end(), status::ok) +
            std::count(codes.begin(), codes.end(), status::timed_out) ==
        8);
  if (late == fm::late_policy::wait)
    CHECK(t.refreshing() == 3);
  else
    CHECK(t.w->select->counters().refreshes_failed > before.refreshes_failed);
  t.let_go();
  for (int i = 0; i < 60; ++i) static_cast<void>(t.step());
  t.settle();
  for (auto& s : t.sequences) {
    fm::selection_report r;
    REQUIRE(t.w->select->report(s.handle, &r) == status::ok);
    CHECK(r.position > 320);
  }
  CHECK(t.w->select->counters().refreshes > before.refreshes);
}

TEST_CASE("a copy that is lost fails that refresh alone, and the next one brings the chunks", "[gpu][step]") {
  REQUIRE_GPU();
  held_world t(fm::late_policy::keep, 100, std::chrono::milliseconds(5000));
  for (auto& s : t.sequences)
    REQUIRE(t.w->store->recall(s.handle, {}, nullptr, t.w->stream.ref()) == status::ok);
  const auto failed = t.w->select->counters().refreshes_failed;
  t.control.lose_load = t.control.loads;
  for (auto& s : t.sequences) REQUIRE(t.w->select->request_refresh(s.handle) == status::ok);
  int errors = 0;
  for (int i = 0; i < 30; ++i) errors += t.step() != status::ok;
  t.settle();
  CHECK(errors == 1);
  CHECK(t.w->select->counters().refreshes_failed == failed + 1);
  const auto refreshes = t.w->select->counters().refreshes;
  for (auto& s : t.sequences) REQUIRE(t.w->select->request_refresh(s.handle) == status::ok);
  for (int i = 0; i < 10; ++i) REQUIRE(t.step() == status::ok);
  t.settle();
  CHECK(t.w->select->counters().refreshes >= refreshes + 3);
}
