// SPDX-License-Identifier: MIT
#include <cblas.h>

#include <algorithm>

#include "engine.hpp"
#include "kernels.hpp"

// OpenBLAS would start threads of its own, which spin against the pool's; its GEMMs are called from the pool
// instead, each on one thread. Weak, so that any other BLAS links too.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace tinylm {

namespace fm = flashmemory;

namespace {

constexpr std::int64_t token_block = 256;  // rows of one GEMM: weights stay in L2 while they pass

/// y[rows, outputs] = x[rows, inputs] * w^T.
void multiply(const projection& w, const float* x, std::int64_t rows, float* y) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), static_cast<int>(w.rows),
              static_cast<int>(w.cols), 1.0f, x, static_cast<int>(w.cols), w.wide.data(),
              static_cast<int>(w.cols), 0.0f, y, static_cast<int>(w.rows));
}

std::vector<std::vector<float>> scratch(std::int32_t threads, std::int64_t floats) {
  return std::vector<std::vector<float>>(static_cast<std::size_t>(threads),
                                         std::vector<float>(static_cast<std::size_t>(floats)));
}

}  // namespace

struct engine::prompt_buffers {
  std::int64_t tokens = 0;
  std::vector<float> residual;           ///< [tokens, hidden]
  std::vector<float> input;              ///< [tokens, hidden], normed
  std::vector<float> qkv;                ///< [tokens, query + 2 kv], rotated
  std::vector<float> attended;           ///< [tokens, query]
  std::vector<std::vector<float>> rows;  ///< per thread, token_block rows of the widest kind
  std::vector<std::byte> scratch;        ///< of sparse_attend()
};

std::span<const float> engine::prefill(const served_sequence& sequence, std::span<const token_id> ids,
                                       const progress_callback& progress, prompt_capture* capture) {
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
  const auto& c = model_.config;
  const auto tokens = static_cast<std::int64_t>(ids.size());
  if (tokens < 1 || tokens > c.max_positions) throw std::runtime_error("the prompt is empty or too long");
  const std::int64_t width = model_.layers.front().qkv.rows;
  const std::int64_t blocks = (tokens + token_block - 1) / token_block;

  prompt_buffers b;
  b.tokens = tokens;
  b.residual.resize(static_cast<std::size_t>(tokens * c.hidden));
  b.input.resize(b.residual.size());
  b.qkv.resize(static_cast<std::size_t>(tokens * width));
  b.attended.resize(static_cast<std::size_t>(tokens * c.query_width()));
  fm::prompt_extent extent;
  extent.rows = tokens;
  extent.streamed = true;  // what the sequence's quota has no room for is read where it is
  extent.concurrency = threads_.size();
  b.scratch.resize(fm::attend_workspace_bytes(sequence.store->geometry(), c.heads, 0, 0, extent));
  b.rows = scratch(threads_.size(), token_block * (2 * c.hidden + 2 * c.intermediate));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t id = ids[static_cast<std::size_t>(t)];
    if (id < 0 || id >= c.vocabulary) throw std::runtime_error("a token id is outside the vocabulary");
    std::copy_n(model_.embedding.wide.data() + id * c.hidden, c.hidden, b.residual.data() + t * c.hidden);
  }

  const fm::batch_item item{sequence.handle, 0, static_cast<std::int32_t>(tokens),
                            fm::item_phase::prompt_end};
  const fm::batch items(&item, 1);

  for (std::int32_t l = 0; l < c.layers; ++l) {
    const auto& w = model_.layers[static_cast<std::size_t>(l)];
    threads_.for_each(blocks, [&](std::int32_t block) {
      const std::int64_t first = block * token_block;
      const std::int64_t rows = std::min(token_block, tokens - first);
      float* x = b.input.data() + first * c.hidden;
      for (std::int64_t r = 0; r < rows; ++r) {
        rms_norm(b.residual.data() + (first + r) * c.hidden, w.attention_norm.data(), c.norm_eps, c.hidden,
                 x + r * c.hidden);
      }
      float* qkv = b.qkv.data() + first * width;
      multiply(w.qkv, x, rows, qkv);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int32_t h = 0; h < c.heads + c.kv_heads; ++h) {
          model_.rotate(qkv + r * width + h * c.head_dim, first + r);
        }
      }
    });
    if (capture != nullptr) {
      if (const auto wanted = capture->inputs.find(l); wanted != capture->inputs.end())
        wanted->second = b.input;
    }

    for (fm::selector* observer : sequence.observers) {
      require(observer->observe(items, l, fm::view<const float, 2>(b.input.data(), tokens, c.hidden),
                                fm::stream_ref::host()),
              observer->last_fault(), "observe");
      fm::view<const float, 2> queries(b.qkv.data(), tokens, c.query_width());
      queries.stride[0] = width;
      require(observer->observe_queries(items, l, queries, fm::stream_ref::host()), observer->last_fault(),
              "observe_queries");
    }
    fm::view<const float, 3> k(b.qkv.data() + c.query_width(), tokens, c.kv_heads, c.head_dim);
    k.stride[0] = width;
    fm::view<const float, 3> v = k;
    v.data += c.kv_width();
    require(sequence.store->append(items, l, k, v, fm::stream_ref::host()), sequence.store->last_fault(),
            "append");

    fm::view<const float, 3> q(b.qkv.data(), tokens, c.heads, c.head_dim);
    q.stride[0] = width;
    if (sequence.on_layer)
      sequence.on_layer({l, 0, fm::view<const float, 2>(b.input.data(), tokens, c.hidden), q, k});
    fm::attend_options options;
    fm::fault fault;
    options.reach = fm::attend_reach::everything;
    options.scratch = {b.scratch.data(), b.scratch.size()};
    options.threads = threads_.hook();
    options.error = &fault;
    require(fm::sparse_attend(*sequence.store, items, l, q,
                              fm::view<float, 3>(b.attended.data(), tokens, c.heads, c.head_dim), options,
                              fm::stream_ref::host()),
            fault, "sparse_attend");

    threads_.for_each(blocks, [&](std::int32_t block) {
      const std::int64_t first = block * token_block;
      const std::int64_t rows = std::min(token_block, tokens - first);
      float* delta = b.rows[static_cast<std::size_t>(thread_pool::current())].data();
      float* normed = delta + token_block * c.hidden;
      float* gate_up = normed + token_block * c.hidden;
      float* h = b.residual.data() + first * c.hidden;
      multiply(w.output, b.attended.data() + first * c.query_width(), rows, delta);
      for (std::int64_t i = 0; i < rows * c.hidden; ++i) h[i] += delta[i];
      for (std::int64_t r = 0; r < rows; ++r) {
        rms_norm(h + r * c.hidden, w.mlp_norm.data(), c.norm_eps, c.hidden, normed + r * c.hidden);
      }
      multiply(w.gate_up, normed, rows, gate_up);
      for (std::int64_t r = 0; r < rows; ++r) {
        float* gate = gate_up + r * 2 * c.intermediate;
        silu_times(gate, gate + c.intermediate, c.intermediate);
      }
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows), c.hidden, c.intermediate,
                  1.0f, gate_up, 2 * c.intermediate, w.down.wide.data(), c.intermediate, 1.0f, h, c.hidden);
    });
    if (progress) progress(l + 1, c.layers);
  }

  const std::int64_t wanted = capture != nullptr ? tokens : 1;
  std::vector<float> normed(static_cast<std::size_t>(wanted * c.hidden));
  for (std::int64_t r = 0; r < wanted; ++r) {
    rms_norm(b.residual.data() + (tokens - wanted + r) * c.hidden, model_.final_norm.data(), c.norm_eps,
             c.hidden, normed.data() + r * c.hidden);
  }
  std::vector<float> all(static_cast<std::size_t>(wanted * c.vocabulary));
  multiply(model_.embedding, normed.data(), wanted, all.data());
  logits_.assign(all.end() - c.vocabulary, all.end());
  if (capture != nullptr) {
    capture->hidden = std::move(b.residual);
    capture->logits = std::move(all);
  }
  return logits_;
}

}  // namespace tinylm
