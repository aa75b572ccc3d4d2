// SPDX-License-Identifier: MIT
#include <memory>
#include <numeric>

#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

attend_shape random_shape(std::mt19937_64& random) {
  const auto pick = [&](std::initializer_list<int> values) {
    return values.begin()[random() % values.size()];
  };
  attend_shape s;
  s.kv_heads = pick({1, 2, 5});
  s.group = pick({1, 2, 4, 8, 40});
  s.key_dim = pick({16, 64, 80, 128});
  s.value_dim = pick({16, 64, 96, 256});
  s.type = dtype(pick({0, 1, 2}));
  s.entries_per_chunk = pick({1, 7, 16, 64});
  s.tokens_per_entry = pick({1, 1, 4});
  return s;
}

/// Sequences of any length and residency, with or without sinks, soft cap and lists.
std::unique_ptr<attend_problem> random_problem(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto made = std::make_unique<attend_problem>(random_shape(random), seed + 1);
  attend_problem& p = *made;
  if (random() % 2 != 0) p.sinks.assign(std::size_t(p.query_heads), 0.25f);
  if (random() % 3 == 0) p.options.logit_soft_cap = 4;
  const int sequences = 1 + int(random() % 3);
  for (int i = 0; i < sequences; ++i) {
    const auto length = std::int64_t(1 + random() % (random() % 2 != 0 ? 900 : 90));
    const auto tokens = std::int32_t(1 + random() % std::min<std::uint64_t>(8, std::uint64_t(length)));
    const auto handle = p.add(length, tokens);
    if (random() % 2 != 0) p.drop_chunks(handle, 0.5);
  }
  return made;
}

void check_same_bits(const attend_output& a, const attend_output& b) {
  REQUIRE(a.code == status::ok);
  CHECK(a == b);
}

}  // namespace

TEST_CASE("random problems agree with the reference", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 25; ++i) {
    CAPTURE(seed, i);
    const auto made = random_problem(seed + i);
    attend_problem& p = *made;
    CHECK(p.difference(p.run()) == "");
  }
}

TEST_CASE("where chunks lie changes no bit", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 20; ++i) {
    CAPTURE(seed, i);
    const auto made = random_problem(seed + i);
    attend_problem& p = *made;
    const auto before = p.run();
    for (const auto& item : p.items) p.store.move_chunks(item.sequence, seed + i);
    check_same_bits(before, p.run());
  }
}

TEST_CASE("how many threads work, and in which order, changes no bit", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 20; ++i) {
    CAPTURE(seed, i);
    const auto made = random_problem(seed + i);
    attend_problem& p = *made;
    const auto serial = p.run();
    for (const int threads : {1, 2, 7}) {
      thread_crowd crowd{threads};
      p.options.threads = crowd.hook();
      check_same_bits(serial, p.run());
    }
    p.options.threads = default_threads();
    check_same_bits(serial, p.run());
  }
}

TEST_CASE("what else is in the batch changes no bit", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 20; ++i) {
    CAPTURE(seed, i);
    const auto made = random_problem(seed + i);
    attend_problem& p = *made;
    const auto together = p.run();
    REQUIRE(together.code == status::ok);
    const auto items = p.items;
    const auto q = p.q;
    std::size_t row = 0;
    for (const auto& item : items) {
      const auto tokens = std::size_t(item.num_tokens);
      const std::size_t q_row = std::size_t(p.query_heads * p.shape.key_dim) * size_of(p.shape.q_type);
      const std::size_t out_row = std::size_t(p.query_heads * p.shape.value_dim);
      p.items = {item};
      p.q.assign(q.begin() + std::ptrdiff_t(row * q_row), q.begin() + std::ptrdiff_t((row + tokens) * q_row));
      const auto alone = p.run();
      REQUIRE(alone.code == status::ok);
      CHECK(std::equal(alone.out.begin(), alone.out.end(),
                       together.out.begin() + std::ptrdiff_t(row * out_row)));
      CHECK(std::equal(alone.lse.begin(), alone.lse.end(),
                       together.lse.begin() + std::ptrdiff_t(row * std::size_t(p.query_heads))));
      row += tokens;
    }
  }
}

TEST_CASE("query tokens asked together or one by one give the same bits", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 15; ++i) {
    CAPTURE(seed, i);
    std::mt19937_64 random(seed + i);
    attend_problem p(random_shape(random), seed + i);
    p.drop_chunks(p.add(700, 8), 0.7);
    const auto together = p.run();
    const auto q = p.q;
    const std::int64_t position = p.items[0].position;
    const std::size_t q_row = q.size() / 8, out_row = together.out.size() / 8;
    for (std::size_t t = 0; t < 8; ++t) {
      p.items[0].position = position + std::int64_t(t);
      p.items[0].num_tokens = 1;
      p.q.assign(q.begin() + std::ptrdiff_t(t * q_row), q.begin() + std::ptrdiff_t((t + 1) * q_row));
      const auto alone = p.run();
      REQUIRE(alone.code == status::ok);
      CHECK(
          std::equal(alone.out.begin(), alone.out.end(), together.out.begin() + std::ptrdiff_t(t * out_row)));
    }
  }
}

TEST_CASE("a resident list of all chunks gives the bits of everything resident", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  const auto made = random_problem(seed);
  attend_problem& p = *made;
  for (const auto& item : p.items) p.store.set_all_resident(item.sequence);
  const auto everything = p.run();
  for (const auto& item : p.items) {
    sequence_info info;
    REQUIRE(p.store.info(item.sequence, &info) == status::ok);
    std::vector<chunk_id> all(std::size_t(p.store.geometry().chunks_for(info.tokens)));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), p.random);
    p.store.set_resident(item.sequence, all);
    p.store.move_chunks(item.sequence, seed);
  }
  check_same_bits(everything, p.run());
}

TEST_CASE("bytes of chunks that are not resident, and of entries to come, change no bit", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.entries_per_chunk = 16;
  attend_problem p(s, seed);
  const auto handle = p.add(300, 2);
  p.items[0].position = 150;
  p.store.set_resident(handle, {0, 2, 3, 9, 10, 15});
  const auto before = p.run();
  for (std::int64_t e = 0; e < 300; ++e) {
    const std::int64_t c = e / 16;
    if (e <= 151 && (c == 0 || c == 2 || c == 3 || c == 9)) continue;
    for (std::int64_t h = 0; h < s.kv_heads; ++h) {
      std::memset(p.store.key_row(handle, 1, h, e), 0xff, 128);
      std::memset(p.store.value_row(handle, 1, h, e), 0xff, 128);
    }
  }
  check_same_bits(before, p.run());
}

TEST_CASE("two calls over halves of the resident set, merged, are one call over all of it", "[attend]") {
  const auto seed = fresh_seed();
  for (std::uint64_t i = 0; i < 20; ++i) {
    CAPTURE(seed, i);
    const auto made = random_problem(seed + i);
    attend_problem& p = *made;
    const auto whole = p.run();
    std::vector<std::vector<chunk_id>> halves[2];
    for (const auto& item : p.items) {
      resident_set set;
      REQUIRE(p.store.resident(item.sequence, 1, &set) == status::ok);
      for (auto& half : halves) half.emplace_back();
      for (std::int64_t c = 0; c < set.count; ++c) {
        halves[p.random() % 2].back().push_back(set.chunks[c].id);
      }
    }
    const auto sinks = p.sinks;
    const auto half = [&](int which) {
      p.sinks = which == 0 ? sinks : std::vector<float>();  // the sink is part of one half
      for (std::size_t s = 0; s < p.items.size(); ++s) {
        p.store.set_resident(p.items[s].sequence, halves[which][s]);
      }
      return p.run();
    };
    auto first = half(0), second = half(1);
    const auto out = [&](attend_output& o) {
      return view<float, 3>(o.out.data(), p.rows(), p.query_heads, p.shape.value_dim);
    };
    const auto lse = [&](attend_output& o) { return view<float, 2>(o.lse.data(), p.rows(), p.query_heads); };
    REQUIRE(merge_attention(out(first), lse(first), out(second), lse(second)) == status::ok);
    for (std::size_t x = 0; x < whole.out.size(); ++x) {
      if (!(std::fabs(first.out[x] - whole.out[x]) <= 4e-6f)) FAIL(first.out[x] << " for " << whole.out[x]);
    }
    for (std::size_t x = 0; x < whole.lse.size(); ++x) {
      if (first.lse[x] != whole.lse[x])
        CHECK(first.lse[x] == Approx(whole.lse[x]).epsilon(1e-6).margin(2e-6));
    }
  }
}

TEST_CASE("a list of every visible entry, in order, gives the bits of no list", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  for (const std::int64_t length : {40, 256, 4096}) {
    attend_shape s;
    s.kv_heads = 1;
    s.key_dim = s.value_dim = 32;
    attend_problem p(s, seed);
    p.add(length, 1);
    const auto plain = p.run();
    p.list_length = length;
    p.entries.resize(std::size_t(length));
    std::iota(p.entries.begin(), p.entries.end(), 0);
    check_same_bits(plain, p.run());
  }
}
