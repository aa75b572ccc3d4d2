// SPDX-License-Identifier: MIT
#include <functional>

#include "tests/cuda/step_world.hpp"

using namespace step_testing;

namespace {

cudaGraphExec_t captured(const std::function<void()>& launches, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  launches();
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&executable, graph, 0));
  must(cudaGraphDestroy(graph));
  return executable;
}

void check(status code) { REQUIRE(code == status::ok); }

}  // namespace

TEST_CASE("the step of docs/cuda.md decodes", "[gpu][step]") {
  REQUIRE_GPU();
  const auto g = geometry();
  fm::store_options budgets;
  budgets.geometry = g;
  budgets.fast_bytes = budgets.backing_bytes = std::size_t{64} << 20;
  const auto config = indexer_config(1, false);
  fm::selection_policy policy;
  policy.interval = 16;
  policy.budget_fraction = 0.3;
  const std::int32_t rows = 4;
  const std::int64_t max_tokens = 600;
  const device_stream queue;
  const fm::stream_ref stream = queue.ref();
  const number_pool numbers(1);
  const device_array<float> outputs(std::size_t(g.layers * rows * query_heads * g.value_dim));
  const auto hidden = [&](std::int32_t layer) {
    return fm::const_tensor<2>(numbers.floats(std::uint64_t(layer), rows * hidden_size), fm::dtype::f32, rows,
                               hidden_size);
  };
  const auto kv = [&](std::int32_t layer) {
    return fm::const_tensor<3>(numbers.halves(std::uint64_t(layer) + 9, rows * 128), g.type, rows, g.kv_heads,
                               g.key_dim);
  };
  const auto q = [&](std::int32_t layer) {
    return fm::const_tensor<3>(numbers.halves(std::uint64_t(layer) + 5, rows * 256), g.type, rows,
                               query_heads, g.key_dim);
  };
  const auto out = [&](std::int32_t layer) {
    return fm::tensor<3>(outputs.data() + layer * rows * query_heads * g.value_dim, fm::dtype::f32, rows,
                         query_heads, g.value_dim);
  };
  const auto k = kv, v = kv;

  // [step]
  const auto store = cu::make_store(budgets);
  fm::selector_options select_options;
  select_options.apply = fm::apply_mode::overlapped;  // refreshes never hold a step up
  const auto select = cu::make_selector(*store, config, policy, select_options);
  cu::decode_step_options step_options;
  step_options.rows = rows;
  step_options.max_chunks = g.chunks_for(max_tokens);
  step_options.query_heads = query_heads;
  cu::decode_step step(*store, select.get(), step_options);

  const auto forward = [&] {  // launches alone, with the same arguments in every step
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      check(step.observe(layer, hidden(layer), stream));
      check(step.append(layer, k(layer), v(layer), stream));
      check(step.attend(layer, q(layer), out(layer), {}, stream));
    }
  };
  cudaGraphExec_t graph = captured(forward, stream.cuda());

  std::vector<fm::batch_item> items(4);  // a default item is an empty row
  for (int row = 0; row < 3; ++row) {
    items[row].sequence = store->open(fm::sequence_options_for(policy, g, max_tokens));
    select->attach(items[row].sequence);
  }
  for (int token = 0; token < 500; ++token) {
    const fm::batch batch(items.data(), rows);
    check(step.prepare(batch, stream));           // books and tables
    must(cudaGraphLaunch(graph, stream.cuda()));  // or forward(): the same bytes
    check(step.finish(stream));                   // seals chunks that are full
    check(select_chunks(*select, batch, stream));
    for (int row = 0; row < 3; ++row) ++items[row].position;
  }
  // [step]

  queue.wait();
  must(cudaGraphExecDestroy(graph));
  CHECK(select->counters().refreshes > 60);
  CHECK(store->counters().faults == 0);
}
