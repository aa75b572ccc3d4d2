// SPDX-License-Identifier: MIT
#include <cublasLt.h>

#include <chrono>
#include <cmath>
#include <flashmemory/cuda/train.hpp>
#include <flashmemory/train/learn/trainer.hpp>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

void must_lt(cublasStatus_t code) {
  if (code != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(cublasLtGetStatusString(code));
}

/// FLOP/s of cuBLASLt's product of three 8192 x 8192 matrices: f32, or bf16 operands and f32 results.
double measure_products(bool bf16) {
  constexpr std::int64_t n = 8192;
  constexpr std::size_t scratch_bytes = std::size_t{32} << 20;
  const device_block<std::byte> a(n * n * 4), b(n * n * 4), c(n * n * 4), scratch(scratch_bytes);
  fill_random(a.data(), a.bytes(), 1);
  fill_random(b.data(), b.bytes(), 2);
  cublasLtHandle_t handle;
  must_lt(cublasLtCreate(&handle));
  cublasLtMatmulDesc_t operation;
  must_lt(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t turned = CUBLAS_OP_T;
  must_lt(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
  cublasLtMatrixLayout_t in, out;
  must_lt(cublasLtMatrixLayoutCreate(&in, bf16 ? CUDA_R_16BF : CUDA_R_32F, n, n, n));
  must_lt(cublasLtMatrixLayoutCreate(&out, CUDA_R_32F, n, n, n));
  cublasLtMatmulPreference_t preference;
  must_lt(cublasLtMatmulPreferenceCreate(&preference));
  must_lt(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &scratch_bytes, sizeof scratch_bytes));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  must_lt(cublasLtMatmulAlgoGetHeuristic(handle, operation, in, in, out, out, preference, 1, &found, &count));
  const double seconds = seconds_per_call(4, [&](int, stream_ref stream) {
    const float one = 1, zero = 0;
    must_lt(cublasLtMatmul(handle, operation, &one, a.data(), in, b.data(), in, &zero, c.data(), out,
                           c.data(), out, &found.algo, scratch.data(), scratch_bytes, stream.cuda()));
  });
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatrixLayoutDestroy(in);
  cublasLtMatrixLayoutDestroy(out);
  cublasLtMatmulDescDestroy(operation);
  cublasLtDestroy(handle);
  return 2.0 * n * n * n / seconds;
}

struct backend_seconds {
  double forward = 0, backward = 0, update = 0;
};

/// A backend that is timed by the host's clock. backward() and update() return before the device is done, so a wait
/// is added to them when `apart`; else their work shows where something waits for it.
class timed_backend final : public train::training_backend {
 public:
  timed_backend(std::unique_ptr<train::training_backend> inner, backend_seconds* sums, const bool* apart)
      : inner_(std::move(inner)), sums_(sums), apart_(apart) {}
  void write(const train::training_state& state) override { inner_->write(state); }
  train::training_state read() const override { return inner_->read(); }
  void clear_gradient() override { inner_->clear_gradient(); }
  void forward(const train::training_batch& batch, float* scores) override {
    timed(&sums_->forward, [&] { inner_->forward(batch, scores); });
  }
  void backward(const train::training_batch& batch, const float* d_scores) override {
    timed(&sums_->backward, [&] { inner_->backward(batch, d_scores); });
  }
  double update(const train::optimiser_step& step) override {
    double norm = 0;
    timed(&sums_->update, [&] { norm = inner_->update(step); });
    return norm;
  }

 private:
  template <class F>
  void timed(double* sum, const F& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    if (*apart_) must(cudaDeviceSynchronize());
    *sum += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  std::unique_ptr<train::training_backend> inner_;
  backend_seconds* sums_;
  const bool* apart_;
};

struct shape {
  std::int32_t hidden, rank, heads, retrievers;
};

/// A document of 16K tokens, 253 complete chunks of 16 keys, with hidden states of no meaning.
train::document make_document(const train::recording_geometry& g, std::int32_t hidden, std::uint32_t seed) {
  train::document doc = train::empty_document(g, dtype::bf16);
  doc.tokens = 256 * 64;
  std::vector<float> row(static_cast<std::size_t>(hidden));
  const auto next = [&] {
    for (float& v : row) {
      seed = seed * 1664525u + 1013904223u;
      v = static_cast<float>(seed >> 8) / static_cast<float>(1 << 23) - 1;
    }
    return row.data();
  };
  for (std::size_t s = 0; s < g.keys.size(); ++s) {
    for (std::int64_t k = 0; k < doc.tokens / 4; ++k) doc.keys[s].inputs.append(next());
    doc.keys[s].keys = doc.tokens / 4;
  }
  for (std::int64_t i = 0; i < 96; ++i) {
    const std::int64_t position = 256 * 64 - 65 - (95 - i);
    doc.positions.push_back(position);
    for (auto& tap : doc.queries) tap.append(next());
    doc.evidence.push_back({position + 1, position + 2, (i % 200 + 2) * 64, (i % 200 + 3) * 64});
  }
  return doc;
}

dual_encoder_config make_start(const shape& s) {
  dual_encoder_config c;
  c.hidden = s.hidden;
  c.rank = s.rank;
  c.heads = s.heads;
  c.tokens_per_key = c.key_window = 4;
  c.model_fingerprint = "bench";
  std::uint32_t seed = 7;
  const auto noise = [&](std::int64_t count, double deviation) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& v : x) {
      seed = seed * 1664525u + 1013904223u;
      v = (static_cast<float>(seed >> 8) / static_cast<float>(1 << 23) - 1) *
          static_cast<float>(1.7 * deviation);
    }
    return x;
  };
  for (std::int32_t r = 0; r < s.retrievers; ++r) {
    retriever_weights w;
    w.name = std::to_string(r);
    w.query_layer = r == 2 ? 1 : 0;
    w.key_layer = r == 1 ? 1 : 0;
    w.wq_a = noise(std::int64_t{s.rank} * s.hidden, 1 / std::sqrt(s.hidden));
    w.q_norm = std::vector<float>(static_cast<std::size_t>(s.rank), 1.0f);
    w.wq_b = noise(std::int64_t{s.heads} * 128 * s.rank, 1 / std::sqrt(s.rank));
    w.weights_proj = noise(std::int64_t{s.heads} * s.hidden, 1 / std::sqrt(s.hidden));
    w.wk = noise(std::int64_t{128} * s.hidden, 1 / std::sqrt(s.hidden));
    c.retrievers.push_back(std::move(w));
  }
  return c;
}

/// A whole step of the trainer on two documents in turn, 64 windows of 16K tokens, and where its time goes.
void train_step(benchmark::State& state, shape s, train::precision operands) {
  if (!has_device()) return state.SkipWithError("skipped: no CUDA device");
  static const double ceiling[2] = {measure_products(false), measure_products(true)};
  train::recording_geometry g;
  g.layers = 2;
  g.heads = 1;
  g.entries_per_chunk = 64;
  g.model_fingerprint = "bench";
  g.queries = {{0, tap_kind::hidden, s.hidden}};
  g.keys = {{0, s.hidden, 4, 4, 0}};
  if (s.retrievers > 1) {
    g.queries.push_back({1, tap_kind::hidden, s.hidden});
    g.keys.push_back({1, s.hidden, 4, 4, 0});
  }
  const train::memory_source source(g, {make_document(g, s.hidden, 1), make_document(g, s.hidden, 2)});
  backend_seconds sums;
  bool apart = false;
  train::trainer_options o;
  o.labels.kind = train::label_kind::needed_set;
  o.windows = train::window_options_for(g);
  o.layer_steps = 1000;
  o.ensemble_steps = 0;
  o.tokens_per_step = 1;
  o.windows_per_document = 64;
  o.operands = operands;
  o.backend = [&](const train::backend_setup& setup) {
    return std::make_unique<timed_backend>(cuda::training_on_device()(setup), &sums, &apart);
  };
  train::trainer trainer(source, make_start(s), o);
  for (int i = 0; i < 6; ++i) (void)trainer.step();
  sums = {};
  constexpr int steps = 20;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < steps; ++i) (void)trainer.step();
  must(cudaDeviceSynchronize());
  const double whole =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / steps;
  const double backend = (sums.forward + sums.backward + sums.update) / steps;
  apart = true;
  sums = {};
  for (int i = 0; i < steps; ++i) (void)trainer.step();
  // Multiply-adds of the products that are made, as 2 flop.
  const double keys = 253 * 16, windows = 64, width = s.heads * 128.0, hidden = s.hidden, rank = s.rank;
  const double flop = s.retrievers * (2 * keys * 128 * hidden * 2 + 2 * keys * windows * width +
                                      2 * windows * ((rank + s.heads) * hidden * 2 + width * rank * 3));
  for (auto _ : state) state.SetIterationTime(whole);
  state.counters["ms"] = whole * 1e3;
  state.counters["host_ms"] = (whole - backend) * 1e3;
  state.counters["forward_ms"] = sums.forward / steps * 1e3;
  state.counters["backward_ms"] = sums.backward / steps * 1e3;
  state.counters["update_ms"] = sums.update / steps * 1e3;
  state.counters["TFLOP/s"] = flop / whole * 1e-12;
  state.counters["of_product"] = flop / whole / ceiling[operands == train::precision::bf16];
  state.counters["product_TFLOP/s"] = ceiling[operands == train::precision::bf16] * 1e-12;
}

const shape tinylm{256, 256, 8, 3}, paper{4096, 2048, 128, 1};
BENCHMARK_CAPTURE(train_step, cuda_tinylm_f32, tinylm, train::precision::f32)->UseManualTime()->Iterations(1);
BENCHMARK_CAPTURE(train_step, cuda_tinylm_bf16, tinylm, train::precision::bf16)
    ->UseManualTime()
    ->Iterations(1);
BENCHMARK_CAPTURE(train_step, cuda_paper_f32, paper, train::precision::f32)->UseManualTime()->Iterations(1);
BENCHMARK_CAPTURE(train_step, cuda_paper_bf16, paper, train::precision::bf16)->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace flashmemory_bench
