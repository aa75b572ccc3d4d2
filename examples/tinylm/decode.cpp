// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>

#include "engine.hpp"
#include "kernels.hpp"

namespace tinylm {

namespace fm = flashmemory;

namespace {

using steady = std::chrono::steady_clock;

/// A matrix is cut into this many tasks a thread; below `least_rows` handing work out costs more than doing
/// it.
constexpr std::int64_t least_rows = 64;

struct aligned_deleter {
  void operator()(void* p) const noexcept { ::operator delete (p, std::align_val_t{64}); }
};

}  // namespace

struct engine::step_buffers {
  std::vector<float> residual, input, qkv, attended, delta, gate_up;
  std::unique_ptr<void, aligned_deleter> scratch;
  std::size_t scratch_bytes = 0;
  std::int64_t scratch_chunks = 0;
  std::vector<float> lse;
};

void require(fm::status code, const fm::fault& fault, const char* what) {
  if (code == fm::status::ok) return;
  throw std::runtime_error(
      fmt::format("{}: {}", what, fault.code == code ? fm::describe(fault) : fm::to_string(code)));
}

engine::engine(const model& weights, thread_pool& threads)
    : model_(weights), threads_(threads), step_(std::make_unique<step_buffers>()) {
  const auto& c = model_.config;
  const auto rows = [](std::int64_t width) {
    return std::vector<float>(static_cast<std::size_t>(max_step_tokens * width));
  };
  step_->residual = rows(c.hidden);
  step_->input = rows(c.hidden);
  step_->qkv = rows(c.query_width() + 2 * c.kv_width());
  step_->attended = rows(c.query_width());
  step_->delta = rows(c.hidden);
  step_->gate_up = rows(2 * c.intermediate);
  step_->lse = rows(c.heads);
  logits_.resize(static_cast<std::size_t>(c.vocabulary));
}

engine::~engine() = default;

void engine::project_all(const projection& p, const float* x, std::int32_t tokens, float* y) {
  const std::int64_t pieces = std::clamp<std::int64_t>(p.rows / least_rows, 1, threads_.size());
  const std::int64_t share = (p.rows / pieces + 7) / 8 * 8;
  threads_.for_each(pieces, [&](std::int32_t i) {
    project(p.narrow.data(), std::min(p.rows, i * share),
            i + 1 == pieces ? p.rows : std::min(p.rows, (i + 1) * share), p.cols, x, tokens, y, p.rows);
  });
}

void engine::reserve_scratch(const served_sequence& sequence) {
  const auto& c = model_.config;
  fm::sequence_info info;
  require(sequence.store->info(sequence.handle, &info), sequence.store->last_fault(), "info");
  const auto& g = sequence.store->geometry();
  std::int64_t chunks = g.chunks_for(info.options.max_tokens);
  if (info.options.max_resident_chunks > 0) chunks = std::min(chunks, info.options.max_resident_chunks);
  if (chunks <= step_->scratch_chunks) return;
  step_->scratch_chunks = chunks;
  step_->scratch_bytes = fm::attend_workspace_bytes(g, c.heads, max_step_tokens, chunks);
  step_->scratch.reset(
      ::operator new (std::max<std::size_t>(step_->scratch_bytes, 64), std::align_val_t{64}));
}

std::span<const float> engine::step(const served_sequence& sequence, std::int64_t position,
                                    std::span<const token_id> ids, mass_recorder* recorder) {
  const auto& c = model_.config;
  const auto tokens = static_cast<std::int32_t>(ids.size());
  if (tokens < 1 || tokens > max_step_tokens || position + tokens > c.max_positions) {
    throw std::runtime_error(
        fmt::format("a step of {} tokens at position {} is not possible", tokens, position));
  }
  reserve_scratch(sequence);
  auto& b = *step_;
  const std::int64_t width = model_.layers.front().qkv.rows;
  const fm::batch_item item{sequence.handle, position, tokens};
  const fm::batch items(&item, 1);
  const auto host = fm::stream_ref::host();
  attention_seconds_ = 0;
  if (recorder != nullptr) {
    const auto chunks = sequence.store->geometry().chunks_for(position + tokens);
    recorder->mass.assign(static_cast<std::size_t>(chunks), 0.0f);
  }

  for (std::int32_t t = 0; t < tokens; ++t) {
    const token_id id = ids[static_cast<std::size_t>(t)];
    if (id < 0 || id >= c.vocabulary) throw std::runtime_error("a token id is outside the vocabulary");
    std::copy_n(model_.embedding.wide.data() + std::int64_t{id} * c.hidden, c.hidden,
                b.residual.data() + t * c.hidden);
  }
  for (std::int32_t l = 0; l < c.layers; ++l) {
    const auto& w = model_.layers[static_cast<std::size_t>(l)];
    for (std::int32_t t = 0; t < tokens; ++t) {
      rms_norm(b.residual.data() + t * c.hidden, w.attention_norm.data(), c.norm_eps, c.hidden,
               b.input.data() + t * c.hidden);
    }
    project_all(w.qkv, b.input.data(), tokens, b.qkv.data());
    for (std::int32_t t = 0; t < tokens; ++t) {
      for (std::int32_t h = 0; h < c.heads + c.kv_heads; ++h) {
        model_.rotate(b.qkv.data() + t * width + h * c.head_dim, position + t);
      }
    }

    fm::view<const float, 2> queries(b.qkv.data(), tokens, c.query_width());
    queries.stride[0] = width;
    for (fm::selector* observer : sequence.observers) {
      require(observer->observe(items, l, fm::view<const float, 2>(b.input.data(), tokens, c.hidden), host),
              observer->last_fault(), "observe");
      require(observer->observe_queries(items, l, queries, host), observer->last_fault(), "observe_queries");
    }
    fm::view<const float, 3> k(b.qkv.data() + c.query_width(), tokens, c.kv_heads, c.head_dim);
    k.stride[0] = width;
    fm::view<const float, 3> v = k;
    v.data += c.kv_width();
    require(sequence.store->append(items, l, k, v, host), sequence.store->last_fault(), "append");

    fm::view<const float, 3> q(b.qkv.data(), tokens, c.heads, c.head_dim);
    q.stride[0] = width;
    if (sequence.on_layer)
      sequence.on_layer({l, position, fm::view<const float, 2>(b.input.data(), tokens, c.hidden), q, k});
    fm::attend_options options;
    fm::fault fault;
    options.scratch = {b.scratch.get(), b.scratch_bytes};
    options.threads = threads_.hook();
    options.error = &fault;
    if (recorder != nullptr) options.lse = fm::view<float, 2>(b.lse.data(), tokens, c.heads);
    const auto start = steady::now();
    require(
        fm::sparse_attend(*sequence.store, items, l, q,
                          fm::view<float, 3>(b.attended.data(), tokens, c.heads, c.head_dim), options, host),
        fault, "sparse_attend");
    attention_seconds_ += std::chrono::duration<double>(steady::now() - start).count();
    if (recorder != nullptr) {
      const fm::view<float, 1> mass(recorder->mass.data(), static_cast<std::int64_t>(recorder->mass.size()));
      require(fm::chunk_attention_mass(*sequence.store, item, l, q, options.lse, options, mass, l > 0), fault,
              "chunk_attention_mass");
    }

    project_all(w.output, b.attended.data(), tokens, b.delta.data());
    for (std::int32_t t = 0; t < tokens; ++t) {
      float* h = b.residual.data() + t * c.hidden;
      for (std::int32_t i = 0; i < c.hidden; ++i) h[i] += b.delta[static_cast<std::size_t>(t * c.hidden + i)];
      rms_norm(h, w.mlp_norm.data(), c.norm_eps, c.hidden, b.input.data() + t * c.hidden);
    }
    project_all(w.gate_up, b.input.data(), tokens, b.gate_up.data());
    // project() wants its tokens close together, so the gates move up into the space of the ups before them.
    for (std::int32_t t = 0; t < tokens; ++t) {
      float* gate = b.gate_up.data() + t * 2 * c.intermediate;
      silu_times(gate, gate + c.intermediate, c.intermediate);
      if (t > 0) std::copy_n(gate, c.intermediate, b.gate_up.data() + t * c.intermediate);
    }
    project_all(w.down, b.gate_up.data(), tokens, b.delta.data());
    for (std::int32_t i = 0; i < tokens * c.hidden; ++i) {
      b.residual[static_cast<std::size_t>(i)] += b.delta[static_cast<std::size_t>(i)];
    }
  }

  const float* last = b.residual.data() + (tokens - 1) * c.hidden;
  rms_norm(last, model_.final_norm.data(), c.norm_eps, c.hidden, b.input.data());
  project_all(model_.embedding, b.input.data(), 1, logits_.data());
  return logits_;
}

token_id greedy(std::span<const float> logits) noexcept {
  return static_cast<token_id>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace tinylm
