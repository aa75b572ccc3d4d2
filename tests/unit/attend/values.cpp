// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("every dtype, size of head and group agrees with the reference", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto dims = GENERATE(std::pair{64, 64}, std::pair{128, 128}, std::pair{256, 256}, std::pair{64, 128},
                             std::pair{256, 64}, std::pair{16, 48}, std::pair{80, 96}, std::pair{192, 240});
  const auto group = GENERATE(1, 2, 4, 8, 32);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), dims.first, dims.second, group, seed);
  attend_shape s;
  s.type = type;
  s.key_dim = dims.first;
  s.value_dim = dims.second;
  s.group = group;
  s.kv_heads = group == 32 ? 1 : 3;
  s.entries_per_chunk = 16;
  attend_problem p(s, seed);
  p.add(75 + std::int64_t(seed % 7), 1);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("a query sees the entries that end at or before it and no others", "[attend]") {
  const auto tokens = GENERATE(range(1, 9));
  const auto per_entry = GENERATE(1, 3, 4);
  const auto group = GENERATE(1, 3, 8);
  const auto seed = fresh_seed();
  CAPTURE(tokens, per_entry, group, seed);
  attend_shape s;
  s.group = group;
  s.tokens_per_entry = per_entry;
  attend_problem p(s, seed);
  for (const std::int64_t length : {tokens + 0, 16 * per_entry + 3, 64 * per_entry + 5, 131}) {
    p.add(std::max<std::int64_t>(length, tokens), tokens);
  }
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("earlier queries may be asked again once later entries are there", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_problem p({}, seed);
  p.add(90, 3);
  p.items[0].position = 37;
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("sequence lengths around chunk, block and split boundaries agree with the reference", "[attend]") {
  const auto per_chunk = GENERATE(1, 7, 16, 64, 100);
  const auto seed = fresh_seed();
  CAPTURE(per_chunk, seed);
  attend_shape s;
  s.kv_heads = 1;
  s.key_dim = s.value_dim = 32;
  s.entries_per_chunk = per_chunk;
  attend_problem p(s, seed);
  for (const std::int64_t length : {1,   2,   6,   7,   8,   15,  16,  17,  63,  64,  65,  99,  100,
                                    101, 127, 128, 129, 255, 256, 257, 258, 259, 511, 513, 1025}) {
    p.add(length, 1);
  }
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("sequences of so many chunks that splits grow agree with the reference", "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.kv_heads = 1;
  s.group = 1;
  s.key_dim = s.value_dim = 16;
  s.type = dtype::f32;
  s.entries_per_chunk = 256;
  attend_problem p(s, seed);
  p.add(256 * 67 + 13, 2);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("a ragged batch attends to what is resident of each sequence", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto per_chunk = GENERATE(1, 7, 64);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), per_chunk, seed);
  attend_shape s;
  s.type = type;
  s.entries_per_chunk = per_chunk;
  attend_problem p(s, seed);
  for (const std::int64_t length : {5, 300, 64, 1, 517, 9}) {
    p.drop_chunks(p.add(length, std::int32_t(std::min<std::int64_t>(length, 1 + length % 3))), 0.4);
  }
  p.drop_chunks(p.add(40, 2), 0);  // nothing is resident
  const auto got = p.run();
  CHECK(p.difference(got) == "");
  CHECK(got.lse.back() == -inf);
  CHECK(got.out.back() == 0);
}

TEST_CASE("scale, soft cap and sink logits are part of the softmax", "[attend]") {
  const auto cap = GENERATE(0.0f, 0.7f, 30.0f);
  const auto scale = GENERATE(0.0f, 0.02f, 1.5f);
  const auto sink = GENERATE(0, 1);
  const auto seed = fresh_seed();
  CAPTURE(cap, scale, sink, seed);
  attend_problem p({}, seed);
  p.options.logit_soft_cap = cap;
  p.options.softmax_scale = scale;
  if (sink) p.sinks = {0.5f, -20.0f, 12.0f, -inf};
  p.add(100, 2);
  p.add(1, 1);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("a row without entries is zero, and its lse the sink's", "[attend]") {
  const auto sink = GENERATE(0, 1);
  attend_problem p({}, 1);
  if (sink) p.sinks = {0.5f, -20.0f, 12.0f, 1e4f};
  p.drop_chunks(p.add(100, 1), 0);
  const auto got = p.run();
  CHECK(got.out == std::vector<float>(got.out.size(), 0));
  CHECK(got.lse == (sink ? p.sinks : std::vector<float>(4, -inf)));
}

TEST_CASE("logits of many thousands neither overflow nor underflow the sum", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), seed);
  attend_shape s;
  s.type = type;
  s.key_exponent = 8;
  attend_problem p(s, seed);
  p.options.softmax_scale = 1;
  p.add(300, 2);
  const auto want = p.expected();
  double largest = 0;
  for (const auto& row : want.rows) largest = std::max(largest, std::fabs(row.lse));
  CHECK(largest > 2000);
  CHECK(p.difference(p.run()) == "");
}

TEST_CASE("equal logits weigh equally", "[attend]") {
  attend_shape s;
  s.type = dtype::f32;
  attend_problem p(s, 3);
  const auto handle = p.add(200, 1);
  for (std::int64_t e = 0; e < 200; ++e) {
    for (std::int64_t h = 0; h < 2; ++h) {
      std::memcpy(p.store.key_row(handle, 1, h, e), p.store.key_row(handle, 1, h, 0), 64 * 4);
      std::fill_n(reinterpret_cast<float*>(p.store.value_row(handle, 1, h, e)), 64, float(e));
    }
  }
  for (const float x : p.run().out) CHECK(x == Approx(99.5).epsilon(1e-5));
}

TEST_CASE("outputs of every dtype are the f32 output, rounded", "[attend]") {
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto out_type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto stored_q = GENERATE(false, true);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), to_string(out_type), stored_q, seed);
  attend_shape s;
  s.type = type;
  s.q_type = stored_q ? type : dtype::f32;
  attend_problem p(s, seed);
  p.add(70, 2);
  CHECK(p.difference(p.run(out_type), out_type) == "");
}

TEST_CASE("padded and permuted strides and odd addresses change nothing, and padding is not written",
          "[attend]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  attend_shape s;
  s.q_type = dtype::bf16;
  attend_problem p(s, seed);
  p.add(100, 3);
  p.sinks = {1, 2, 3, 4};
  const auto plain = p.run();
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);

  // q as [heads, tokens, dim] with gaps, at an odd element; out and lse transposed likewise, every second.
  std::vector<std::uint16_t> q(8000, 0x7fc0);
  const_tensor<3> q_view(q.data() + 1, dtype::bf16, 3, 4, 64);
  q_view.stride[0] = 67;
  q_view.stride[1] = 3 * 67;
  std::vector<float> out(8000, -7), lse(100, -7), sinks(8, -1000);
  tensor<3> out_view(out.data() + 3, dtype::f32, 3, 4, 64);
  out_view.stride[0] = 131;
  out_view.stride[1] = 3 * 131;
  out_view.stride[2] = 2;
  o.lse = view<float, 2>(lse.data() + 1, 3, 4);
  o.lse.stride[0] = 2;
  o.lse.stride[1] = 7;
  o.sink_logits = view<const float, 1>(sinks.data(), 4);
  o.sink_logits.stride[0] = 2;
  for (std::size_t h = 0; h < 4; ++h) {
    sinks[2 * h] = p.sinks[h];
    for (std::size_t t = 0; t < 3; ++t) {
      std::memcpy(&q[1 + t * 67 + h * 201], p.q.data() + (t * 4 + h) * 64 * 2, 64 * 2);
    }
  }
  REQUIRE(sparse_attend(p.store, batch(p.items.data(), 1), 1, q_view, out_view, o, stream_ref::host()) ==
          status::ok);
  std::size_t written = 0;
  for (std::size_t t = 0; t < 3; ++t) {
    for (std::size_t h = 0; h < 4; ++h) {
      CHECK(lse[1 + 2 * t + 7 * h] == plain.lse[t * 4 + h]);
      for (std::size_t i = 0; i < 64; ++i) {
        CHECK(out[3 + t * 131 + h * 393 + 2 * i] == plain.out[(t * 4 + h) * 64 + i]);
        out[3 + t * 131 + h * 393 + 2 * i] = -7;
        ++written;
      }
    }
  }
  CHECK(written == plain.out.size());
  CHECK(out == std::vector<float>(8000, -7));
}

TEST_CASE("a NaN reaches the rows that see it and no others", "[attend]") {
  const auto in_values = GENERATE(false, true);
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto head = GENERATE(0, 1);
  CAPTURE(in_values, to_string(type), head);
  attend_shape s;
  s.type = type;
  attend_problem p(s, 9);
  const auto handle = p.add(70, 4);
  const auto clean = p.run();
  // All ones is a NaN in every dtype. Entry 68 is seen by the tokens at 68 and 69, i.e. the last two of four.
  std::byte* row = in_values ? p.store.value_row(handle, 1, head, 68) : p.store.key_row(handle, 1, head, 68);
  std::memset(row, 0xff, 64 * size_of(type));
  const auto got = p.run();
  REQUIRE(got.code == status::ok);
  for (std::size_t t = 0; t < 4; ++t) {
    for (std::size_t h = 0; h < 4; ++h) {
      const bool sees = t >= 2 && h / 2 == std::size_t(head);
      CAPTURE(t, h);
      for (std::size_t i = 0; i < 64; ++i) {
        const std::size_t at = (t * 4 + h) * 64 + i;
        if (sees ? !std::isnan(got.out[at]) : got.out[at] != clean.out[at]) FAIL("element " << i);
      }
      CHECK(std::isnan(got.lse[t * 4 + h]) == (sees && !in_values));
    }
  }
}

TEST_CASE("a NaN with a sink and a soft cap is still a NaN", "[attend]") {
  attend_problem p({}, 9);
  p.options.logit_soft_cap = 3;
  p.sinks = {1, 1, 1, 1};
  const auto handle = p.add(1, 1);
  std::memset(p.store.key_row(handle, 1, 0, 0), 0xff, 2);
  const auto got = p.run();
  CHECK(std::isnan(got.out[0]));
  CHECK(std::isnan(got.lse[0]));
  CHECK_FALSE(std::isnan(got.out[2 * 64]));
}

TEST_CASE("an empty batch is fine", "[attend]") {
  attend_problem p({}, 1);
  CHECK(p.run().code == status::ok);
}
