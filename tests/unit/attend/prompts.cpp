// SPDX-License-Identifier: MIT
#include <numeric>

#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// What one item of a batch got.
attend_output part_of(const attend_problem& p, const attend_output& all, std::size_t item) {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < item; ++i) first += p.items[i].num_tokens;
  const std::int64_t count = p.items[item].num_tokens * p.query_heads;
  attend_output part;
  part.code = all.code;
  const auto cut = [&](const std::vector<float>& from, std::int64_t width) {
    const auto begin = from.begin() + first * p.query_heads * width;
    return std::vector<float>(begin, begin + count * width);
  };
  part.out = cut(all.out, p.shape.value_dim);
  part.lse = cut(all.lse, 1);
  return part;
}

}  // namespace

TEST_CASE("pieces of prompts agree with the reference in every dtype, size of head and group", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto dims = GENERATE(std::pair{64, 64}, std::pair{128, 128}, std::pair{256, 256}, std::pair{64, 128},
                             std::pair{16, 48}, std::pair{80, 96}, std::pair{240, 16});
  const auto group = GENERATE(1, 3, 8);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), dims.first, dims.second, group, seed);
  attend_shape s;
  s.type = type;
  s.q_type = seed % 2 == 0 ? type : dtype::f32;
  s.key_dim = dims.first;
  s.value_dim = dims.second;
  s.group = group;
  attend_problem p(s, seed);
  p.add(70 + std::int64_t(seed % 90), 9 + std::int32_t(seed % 50));
  const dtype out_type = seed % 3 == 0 ? type : dtype::f32;
  CHECK(p.difference(p.run(out_type), out_type) == "");
}

TEST_CASE("prompts of every length, from whatever position, agree with the reference", "[attend]") {
  const auto per_chunk = GENERATE(1, 7, 16, 64, 100);
  const auto per_entry = GENERATE(1, 4);
  const auto seed = fresh_seed();
  CAPTURE(per_chunk, per_entry, seed);
  attend_shape s;
  s.kv_heads = 1;
  s.group = 3;
  s.key_dim = s.value_dim = 32;
  s.entries_per_chunk = per_chunk;
  s.tokens_per_entry = per_entry;
  attend_problem p(s, seed);
  for (const auto& [length, tokens] : {std::pair{9, 9},
                                       {63, 63},
                                       {64, 64},
                                       {65, 65},
                                       {200, 9},
                                       {200, 31},
                                       {200, 32},
                                       {200, 33},
                                       {131, 131},
                                       {257, 96},
                                       {258, 97},
                                       {259, 95}})
    p.add(length, tokens);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("decoding rows and pieces of prompts in one batch each get what they get alone", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), seed);
  attend_shape s;
  s.type = type;
  s.entries_per_chunk = 8;
  attend_problem p(s, seed);
  for (const auto& [length, tokens] : {std::pair{150, 1}, {90, 40}, {75, 8}, {33, 33}, {400, 2}, {300, 9}})
    p.add(length, tokens);
  p.drop_chunks(p.items[0].sequence, 0.5);
  p.drop_chunks(p.items[4].sequence, 0.5);
  const attend_output together = p.run();
  CHECK(p.difference(together) == "");
  const auto items = p.items;
  const auto q = p.q;
  std::size_t at = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::size_t bytes = std::size_t(items[i].num_tokens) * std::size_t(p.query_heads * s.key_dim) * 4;
    p.items = {items[i]};
    p.q.assign(q.begin() + std::ptrdiff_t(at), q.begin() + std::ptrdiff_t(at + bytes));
    at += bytes;
    const attend_output alone = p.run();
    attend_problem whole(s, seed);
    whole.items = items;
    CAPTURE(i);
    CHECK(alone == part_of(whole, together, i));
  }
}

TEST_CASE("a prompt in pieces gets bit for bit what it gets at once, if no piece is short", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.kv_heads = 1;
  s.entries_per_chunk = 16;
  attend_problem p(s, seed);
  p.add(300, 300);
  const attend_output whole = p.run();
  const auto item = p.items[0];
  const auto q = p.q;
  const auto row = std::size_t(p.query_heads * s.key_dim) * 4;
  attend_output pieces;
  pieces.code = status::ok;
  for (std::int32_t first = 0; first < 300;) {
    const std::int32_t tokens = std::min(300 - first, 9 + std::int32_t(p.random() % 120));
    if (300 - first - tokens > 0 && 300 - first - tokens <= most_decode_tokens) continue;
    p.items = {{item.sequence, first, tokens}};
    p.q.assign(q.begin() + std::ptrdiff_t(std::size_t(first) * row),
               q.begin() + std::ptrdiff_t(std::size_t(first + tokens) * row));
    const attend_output piece = p.run();
    REQUIRE(piece.code == status::ok);
    pieces.out.insert(pieces.out.end(), piece.out.begin(), piece.out.end());
    pieces.lse.insert(pieces.lse.end(), piece.lse.begin(), piece.lse.end());
    first += tokens;
  }
  CHECK(pieces == whole);
}

TEST_CASE("neither threads nor the scratch beyond what is needed change a prompt's result", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_problem p({}, seed);
  p.add(500, 230);
  p.add(770, 1);
  p.add(90, 64);
  const attend_output serial = p.run();
  CHECK(p.difference(serial) == "");
  thread_crowd crowd{5};
  p.options.threads = crowd.hook();
  CHECK(p.run() == serial);
  p.options.threads = default_threads();
  CHECK(p.run() == serial);
  // As much scratch as one thread needs is enough for any number of them.
  p.options.threads = serial_threads();
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  o.threads = crowd.hook();
  std::vector<float> out(serial.out.size());
  const auto call = [&] {
    return sparse_attend(p.store, batch(p.items.data(), p.items.size()), p.layer, p.q_tensor(),
                         tensor<3>(out.data(), dtype::f32, p.rows(), p.query_heads, 64), o,
                         stream_ref::host());
  };
  REQUIRE(call() == status::ok);
  CHECK((out == serial.out));
  fault why;
  o.error = &why;
  std::fill(out.begin(), out.end(), 3.0f);
  o.scratch.bytes -= 1;
  CHECK(call() == status::workspace_small);
  CHECK(why.expected == std::int64_t(scratch.size()));
  CHECK((out == std::vector<float>(out.size(), 3.0f)));
}

TEST_CASE("scale, soft cap and sinks are part of a prompt's softmax", "[attend]") {
  const auto cap = GENERATE(0.0f, 0.7f, 30.0f);
  const auto scale = GENERATE(0.0f, 1.5f);
  const auto sink = GENERATE(0, 1);
  const auto seed = fresh_seed();
  CAPTURE(cap, scale, sink, seed);
  attend_problem p({}, seed);
  p.options.logit_soft_cap = cap;
  p.options.softmax_scale = scale;
  if (sink) p.sinks = {0.5f, -20.0f, 12.0f, -inf};
  p.add(100, 40);
  CHECK(p.difference(p.run()) == "");
  if (!sink) return;
  p.sinks = {inf, 1, 2, 3};
  const auto got = p.run();
  CHECK(got.lse[0] == inf);
  for (int i = 0; i < 64; ++i) CHECK(got.out[std::size_t(i)] == 0);
}

TEST_CASE("logits of many thousands neither overflow nor underflow a prompt's sum", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), seed);
  attend_shape s;
  s.type = type;
  s.key_exponent = 8;
  attend_problem p(s, seed);
  p.options.softmax_scale = 1;
  p.add(140, 70);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("what a row may not see yet may be anything", "[attend]") {
  const auto seed = fresh_seed();
  const auto bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), inf);
  CAPTURE(seed, bad);
  attend_shape s;
  s.type = dtype::f32;
  attend_problem p(s, seed);
  const auto handle = p.add(120, 60);
  const attend_output clean = p.run();
  const std::int64_t from = 60 + std::int64_t(seed % 60);
  for (std::int64_t e = from; e < 120; ++e)
    for (std::int64_t h = 0; h < s.kv_heads; ++h) {
      std::memcpy(p.store.key_row(handle, 1, h, e), &bad, 4);
      std::memcpy(p.store.value_row(handle, 1, h, e), &bad, 4);
    }
  const attend_output got = p.run();
  REQUIRE(got.code == status::ok);
  const std::size_t same = std::size_t((from - 60) * p.query_heads * 64);
  CHECK(std::equal(clean.out.begin(), clean.out.begin() + std::ptrdiff_t(same), got.out.begin()));
  if (std::isnan(bad)) CHECK(std::isnan(got.out.back() + got.out[got.out.size() - 64]));
}

TEST_CASE("an empty item of any length keeps its rows zero between pieces", "[attend]") {
  attend_problem p({}, 5);
  p.add(60, 30);
  p.items.insert(p.items.begin(), batch_item{{}, 7, 20});
  p.q.insert(p.q.begin(), std::size_t(20 * p.query_heads * 64 * 4), std::byte{0xff});
  const auto got = p.run();
  REQUIRE(got.code == status::ok);
  for (std::size_t i = 0; i < std::size_t(20 * p.query_heads); ++i) {
    CHECK(got.lse[i] == -inf);
    CHECK(got.out[i * 64 + 5] == 0);
  }
  p.items.erase(p.items.begin());
  p.q.erase(p.q.begin(), p.q.begin() + 20 * p.query_heads * 64 * 4);
  const auto alone = p.run();
  CHECK(std::equal(alone.out.begin(), alone.out.end(), got.out.begin() + 20 * p.query_heads * 64));
}
