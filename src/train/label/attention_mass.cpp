// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/train/label/attention_mass.hpp>
#include <limits>
#include <mutex>
#include <utility>

#include "src/core/convert.hpp"
#include "src/core/format.hpp"
#include "src/core/parallel.hpp"
#include "src/train/label/attention_kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

constexpr std::int64_t most_rows = 32;            // of a task: keys are read and transposed once for all
constexpr std::int64_t logit_floats = 4'000'000;  // of a task, above one token's

[[noreturn]] void refuse(status code, const std::string& what) {
  throw argument_error(code, "attention_mass: " + what);
}

template <class T>
void load_strided(const T* from, std::int64_t stride, std::int64_t count, float* out) noexcept {
  for (std::int64_t i = 0; i < count; ++i) out[i] = flashmemory::detail::to_float(from[i * stride]);
}

/// One vector of a tensor as floats.
void load_vector(const void* data, dtype type, std::int64_t offset, std::int64_t stride, std::int64_t count,
                 float* out) noexcept {
  switch (type) {
    case dtype::f32:
      return load_strided(static_cast<const float*>(data) + offset, stride, count, out);
    case dtype::bf16:
      return load_strided(static_cast<const bfloat16*>(data) + offset, stride, count, out);
    case dtype::f16:
      return load_strided(static_cast<const float16*>(data) + offset, stride, count, out);
  }
}

void check_options(const attention_mass_options& o, std::int64_t query_heads) {
  if (!(o.softmax_scale >= 0)) refuse(status::bad_argument, formatted("softmax_scale {}", o.softmax_scale));
  if (!(o.logit_soft_cap >= 0))
    refuse(status::bad_argument, formatted("logit_soft_cap {}", o.logit_soft_cap));
  if (o.max_entries < 1) refuse(status::bad_argument, formatted("max_entries {}", o.max_entries));
  if (!(o.min_mass >= 0 && o.min_mass <= 1))
    refuse(status::bad_argument, formatted("min_mass {}", o.min_mass));
  if (!(o.coverage > 0 && o.coverage <= 1))
    refuse(status::bad_argument, formatted("coverage {}", o.coverage));
  if (o.sink_logits.data != nullptr && o.sink_logits.shape[0] != query_heads)
    refuse(status::bad_shape,
           formatted("{} sink logits for {} query heads", o.sink_logits.shape[0], query_heads));
}

void check_type(const char* name, const_tensor<3> t) {
  if (t.type != dtype::f32 && t.type != dtype::bf16 && t.type != dtype::f16)
    refuse(status::bad_dtype, formatted("{} of type {}", name, to_string(t.type)));
  if (t.data == nullptr && t.shape[0] * t.shape[1] * t.shape[2] > 0)
    refuse(status::null_data, formatted("{} is null", name));
}

/// Picks the heaviest entries of one head.
class head_picker {
 public:
  explicit head_picker(const attention_mass_options& options) : options_(options) {}

  /// \returns false if a logit is NaN or +Inf
  bool pick(const float* logits, std::int64_t count, std::int32_t layer, std::int32_t head,
            token_attention& out) {
    const float largest = detail::largest_logit(logits, count);
    if (std::isnan(largest)) return false;
    if (largest == -std::numeric_limits<float>::infinity()) return true;  // sees nothing
    double sum = detail::sum_of_exp(logits, count, largest);
    if (options_.sink_logits.data != nullptr)
      sum += std::exp(double{options_.sink_logits(head)} - double{largest});
    if (std::isnan(sum)) return false;

    // Below this no mass can reach min_mass; the exact comparison follows.
    const double floor = double{largest} + std::log(double{options_.min_mass} * sum) - 1e-3;
    found_.clear();
    for (std::int64_t e = 0; e < count; ++e) {
      if (!(double{logits[e]} >= floor)) continue;
      const auto mass = static_cast<float>(std::exp(double{logits[e]} - double{largest}) / sum);
      if (mass >= options_.min_mass && mass > 0) found_.push_back({std::min(mass, 1.0f), e});
    }
    const auto keep = std::min(found_.size(), static_cast<std::size_t>(options_.max_entries));
    std::partial_sort(found_.begin(), found_.begin() + static_cast<std::ptrdiff_t>(keep), found_.end(),
                      [](const candidate& a, const candidate& b) {
                        return a.mass != b.mass ? a.mass > b.mass : a.entry < b.entry;
                      });
    double covered = 0;
    for (std::size_t i = 0; i < keep && covered < double{options_.coverage}; ++i) {
      out.push_back({layer, head, found_[i].entry, found_[i].mass});
      covered += double{found_[i].mass};
    }
    return true;
  }

 private:
  struct candidate {
    float mass;
    std::int64_t entry;
  };
  const attention_mass_options& options_;
  std::vector<candidate> found_;
};

[[noreturn]] void refuse_logits(std::int32_t layer) {
  throw error(status::not_finite, formatted("attention_mass: a logit of layer {} is NaN or Inf", layer));
}

/// Many tokens over keys that `load(kv_head, entry, out [key_dim])` reads.
template <class Load>
void run(view<const std::int64_t, 1> positions, const_tensor<3> q, std::int64_t kv_heads,
         std::int32_t tokens_per_entry, std::int32_t layer, const attention_mass_options& options,
         const Load& load, std::vector<token_attention>& out) {
  const std::int64_t tokens = q.shape[0], heads = q.shape[1], dim = q.shape[2];
  const std::int64_t group = heads / kv_heads;
  const float scale =
      options.softmax_scale > 0 ? options.softmax_scale : 1 / std::sqrt(static_cast<float>(dim));
  std::int64_t longest = 0;
  for (std::int64_t t = 0; t < tokens; ++t)
    longest = std::max(longest, (positions(t) + 1) / tokens_per_entry);
  const std::int64_t stride =
      (longest + detail::panel_entries - 1) / detail::panel_entries * detail::panel_entries;
  const std::int64_t rows_that_fit = std::min(most_rows, logit_floats / std::max<std::int64_t>(stride, 1));
  const std::int64_t block = std::max<std::int64_t>(rows_that_fit / group, 1);
  const std::int64_t blocks = (tokens + block - 1) / block;

  std::vector<token_attention> found(static_cast<std::size_t>(tokens * kv_heads));
  std::mutex guard;
  bool failed = false, exhausted = false;
  const auto one_task = [&](std::int64_t first, std::int64_t count, std::int64_t kv_head) {
    std::int64_t seen = 0;
    for (std::int64_t t = first; t < first + count; ++t)
      seen = std::max(seen, (positions(t) + 1) / tokens_per_entry);
    std::vector<float> queries(static_cast<std::size_t>(count * group * dim));
    for (std::int64_t t = 0; t < count; ++t)
      for (std::int64_t h = 0; h < group; ++h)
        load_vector(q.data, q.type, (first + t) * q.stride[0] + (kv_head * group + h) * q.stride[1],
                    q.stride[2], dim, queries.data() + (t * group + h) * dim);
    std::vector<float> panel(static_cast<std::size_t>(dim * detail::panel_entries));
    std::vector<float> key(static_cast<std::size_t>(dim));
    std::vector<float> logits(static_cast<std::size_t>(count * group * stride));
    for (std::int64_t e = 0; e < seen; e += detail::panel_entries) {
      const std::int64_t width = std::min(detail::panel_entries, seen - e);
      for (std::int64_t i = 0; i < width; ++i) {
        load(kv_head, e + i, key.data());
        for (std::int64_t d = 0; d < dim; ++d)
          panel[static_cast<std::size_t>(d * detail::panel_entries + i)] = key[static_cast<std::size_t>(d)];
      }
      detail::panel_logits(queries.data(), count * group, dim, panel.data(), logits.data() + e, stride);
    }
    head_picker picker(options);
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t visible = (positions(first + t) + 1) / tokens_per_entry;
      token_attention& to = found[static_cast<std::size_t>((first + t) * kv_heads + kv_head)];
      for (std::int64_t h = 0; h < group; ++h) {
        float* row = logits.data() + (t * group + h) * stride;
        for (std::int64_t e = 0; e < visible; ++e) row[e] *= scale;
        if (options.logit_soft_cap > 0)
          for (std::int64_t e = 0; e < visible; ++e)
            row[e] = options.logit_soft_cap * std::tanh(row[e] / options.logit_soft_cap);
        if (!picker.pick(row, visible, layer, static_cast<std::int32_t>(kv_head * group + h), to)) {
          const std::lock_guard<std::mutex> lock(guard);
          failed = true;
        }
      }
    }
  };
  flashmemory::detail::parallel_for(options.threads, static_cast<std::int32_t>(blocks * kv_heads),
                                    [&](std::int32_t task) {
                                      // What a thread throws would end the program.
                                      try {
                                        const std::int64_t first = task / kv_heads * block;
                                        one_task(first, std::min(block, tokens - first), task % kv_heads);
                                      } catch (const std::bad_alloc&) {
                                        const std::lock_guard<std::mutex> lock(guard);
                                        exhausted = true;
                                      }
                                    });
  if (exhausted) throw std::bad_alloc();
  if (failed) refuse_logits(layer);
  out.resize(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < kv_heads; ++h) {
      const auto& part = found[static_cast<std::size_t>(t * kv_heads + h)];
      auto& to = out[static_cast<std::size_t>(t)];
      to.insert(to.end(), part.begin(), part.end());
    }
}

void check_queries(view<const std::int64_t, 1> positions, const_tensor<3> q, std::int64_t kv_heads,
                   std::int64_t key_dim, std::int32_t tokens_per_entry, std::int64_t entries,
                   const attention_mass_options& options, const std::vector<token_attention>& out) {
  check_type("q", q);
  if (positions.shape[0] != q.shape[0])
    refuse(status::bad_shape, formatted("{} positions for {} queries", positions.shape[0], q.shape[0]));
  if (q.shape[0] > 0 && positions.data == nullptr) refuse(status::null_data, "positions is null");
  if (kv_heads < 1 || q.shape[1] < 1 || q.shape[1] % kv_heads != 0)
    refuse(status::bad_shape, formatted("{} query heads over {} KV heads", q.shape[1], kv_heads));
  if (q.shape[2] != key_dim || key_dim < 1)
    refuse(status::bad_shape, formatted("queries of {} and keys of {} elements", q.shape[2], key_dim));
  if (tokens_per_entry < 1) refuse(status::bad_argument, formatted("tokens_per_entry {}", tokens_per_entry));
  check_options(options, q.shape[1]);
  if (!out.empty() && static_cast<std::int64_t>(out.size()) != q.shape[0])
    refuse(status::bad_shape, formatted("out of {} tokens for {} queries", out.size(), q.shape[0]));
  for (std::int64_t t = 0; t < positions.shape[0]; ++t)
    if (positions(t) < 0 || (positions(t) + 1) / tokens_per_entry > entries)
      refuse(status::out_of_range, formatted("position {} with {} entries", positions(t), entries));
}

}  // namespace

void attention_mass(view<const std::int64_t, 1> positions, const_tensor<3> q, const_tensor<3> keys,
                    std::int32_t tokens_per_entry, std::int32_t layer, const attention_mass_options& options,
                    std::vector<token_attention>& out) {
  check_type("keys", keys);
  check_queries(positions, q, keys.shape[1], keys.shape[2], tokens_per_entry, keys.shape[0], options, out);
  run(
      positions, q, keys.shape[1], tokens_per_entry, layer, options,
      [&](std::int64_t head, std::int64_t entry, float* key) {
        load_vector(keys.data, keys.type, entry * keys.stride[0] + head * keys.stride[1], keys.stride[2],
                    keys.shape[2], key);
      },
      out);
}

void attention_mass(const chunk_store& store, sequence_handle sequence, view<const std::int64_t, 1> positions,
                    const_tensor<3> q, std::int32_t layer, const attention_mass_options& options,
                    std::vector<token_attention>& out) {
  const chunk_layout layout(store.geometry());
  const kv_geometry& g = layout.geometry;
  if (layer < 0 || layer >= g.layers) refuse(status::out_of_range, formatted("layer {}", layer));
  resident_set resident;
  if (const status code = store.resident(sequence, layer, &resident); code != status::ok)
    throw error(code, formatted("attention_mass: {}", describe(store.last_fault())));
  check_queries(positions, q, g.kv_heads, g.key_dim, g.tokens_per_entry, g.entries_for(resident.tokens),
                options, out);
  std::int64_t newest = -1;
  for (std::int64_t t = 0; t < positions.shape[0]; ++t) newest = std::max(newest, positions(t));
  const std::int64_t entries = g.entries_for(newest + 1);
  for (std::int64_t c = 0; c * g.entries_per_chunk < entries; ++c)
    if (c >= resident.count || resident.chunks[c].id != c)
      throw error(status::not_resident,
                  formatted("attention_mass: chunk {} is not resident, and mass counts all history", c));
  run(
      positions, q, g.kv_heads, g.tokens_per_entry, layer, options,
      [&](std::int64_t head, std::int64_t entry, float* key) {
        const std::byte* block =
            resident.chunks[entry / g.entries_per_chunk].data + layout.key_offset(layer, head);
        load_vector(block, g.type, entry % g.entries_per_chunk * g.key_dim, 1, g.key_dim, key);
      },
      out);
}

void attention_mass(view<const float, 2> logits, std::int32_t layer, const attention_mass_options& options,
                    token_attention& out) {
  check_options(options, logits.shape[0]);
  if (logits.size() > 0 && logits.data == nullptr) refuse(status::null_data, "logits is null");
  if (logits.shape[1] > 1 && logits.stride[1] != 1)
    refuse(status::bad_shape, formatted("logits with a last stride of {}", logits.stride[1]));
  token_attention found;
  head_picker picker(options);
  for (std::int64_t h = 0; h < logits.shape[0]; ++h)
    if (!picker.pick(logits.data + h * logits.stride[0], logits.shape[1], layer, static_cast<std::int32_t>(h),
                     found))
      refuse_logits(layer);
  out.insert(out.end(), found.begin(), found.end());
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
