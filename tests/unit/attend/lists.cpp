// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

/// Fills the lists with a random part of what each row may see, at most `wanted`, among pads and entries that
/// come later, in random order.
void make_lists(attend_problem& p, std::size_t wanted, std::size_t pads) {
  p.list_length = std::int64_t(wanted + pads);
  p.entries.clear();
  for (const auto& item : p.items) {
    sequence_info info;
    REQUIRE(p.store.info(item.sequence, &info) == status::ok);
    for (std::int64_t t = 0; t < item.num_tokens; ++t) {
      const std::int64_t seen = p.store.geometry().entries_for(item.position + t + 1);
      std::vector<std::int32_t> list;
      for (std::int64_t e = 0; e < seen; ++e) {
        const auto chunk = chunk_id(e / p.shape.entries_per_chunk);
        if (p.store.is_resident(item.sequence, chunk)) list.push_back(std::int32_t(e));
      }
      std::shuffle(list.begin(), list.end(), p.random);
      if (list.size() > wanted) list.resize(wanted);
      while (list.size() < wanted + pads) {
        list.push_back(p.random() % 2 != 0 ? -1 : std::int32_t(seen + std::int64_t(p.random() % 100000)));
      }
      std::shuffle(list.begin(), list.end(), p.random);
      p.entries.insert(p.entries.end(), list.begin(), list.end());
    }
  }
}

}  // namespace

TEST_CASE("a level-2 list confines each row to its own entries", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto per_chunk = GENERATE(1, 7, 64);
  const auto wanted = GENERATE(as<std::size_t>(), 1, 40, 300);
  const auto pads = GENERATE(as<std::size_t>(), 0, 9, 700);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), per_chunk, wanted, pads, seed);
  attend_shape s;
  s.type = type;
  s.entries_per_chunk = per_chunk;
  s.key_dim = s.value_dim = 32;
  attend_problem p(s, seed);
  p.sinks = {0.1f, 0.2f, 0.3f, 0.4f};
  p.drop_chunks(p.add(420, 3), 0.6);
  p.add(33, 1);
  p.add(5, 2);
  make_lists(p, wanted, pads);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("lists over entries of several tokens hold entry numbers, not tokens", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.tokens_per_entry = 4;
  attend_problem p(s, seed);
  p.add(403, 4);
  make_lists(p, 30, 5);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("a list of nothing but pads and entries to come attends to nothing", "[attend]") {
  attend_problem p({}, 4);
  p.add(50, 1);
  p.list_length = 3;
  p.entries = {-1, 50, 2000000000};
  const auto got = p.run();
  REQUIRE(got.code == status::ok);
  CHECK(got.out == std::vector<float>(got.out.size(), 0));
  CHECK(got.lse == std::vector<float>(4, -std::numeric_limits<float>::infinity()));
}

TEST_CASE("a list of length zero attends to nothing", "[attend]") {
  attend_problem p({}, 4);
  p.add(50, 1);
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  const std::int32_t some = 0;
  o.entries = view<const std::int32_t, 2>(&some, 1, 0);
  std::vector<float> out(4 * 64, 5);
  REQUIRE(sparse_attend(p.store, batch(p.items.data(), 1), 0, p.q_tensor(),
                        tensor<3>(out.data(), dtype::f32, 1, 4, 64), o, stream_ref::host()) == status::ok);
  CHECK(out == std::vector<float>(4 * 64, 0));
}

TEST_CASE("a list may be a strided view", "[attend]") {
  attend_problem p({}, 4);
  p.add(50, 2);
  make_lists(p, 20, 2);
  const auto plain = p.run();
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  std::vector<std::int32_t> transposed(22 * 3, 49);
  for (std::size_t r = 0; r < 2; ++r) {
    for (std::size_t i = 0; i < 22; ++i) transposed[i * 3 + r] = p.entries[r * 22 + i];
  }
  o.entries = view<const std::int32_t, 2>(transposed.data(), 2, 22);
  o.entries.stride[0] = 1;
  o.entries.stride[1] = 3;
  std::vector<float> out(plain.out.size());
  REQUIRE(sparse_attend(p.store, batch(p.items.data(), 1), 1, p.q_tensor(),
                        tensor<3>(out.data(), dtype::f32, 2, 4, 64), o, stream_ref::host()) == status::ok);
  CHECK(out == plain.out);
}

TEST_CASE("a listed entry that is not resident is an error that names it", "[attend]") {
  attend_problem p({}, 4);
  const auto handle = p.add(100, 2);
  p.store.set_resident(handle, {0, 1, 3, 6});
  p.list_length = 3;
  p.entries = {5, 20, -1, 97, 48, 47};
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  fault f;
  o.error = &f;
  std::vector<float> out(2 * 4 * 64, 5);
  CHECK(sparse_attend(p.store, batch(p.items.data(), 1), 1, p.q_tensor(),
                      tensor<3>(out.data(), dtype::f32, 2, 4, 64), o,
                      stream_ref::host()) == status::not_resident);
  CHECK(f.code == status::not_resident);
  CHECK(f.sequence == std::int64_t(handle.index));
  CHECK(f.chunk == 2);
  CHECK(f.layer == 1);
  CHECK(f.actual == 47);
  CHECK(out == std::vector<float>(out.size(), 5));
}

TEST_CASE("a list entry below -1 is out of range", "[attend]") {
  attend_problem p({}, 4);
  p.add(100, 1);
  p.list_length = 2;
  p.entries = {5, -2};
  CHECK(p.run().code == status::out_of_range);
}
