// SPDX-License-Identifier: MIT
// The whole embedding on a GPU, on random tensors: prompts in pieces over the store, then steps in a CUDA graph.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <flashmemory/cuda/decode_step.hpp>
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/flashmemory.hpp>
#include <random>
#include <vector>

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
constexpr int kLayers = 2, kHeads = 8, kKvHeads = 2, kDim = 64, kHidden = 128, kRows = 2;
constexpr int kPrompt = 4096, kPiece = 512, kSteps = 200;

static void check(fm::status s) {
  if (s != fm::status::ok) throw fm::error(s, fm::to_string(s));
}
static void check(cudaError_t code) {
  if (code != cudaSuccess) throw fm::error(fm::status::cuda_error, cudaGetErrorString(code));
}
static std::vector<float> noise(std::int64_t count) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

/// Device memory, random or zero: what a model's kernels write, in an engine.
struct block {
  float* data = nullptr;
  explicit block(std::int64_t count, bool random = true) {
    check(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(float)));
    if (random) check(cudaMemcpy(data, noise(count).data(), count * sizeof(float), cudaMemcpyHostToDevice));
  }
  ~block() { cudaFree(data); }
};

int main() try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    return std::puts("skipped: no CUDA device"), 0;

  // Set-up, as on the CPU; the store is told about the device, and everything else takes it from there.
  fm::dual_encoder_config config;
  config.hidden = kHidden, config.rank = 32, config.heads = 4, config.key_window = 16;
  config.retrievers = {{"l1", 1, 0, noise(32 * kHidden), std::vector<float>(32, 1.f), noise(4 * 128 * 32),
                        noise(4 * kHidden), noise(128 * kHidden), 0.f}};
  fm::store_options options;
  fm::kv_geometry& g = options.geometry;
  g = {kLayers, kKvHeads, kDim, kDim, fm::dtype::f32};
  g.index_keys.lanes = 1;
  g.index_keys.layout = fm::index_key_layout::planar;
  options.fast_bytes = options.backing_bytes = std::size_t{64} << 20;
  const auto store = cu::make_store(options);
  fm::selection_policy policy;
  const auto select = cu::make_selector(*store, config, policy);
  const std::int64_t max_tokens = kPrompt + kSteps, max_chunks = g.chunks_for(max_tokens);
  cu::prompt_attention prompts(cu::context_of(*store), {g, kHeads, kPiece, 1, max_chunks});
  cudaStream_t queue = nullptr;
  check(cudaStreamCreateWithFlags(&queue, cudaStreamNonBlocking));
  const fm::stream_ref stream(queue);
  const block hidden(kPiece * kHidden), q(kPiece * kHeads * kDim), kv(kPiece * kKvHeads * kDim),
      out(kPiece * kHeads * kDim, false);
  const auto rows_of = [](const block& b, std::int64_t rows, std::int64_t heads) {
    return fm::tensor<3>(b.data, fm::dtype::f32, rows, heads, kDim);
  };

  // Prompts, one sequence after another, in pieces that attend to everything.
  std::vector<fm::batch_item> items(kRows);
  for (fm::batch_item& item : items) {
    item.sequence = store->open(fm::sequence_options_for(policy, g, max_tokens));
    select->attach(item.sequence);
    fm::attend_options attend;
    attend.reach = fm::attend_reach::everything;
    for (item.num_tokens = kPiece; item.position < kPrompt; item.position += kPiece) {
      item.phase = item.position + kPiece < kPrompt ? fm::item_phase::prompt : fm::item_phase::prompt_end;
      const fm::batch batch(&item, 1);
      for (std::int32_t layer = 0; layer < kLayers; ++layer) {
        check(select->observe(batch, layer, {hidden.data, fm::dtype::f32, kPiece, kHidden}, stream));
        check(store->append(batch, layer, rows_of(kv, kPiece, kKvHeads), rows_of(kv, kPiece, kKvHeads),
                            stream));
        check(prompts.attend(*store, batch, layer, rows_of(q, kPiece, kHeads), rows_of(out, kPiece, kHeads),
                             attend, stream));
      }
      check(select_chunks(*select, batch, stream));
    }
    item.num_tokens = 1, item.phase = fm::item_phase::decode;
  }

  // Steps of all sequences: the launches of one are captured once.
  cu::decode_step_options step_options;
  step_options.rows = kRows;
  step_options.max_chunks = max_chunks;
  step_options.query_heads = kHeads;
  cu::decode_step step(*store, select.get(), step_options);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t launches = nullptr;
  check(cudaStreamBeginCapture(queue, cudaStreamCaptureModeThreadLocal));
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    check(step.observe(layer, {hidden.data, fm::dtype::f32, kRows, kHidden}, stream));
    check(step.append(layer, rows_of(kv, kRows, kKvHeads), rows_of(kv, kRows, kKvHeads), stream));
    check(step.attend(layer, rows_of(q, kRows, kHeads), rows_of(out, kRows, kHeads), {}, stream));
  }
  check(cudaStreamEndCapture(queue, &graph));
  check(cudaGraphInstantiate(&launches, graph, 0));
  for (int token = 0; token < kSteps; ++token) {
    const fm::batch batch(items.data(), kRows);
    check(step.prepare(batch, stream));
    check(cudaGraphLaunch(launches, queue));
    check(step.finish(stream));
    check(select_chunks(*select, batch, stream));
    for (fm::batch_item& item : items) ++item.position;
  }
  check(cudaStreamSynchronize(queue));
  for (const fm::batch_item& item : items) {
    fm::sequence_info info;
    check(store->info(item.sequence, &info));
    std::printf("%lld tokens, %lld of %lld chunks resident, %.1f KiB of %.1f KiB\n", (long long)info.tokens,
                (long long)info.resident_chunks, (long long)info.complete_chunks + 1,
                (info.slot_bytes + info.index_key_bytes) / 1024.0, info.backing_bytes / 1024.0);
  }
  check(cudaGraphExecDestroy(launches));
  check(cudaGraphDestroy(graph));
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
