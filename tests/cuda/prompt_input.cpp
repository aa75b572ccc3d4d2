// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <functional>

#include "tests/cuda/prompt_problem.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using fm::status;
using namespace flashmemory_test;

namespace {

cu::prompt_shape good_shape() {
  cu::prompt_shape s;
  s.geometry.layers = 2;
  s.geometry.kv_heads = 2;
  s.geometry.key_dim = s.geometry.value_dim = 64;
  s.geometry.type = fm::dtype::bf16;
  s.query_heads = 8;
  s.max_items = 3;
  s.max_tokens = 40;
  s.max_chunks = 32;
  return s;
}

}  // namespace

TEST_CASE("a plan of prompts for what cannot work is refused by name", "[gpu][prompt]") {
  REQUIRE_GPU();
  const auto refused = [](const char* field, const std::function<void(cu::prompt_shape&)>& spoil) {
    cu::prompt_shape s = good_shape();
    spoil(s);
    try {
      (void)cu::plan_prompt(s);
      FAIL("accepted a wrong " << field);
    } catch (const fm::argument_error& e) {
      CHECK(std::string(e.what()).find(field) != std::string::npos);
    }
  };
  refused("query_heads", [](auto& s) { s.query_heads = 7; });
  refused("query_heads", [](auto& s) { s.query_heads = 0; });
  refused("tokens_per_entry", [](auto& s) { s.geometry.tokens_per_entry = 4; });
  refused("max_items", [](auto& s) { s.max_items = 0; });
  refused("max_tokens", [](auto& s) { s.max_tokens = 0; });
  refused("max_chunks", [](auto& s) { s.max_chunks = 0; });
  refused("max_chunks", [](auto& s) { s.max_chunks = std::int64_t{1} << 40; });
  refused("key_dim", [](auto& s) { s.geometry.key_dim = 512; });
  refused("layers", [](auto& s) { s.geometry.layers = 0; });
  CHECK_THROWS_AS(cu::plan_prompt(good_shape(), -1), fm::argument_error);
  CHECK_NOTHROW(cu::plan_prompt(good_shape()));
}

TEST_CASE("wrong arguments of attention of prompts are typed errors that name them, and nothing is enqueued",
          "[gpu][prompt]") {
  REQUIRE_GPU();
  prompt_problem p(1);
  p.shape = good_shape();
  p.items = {{100, 20}, {200, 1}, {0, 19}};
  p.draw();
  p.place(1);
  const auto plan = cu::plan_prompt(p.shape);
  p.make_state(plan);
  const device_stream stream;
  const auto before = p.out.get();

  struct arguments {
    cu::prompt_plan plan;
    fm::view<const cu::prompt_row, 1> rows;
    std::int32_t layer = 0;
    fm::const_tensor<3> q;
    fm::tensor<3> out;
    cu::prompt_options options;
  };
  const arguments good{plan,
                       fm::view<const cu::prompt_row, 1>(p.rows.data(), 3),
                       1,
                       fm::const_tensor<3>(p.q.data(), fm::dtype::bf16, 40, 8, 64),
                       fm::tensor<3>(p.out.data(), fm::dtype::f32, 40, 8, 64),
                       p.options()};
  fm::fault fault;
  const auto check = [&](status expected, const char* name, const std::function<void(arguments&)>& spoil) {
    arguments a = good;
    a.options.first = false;  // asks for the state
    spoil(a);
    fault = {};
    a.options.error = &fault;
    CAPTURE(name);
    CHECK(cu::prompt_attend(a.plan, a.rows, a.layer, a.q, a.out, a.options, stream.ref()) == expected);
    CHECK(fault.code == expected);
    CHECK(std::string(fault.what).find(name) != std::string::npos);
  };
  check(status::bad_argument, "plan", [](auto& a) { a.plan = {}; });
  check(status::bad_shape, "rows", [](auto& a) { a.rows.shape[0] = 4; });
  check(status::null_data, "rows", [](auto& a) { a.rows.data = nullptr; });
  check(status::out_of_range, "layer", [](auto& a) { a.layer = 2; });
  check(status::out_of_range, "layer", [](auto& a) { a.layer = -1; });
  check(status::bad_shape, "q rows", [](auto& a) { a.q.shape[0] = 41; });
  check(status::bad_shape, "q heads", [](auto& a) { a.q.shape[1] = 4; });
  check(status::bad_shape, "q key_dim", [](auto& a) { a.q.shape[2] = 32; });
  check(status::bad_dtype, "q", [](auto& a) { a.q.type = fm::dtype::f16; });
  check(status::null_data, "q", [](auto& a) { a.q.data = nullptr; });
  check(status::bad_shape, "q strides", [](auto& a) { a.q.stride[2] = 2; });
  check(status::bad_shape, "out rows", [](auto& a) { a.out.shape[0] = 1; });
  check(status::bad_shape, "out heads", [](auto& a) { a.out.shape[1] = 1; });
  check(status::bad_shape, "out value_dim", [](auto& a) { a.out.shape[2] = 128; });
  check(status::bad_dtype, "out", [](auto& a) { a.out.type = fm::dtype::f16; });
  check(status::null_data, "out", [](auto& a) { a.out.data = nullptr; });
  check(status::bad_shape, "out strides", [](auto& a) { a.out.stride[0] += 1; });
  check(status::bad_argument, "softmax_scale", [](auto& a) { a.options.softmax_scale = -1; });
  check(status::bad_argument, "logit_soft_cap", [](auto& a) { a.options.logit_soft_cap = INFINITY; });
  check(status::bad_shape, "sink_logits",
        [&](auto& a) { a.options.sink_logits = fm::view<const float, 1>(p.device_sinks.data(), 3); });
  check(status::bad_shape, "lse", [](auto& a) { a.options.lse.shape[1] = 3; });
  check(status::null_data, "counters", [](auto& a) { a.options.counters = nullptr; });
  check(status::workspace_small, "state", [](auto& a) { --a.options.state.bytes; });
  check(status::null_data, "state", [](auto& a) { a.options.state.data = nullptr; });
  check(status::bad_argument, "state",
        [](auto& a) { a.options.state.data = static_cast<char*>(a.options.state.data) + 8; });
  CHECK(cu::prompt_attend(good.plan, good.rows, good.layer, good.q, good.out, good.options,
                          fm::stream_ref::host()) == status::unsupported);
  must(cudaDeviceSynchronize());
  CHECK(p.out.get() == before);
}
