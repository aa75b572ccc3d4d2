// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/attend/deepseek_v4.hpp"
#include "src/core/convert.hpp"
#include "src/core/parallel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace deepseek_v4 {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr std::int32_t head_block = 8;  ///< heads that one task dequantises an entry for

status check_source(const entry_source& source, std::int64_t rows, fault* error) noexcept {
  if (source.entries.data == nullptr && source.entries.shape[1] > 0 && rows > 0)
    return refuse(status::null_data, "entries", -1, -1, error);
  if (source.entries.data == nullptr) return status::ok;
  if (source.entries.shape[0] != rows) {
    return refuse(status::bad_shape, "rows of entries", rows, source.entries.shape[0], error);
  }
  if (source.entries.shape[1] < 0)
    return refuse(status::bad_shape, "capacity of entries", 0, source.entries.shape[1], error);
  if (source.counts.data != nullptr && source.counts.shape[0] != rows) {
    return refuse(status::bad_shape, "rows of counts", rows, source.counts.shape[0], error);
  }
  return check_pool(source.pool, error);
}

status check(const entry_source& window, const entry_source& selected, const const_tensor<3>& q,
             const tensor<3>& out, const attend_options& options) noexcept {
  fault* error = options.error;
  const std::int64_t rows = q.shape[0], heads = q.shape[1];
  if (rows < 0) return refuse(status::bad_shape, "rows of q", 0, rows, error);
  if (heads < 1 || heads > max_heads) return refuse(status::bad_shape, "heads of q", max_heads, heads, error);
  if (q.shape[2] != entry_dim) return refuse(status::bad_shape, "dim of q", entry_dim, q.shape[2], error);
  const char* const names[] = {"rows of out", "heads of out", "dim of out"};
  for (int d = 0; d < 3; ++d) {
    if (out.shape[d] != q.shape[d])
      return refuse(status::bad_shape, names[d], q.shape[d], out.shape[d], error);
  }
  if (q.stride[2] != 1) return refuse(status::bad_shape, "stride of q", 1, q.stride[2], error);
  if (out.stride[2] != 1) return refuse(status::bad_shape, "stride of out", 1, out.stride[2], error);
  if (q.type != dtype::f32 && q.type != dtype::bf16 && q.type != dtype::f16) {
    return refuse(status::bad_dtype, "q", -1, -1, error);
  }
  if (out.type != dtype::f32 && out.type != dtype::bf16 && out.type != dtype::f16) {
    return refuse(status::bad_dtype, "out", -1, -1, error);
  }
  if (options.sink_logits.data != nullptr && options.sink_logits.shape[0] != heads) {
    return refuse(status::bad_shape, "heads of sink_logits", heads, options.sink_logits.shape[0], error);
  }
  if (options.lse.data != nullptr) {
    if (options.lse.shape[0] != rows) {
      return refuse(status::bad_shape, "rows of lse", rows, options.lse.shape[0], error);
    }
    if (options.lse.shape[1] != heads) {
      return refuse(status::bad_shape, "heads of lse", heads, options.lse.shape[1], error);
    }
  }
  if (!std::isfinite(options.softmax_scale))
    return refuse(status::bad_argument, "softmax_scale", -1, -1, error);
  if (options.logit_soft_cap != 0)
    return refuse(status::unsupported, "logit_soft_cap with DeepSeek-V4's entries", 0, -1, error);
  if (options.entries.data != nullptr)
    return refuse(status::unsupported, "entries: lists are an entry_source here", -1, -1, error);
  for (const entry_source* source : {&window, &selected}) {
    if (const status bad = check_source(*source, rows, error); bad != status::ok) return bad;
  }
  if (rows > 0 && q.data == nullptr) return refuse(status::null_data, "q", -1, -1, error);
  if (rows > 0 && out.data == nullptr) return refuse(status::null_data, "out", -1, -1, error);
  return status::ok;
}

/// Online softmax of up to head_block heads of one row over entries that come one at a time.
struct head_states {
  float q[head_block][entry_dim];
  float sum[head_block][entry_dim] = {};  // of weight * entry, relative to max
  float max[head_block];
  float weight[head_block] = {};
  std::int32_t heads = 0;

  void add(const float* entry, float scale) noexcept {
    for (std::int32_t h = 0; h < heads; ++h) {
      // Independent partial sums: one chain of 512 additions would be as slow as it is inexact.
      float part[16] = {};
      for (int i = 0; i < entry_dim; i += 16) {
        for (int j = 0; j < 16; ++j) part[j] += q[h][i + j] * entry[i + j];
      }
      float dot = 0;
      for (int j = 0; j < 16; ++j) dot += part[j];
      const float logit = dot * scale;
      if (logit == -inf) continue;
      if (logit > max[h]) {
        const float factor = max[h] == -inf ? 0 : std::exp(max[h] - logit);
        weight[h] *= factor;
        for (int i = 0; i < entry_dim; ++i) sum[h][i] *= factor;
        max[h] = logit;
      }
      const float p = std::exp(logit - max[h]);
      weight[h] += p;
      for (int i = 0; i < entry_dim; ++i) sum[h][i] += p * entry[i];
    }
  }
};

void add_source(const entry_source& source, std::int64_t row, float scale, head_states& states) noexcept {
  if (source.entries.data == nullptr) return;
  const std::int64_t capacity = source.entries.shape[1];
  const std::int64_t count =
      source.counts.data == nullptr ? capacity : std::clamp<std::int64_t>(source.counts(row), 0, capacity);
  const std::int64_t pool_entries = source.pool.num_pages * source.pool.entries_per_page;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t entry = source.entries(row, i);
    if (entry < 0 || entry >= pool_entries) continue;
    const place at = find(source.pool, entry);
    float values[entry_dim];
    dequantise_entry(at.row, at.scales, values);
    states.add(values, scale);
  }
}

}  // namespace

status sparse_attend(const entry_source& window, const entry_source& selected, const_tensor<3> q,
                     tensor<3> out, const attend_options& options) noexcept {
  if (const status bad = check(window, selected, q, out, options); bad != status::ok) return bad;
  const std::int64_t rows = q.shape[0], heads = q.shape[1];
  const std::int64_t blocks = (heads + head_block - 1) / head_block;
  if (rows * blocks > std::numeric_limits<std::int32_t>::max()) {
    return refuse(status::bad_shape, "rows of q", std::numeric_limits<std::int32_t>::max(), rows,
                  options.error);
  }
  const float scale = options.softmax_scale == 0 ? 0.044194173824159216f : options.softmax_scale;
  detail::parallel_for(options.threads, static_cast<std::int32_t>(rows * blocks), [&](std::int32_t task) {
    const std::int64_t row = task / blocks, first = task % blocks * head_block;
    head_states states;
    states.heads = static_cast<std::int32_t>(std::min<std::int64_t>(head_block, heads - first));
    std::fill(states.max, states.max + head_block, -inf);
    for (std::int32_t h = 0; h < states.heads; ++h) {
      const std::int64_t at = row * q.stride[0] + (first + h) * q.stride[1];
      for (int i = 0; i < entry_dim; ++i) states.q[h][i] = detail::load_float(q.data, q.type, at + i);
    }
    add_source(window, row, scale, states);
    add_source(selected, row, scale, states);
    for (std::int32_t h = 0; h < states.heads; ++h) {
      const float sink = options.sink_logits.data != nullptr ? options.sink_logits(first + h) : -inf;
      const float max = std::max(sink, states.max[h]);
      const float base = max == -inf ? 0 : max;
      const float factor = states.weight[h] == 0 ? 0 : std::exp(states.max[h] - base);
      // A sink of +inf has all the weight, and no value.
      const float denominator = sink == inf ? inf : states.weight[h] * factor + std::exp(sink - base);
      const std::int64_t at = row * out.stride[0] + (first + h) * out.stride[1];
      for (int i = 0; i < entry_dim; ++i) {
        detail::store_float(out.data, out.type, at + i,
                            denominator == 0 ? 0 : states.sum[h][i] * factor / denominator);
      }
      if (options.lse.data != nullptr) {
        options.lse(row, first + h) = denominator == 0 ? -inf : base + std::log(denominator);
      }
    }
  });
  return status::ok;
}

}  // namespace deepseek_v4
}  // namespace v0
}  // namespace flashmemory
