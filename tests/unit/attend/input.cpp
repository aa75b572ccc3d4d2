// SPDX-License-Identifier: MIT
#include <functional>

#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"

using namespace flashmemory_test;

namespace {

/// One valid call, whose arguments a test may spoil.
struct call_arguments {
  attend_problem problem{attend_shape(), 5};
  std::vector<std::byte> scratch;
  std::vector<float> out, lse;
  std::vector<batch_item> items;
  batch item_view;
  std::int32_t layer = 1;
  const_tensor<3> q;
  tensor<3> out_view;
  attend_options options;
  fault error;
  stream_ref stream = stream_ref::host();

  call_arguments() {
    problem.add(40, 2);
    problem.add(30, 1);
    problem.sinks = {0, 0, 0, 0};
    options = problem.full_options(scratch);
    out.assign(3 * 4 * 64, 5);
    lse.assign(3 * 4, 6);
    items = problem.items;
    item_view = batch(items.data(), items.size());
    q = problem.q_tensor();
    out_view = tensor<3>(out.data(), dtype::f32, 3, 4, 64);
    options.lse = view<float, 2>(lse.data(), 3, 4);
    options.error = &error;
  }

  status run() { return sparse_attend(problem.store, item_view, layer, q, out_view, options, stream); }

  /// Spoils, calls, and checks that nothing was written; leaves `error` to look at.
  void check(status expected, const std::function<void(call_arguments&)>& spoil) {
    spoil(*this);
    CHECK(run() == expected);
    CHECK(error.code == expected);
    CHECK(std::string(error.what) != "");
    CHECK(out == std::vector<float>(out.size(), 5));
    CHECK(lse == std::vector<float>(lse.size(), 6));
  }
};

using args = call_arguments;

}  // namespace

TEST_CASE("a valid call is ok and leaves the fault alone", "[attend]") {
  args a;
  CHECK(a.run() == status::ok);
  CHECK(a.error.code == status::ok);
}

TEST_CASE("an error without a place for its details is only returned", "[attend]") {
  args a;
  a.options.error = nullptr;
  a.layer = 9;
  CHECK(a.run() == status::out_of_range);
}

TEST_CASE("shapes that disagree are refused", "[attend]") {
  SECTION("q has another number of tokens") {
    args a;
    a.check(status::bad_shape, [](args& x) { x.q.shape[0] = 2; });
    CHECK(a.error.expected == 3);
    CHECK(a.error.actual == 2);
  }
  SECTION("query heads are no multiple of the KV heads") {
    args().check(status::bad_shape, [](args& x) { x.q.shape[1] = x.out_view.shape[1] = 3; });
  }
  SECTION("no query heads") {
    args().check(status::bad_shape, [](args& x) { x.q.shape[1] = x.out_view.shape[1] = 0; });
  }
  SECTION("q has another key_dim") {
    args a;
    a.check(status::bad_shape, [](args& x) { x.q.shape[2] = 48; });
    CHECK(a.error.expected == 64);
    CHECK(a.error.actual == 48);
  }
  SECTION("out has another extent") {
    const int d = GENERATE(0, 1, 2);
    args().check(status::bad_shape, [d](args& x) { x.out_view.shape[d] += 1; });
  }
  SECTION("sink logits are not one for each query head") {
    args().check(status::bad_shape, [](args& x) { x.options.sink_logits.shape[0] = 3; });
  }
  SECTION("lse has another extent") {
    const int d = GENERATE(0, 1);
    args().check(status::bad_shape, [d](args& x) { x.options.lse.shape[d] -= 1; });
  }
  SECTION("lists are not one for each row") {
    static const std::int32_t list[6] = {};
    args().check(status::bad_shape,
                 [](args& x) { x.options.entries = view<const std::int32_t, 2>(list, 2, 3); });
  }
  SECTION("a negative number of items") {
    args().check(status::bad_shape, [](args& x) { x.item_view.shape[0] = -1; });
  }
}

TEST_CASE("element types that are not accepted are refused", "[attend]") {
  args().check(status::bad_dtype, [](args& x) { x.q.type = dtype::f16; });  // the store holds bf16
  args().check(status::bad_dtype, [](args& x) { x.q.type = dtype(9); });
  args().check(status::bad_dtype, [](args& x) { x.out_view.type = dtype(9); });
}

TEST_CASE("missing memory is refused", "[attend]") {
  args().check(status::null_data, [](args& x) { x.q.data = nullptr; });
  args().check(status::null_data, [](args& x) { x.out_view.data = nullptr; });
  args().check(status::null_data, [](args& x) { x.item_view.data = nullptr; });
  args().check(status::null_data, [](args& x) { x.options.scratch.data = nullptr; });
}

TEST_CASE("a workspace below what the query says is refused with the size it needs", "[attend]") {
  args a;
  a.check(status::workspace_small, [](args& x) { x.options.scratch.bytes -= 1; });
  CHECK(a.error.expected == std::int64_t(a.scratch.size()));
  CHECK(a.error.actual == std::int64_t(a.scratch.size()) - 1);
  args().check(status::workspace_small, [](args& x) { x.options.scratch.bytes = 0; });
}

TEST_CASE("values out of their range are refused", "[attend]") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float bad = GENERATE_COPY(-1.0f, nan, inf, -inf);
  args().check(status::bad_argument, [bad](args& x) { x.options.softmax_scale = bad; });
  args().check(status::bad_argument, [bad](args& x) { x.options.logit_soft_cap = bad; });
}

TEST_CASE("items that cannot be are refused", "[attend]") {
  SECTION("without tokens, or with a negative number of them") {
    const std::int32_t tokens = GENERATE(0, -3);
    args a;
    a.check(status::bad_argument, [tokens](args& x) {
      x.items[1].num_tokens = tokens;
      x.q.shape[0] = x.out_view.shape[0] = x.options.lse.shape[0] = 2 + std::max(0, tokens);
    });
    CHECK(a.error.sequence == 1);
    CHECK(a.error.actual == tokens);
  }
  SECTION("at a negative position") {
    args a;
    a.check(status::bad_argument, [](args& x) { x.items[1].position = -1; });
    CHECK(a.error.sequence == 1);
  }
  SECTION("K and V are not there yet") {
    args a;
    a.check(status::out_of_order, [](args& x) { x.items[0].position = 39; });
    CHECK(a.error.sequence == 0);
    CHECK(a.error.expected == 41);
    CHECK(a.error.actual == 40);
    args().check(status::out_of_order,
                 [](args& x) { x.items[0].position = std::numeric_limits<std::int64_t>::max(); });
  }
  SECTION("a sequence that never was") {
    args a;
    a.check(status::unknown_sequence, [](args& x) { x.items[1].sequence.index = 77; });
    CHECK(a.error.sequence == 77);
  }
  SECTION("a sequence that was closed") {
    args a;
    a.check(status::stale_sequence,
            [](args& x) { REQUIRE(x.problem.store.close(x.items[1].sequence) == status::ok); });
    CHECK(a.error.sequence == 1);
  }
}

TEST_CASE("a layer that does not exist is refused", "[attend]") {
  const std::int32_t layer = GENERATE(-1, 2);
  args a;
  a.check(status::out_of_range, [layer](args& x) { x.layer = layer; });
  CHECK(a.error.layer == layer);
}

TEST_CASE("out must not be q's memory", "[attend]") {
  attend_shape s;
  s.type = s.q_type = dtype::f32;
  attend_problem p(s, 2);
  p.add(10, 1);
  std::vector<std::byte> scratch;
  const attend_options o = p.full_options(scratch);
  const auto before = p.q;
  const std::size_t shift = GENERATE(as<std::size_t>(), 0, 4, 4 * 255);
  p.q.resize(p.q.size() * 2);
  CHECK(sparse_attend(p.store, batch(p.items.data(), 1), 0, p.q_tensor(),
                      tensor<3>(p.q.data() + shift, dtype::f32, 1, 4, 64), o,
                      stream_ref::host()) == status::bad_argument);
  CHECK(std::equal(before.begin(), before.end(), p.q.begin()));
  CHECK(sparse_attend(p.store, batch(p.items.data(), 1), 0, p.q_tensor(),
                      tensor<3>(p.q.data() + before.size(), dtype::f32, 1, 4, 64), o,
                      stream_ref::host()) == status::ok);
}

TEST_CASE("a device stream and unusual head sizes are unsupported", "[attend]") {
  int something = 0;
  args().check(status::unsupported,
               [&](args& x) { x.stream = stream_ref(reinterpret_cast<CUstream_st*>(&something)); });
  const auto dims = GENERATE(std::pair{8, 64}, std::pair{64, 40}, std::pair{272, 64}, std::pair{64, 512});
  CAPTURE(dims.first, dims.second);
  attend_shape s;
  s.key_dim = dims.first;
  s.value_dim = dims.second;
  attend_problem p(s, 3);
  p.add(4, 1);
  CHECK(p.run().code == status::unsupported);
}

TEST_CASE("the workspace query is monotone, bounded in the context, and zero for nonsense", "[attend]") {
  const kv_geometry g = attend_shape().geometry();
  std::size_t last = 0;
  for (std::int64_t chunks = 0; chunks < 5000; chunks += 13) {
    const std::size_t bytes = attend_workspace_bytes(g, 4, 3, chunks);
    CHECK(bytes >= last);
    last = bytes;
  }
  CHECK(last == attend_workspace_bytes(g, 4, 3, 50'000'000));
  CHECK(attend_workspace_bytes(g, 4, 6, 100) > attend_workspace_bytes(g, 4, 3, 100));
  CHECK(attend_workspace_bytes(g, 0, 3, 100) == 0);
  CHECK(attend_workspace_bytes(g, 4, 0, 100) == 0);
  CHECK(attend_workspace_bytes(g, 4, 3, -1) == 0);
  CHECK(attend_workspace_bytes(kv_geometry(), 4, 3, 100) == 0);
}

TEST_CASE("scratch may lie at any address that operator new may return", "[attend]") {
  attend_problem p({}, 6);
  p.add(300, 2);
  const auto plain = p.run();
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  std::vector<std::byte> room(scratch.size() + 128, std::byte{0x5a});
  for (std::size_t shift = 16; shift < 64; shift += 16) {
    const std::size_t base = 64 - reinterpret_cast<std::uintptr_t>(room.data()) % 64 + shift;
    o.scratch = {room.data() + base, scratch.size()};
    std::vector<float> out(plain.out.size());
    REQUIRE(sparse_attend(p.store, batch(p.items.data(), 1), 1, p.q_tensor(),
                          tensor<3>(out.data(), dtype::f32, 2, 4, 64), o, stream_ref::host()) == status::ok);
    CHECK(out == plain.out);
    CHECK(std::all_of(room.begin(), room.begin() + std::ptrdiff_t(base),
                      [](std::byte b) { return b == std::byte{0x5a}; }));
    CHECK(std::all_of(room.begin() + std::ptrdiff_t(base + scratch.size()), room.end(),
                      [](std::byte b) { return b == std::byte{0x5a}; }));
    std::fill(room.begin(), room.end(), std::byte{0x5a});
  }
}
