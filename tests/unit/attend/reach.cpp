// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

using elsewhere = plain_store::elsewhere;

}  // namespace

TEST_CASE(
    "attention over everything is bit for bit the same whatever is resident, and that of dense attention",
    "[attend]") {
  const auto per_chunk = GENERATE(1, 7, 16, 48, 64, 100);
  const auto others = GENERATE(elsewhere::addresses, elsewhere::reads);
  const auto seed = fresh_seed();
  CAPTURE(per_chunk, int(others), seed);
  attend_shape s;
  s.kv_heads = 1;
  s.key_dim = s.value_dim = 32;
  s.entries_per_chunk = per_chunk;
  attend_problem p(s, seed);
  p.options.reach = attend_reach::everything;
  p.store.others = others;
  // More chunks than a wave has slots, and than its list has places.
  for (const auto& [length, tokens] : {std::pair{1500, 20}, {1200, 1}, {per_chunk * 70 + 5, 3}, {150, 150}})
    p.add(length, tokens);
  const attend_output dense = p.run();
  CHECK(p.store.layer_reads == 0);
  CHECK(p.difference(dense) == "");
  for (const double share : {0.7, 0.2, 0.0}) {
    for (const auto& item : p.items) p.drop_chunks(item.sequence, share);
    CHECK(p.run() == dense);
  }
  CHECK((p.store.layer_reads > 0) == (others == elsewhere::reads));
}

TEST_CASE("a piece of a prompt attends to what is resident and to its own chunks wherever they are",
          "[attend]") {
  const auto others = GENERATE(elsewhere::addresses, elsewhere::reads);
  const auto seed = fresh_seed();
  CAPTURE(int(others), seed);
  attend_shape s;
  s.entries_per_chunk = 8;
  attend_problem p(s, seed);
  p.store.others = others;
  for (const auto& [length, tokens] : {std::pair{400, 100}, {90, 90}, {333, 9}, {200, 1}})
    p.drop_chunks(p.add(length, tokens), 0.3);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("chunks that cannot be had are refused by name, and nothing is written", "[attend]") {
  attend_shape s;
  s.kv_heads = 1;
  s.group = 1;
  attend_problem p(s, 3);
  p.options.reach = attend_reach::everything;
  p.add(300, 20);
  p.add(300, 30);
  for (const auto& item : p.items) p.store.set_resident(item.sequence, {0, 18});
  fault why;
  p.options.error = &why;
  const std::vector<float> untouched = [] {
    std::vector<float> v;
    std::uint32_t bits = 0x7f7f7f7f;
    float x;
    std::memcpy(&x, &bits, 4);
    v.assign(50 * 64, x);
    return v;
  }();

  SECTION("by a reader that has only what is resident") {
    p.store.others = elsewhere::addresses;  // for the scratch
    std::vector<std::byte> scratch;
    p.full_options(scratch);
    p.store.others = elsewhere::nothing;
    attend_options o = p.options;
    o.scratch = {scratch.data(), scratch.size()};
    std::vector<float> out = untouched;
    CHECK(sparse_attend(p.store, batch(p.items.data(), 2), 1, p.q_tensor(),
                        tensor<3>(out.data(), dtype::f32, 50, 1, 64), o,
                        stream_ref::host()) == status::unsupported);
    CHECK((out == untouched));
    CHECK(why.chunk == 1);
  }
  SECTION("one that is corrupt, also in the second item's") {
    p.store.others = elsewhere::reads;
    p.store.unreadable = {7};
    p.store.set_resident(p.items[0].sequence, {7, 18});
    const auto got = p.run();
    CHECK(got.code == status::corrupt_chunk);
    CHECK((got.out == untouched));
    CHECK(why.code == status::corrupt_chunk);
    CHECK(why.sequence == 1);
    CHECK(why.chunk == 7);
    CHECK(why.layer == 1);
    CHECK(p.store.noted.back().chunk == 7);
  }
}

TEST_CASE("with leave_out_unreadable a bad chunk is left out, counted and named", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.kv_heads = 1;
  attend_problem p(s, seed);
  p.options.reach = attend_reach::everything;
  p.options.leave_out_unreadable = true;
  std::int64_t left_out = -1;
  p.options.left_out = &left_out;
  p.store.others = elsewhere::reads;
  const auto handle = p.add(700, 40);
  p.store.set_resident(handle, {0, 40});
  CHECK(p.difference(p.run()) == "");
  CHECK(left_out == 0);
  p.store.unreadable = {3, 20};
  const auto got = p.run();
  REQUIRE(got.code == status::ok);
  CHECK(left_out == 2);
  CHECK(p.store.noted.size() == 2);
  CHECK(p.store.noted[0].chunk == 3);
  // What is left is what a prompt attends to that has everything but those two resident.
  std::vector<chunk_id> rest;
  for (chunk_id c = 0; c < 44; ++c)
    if (c != 3 && c != 20) rest.push_back(c);
  p.store.set_resident(handle, rest);
  p.options.reach = attend_reach::resident;
  CHECK(p.difference(got) == "");
}

TEST_CASE("a prompt that is longer than its chunks' list is read in waves of a few slots", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.kv_heads = 1;
  s.group = 1;
  s.key_dim = s.value_dim = 16;
  s.entries_per_chunk = 1;
  attend_problem p(s, seed);
  p.store.others = elsewhere::reads;
  p.add(2300, 10);
  p.options.reach = attend_reach::everything;
  const attend_output dense = p.run();
  CHECK(p.difference(dense) == "");
  p.drop_chunks(p.items[0].sequence, 0.1);
  CHECK(p.run() == dense);
  thread_crowd crowd{3};
  p.options.threads = crowd.hook();
  CHECK(p.run() == dense);
}
