// SPDX-License-Identifier: MIT
// Attention of many query rows at once: the rows of a prompt share what they read.
#if defined(FLASHMEMORY_CPU_ATTEND_PROMPT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_PROMPT_INL
#undef FLASHMEMORY_CPU_ATTEND_PROMPT_INL
#else
#define FLASHMEMORY_CPU_ATTEND_PROMPT_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <flashmemory/cpu/attend/attend-inl.hpp>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {

// Query rows lie in the lanes of vectors, so that softmax needs no sum over lanes, K is read as it is stored, element by
// element, and neither K nor V is transposed. A panel is two or three vectors of rows: with the entries beside it, its
// accumulators and operands just fill the registers (15 of 16, 28 of 32).
#undef FLASHMEMORY_CPU_ATTEND_PANEL_VECTORS
#undef FLASHMEMORY_CPU_ATTEND_PANEL_ENTRIES
#undef FLASHMEMORY_CPU_ATTEND_VALUE_ROWS
#if HWY_TARGET == HWY_SCALAR
#define FLASHMEMORY_CPU_ATTEND_PANEL_VECTORS 2
#define FLASHMEMORY_CPU_ATTEND_PANEL_ENTRIES 6
#define FLASHMEMORY_CPU_ATTEND_VALUE_ROWS 6
#elif HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
#define FLASHMEMORY_CPU_ATTEND_PANEL_VECTORS 3
#define FLASHMEMORY_CPU_ATTEND_PANEL_ENTRIES 8
#define FLASHMEMORY_CPU_ATTEND_VALUE_ROWS 12
#else
#define FLASHMEMORY_CPU_ATTEND_PANEL_VECTORS 2
#define FLASHMEMORY_CPU_ATTEND_PANEL_ENTRIES 6
#define FLASHMEMORY_CPU_ATTEND_VALUE_ROWS 6
#endif
// The accumulators are arrays, which stay in registers only where loops over them are unrolled.
#undef FLASHMEMORY_CPU_ATTEND_UNROLL
#if defined(__clang__)
#define FLASHMEMORY_CPU_ATTEND_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define FLASHMEMORY_CPU_ATTEND_UNROLL _Pragma("GCC unroll 24")
#else
#define FLASHMEMORY_CPU_ATTEND_UNROLL
#endif
inline constexpr int panel_vectors = FLASHMEMORY_CPU_ATTEND_PANEL_VECTORS;
inline constexpr int panel_entries = FLASHMEMORY_CPU_ATTEND_PANEL_ENTRIES;
inline constexpr int value_rows = FLASHMEMORY_CPU_ATTEND_VALUE_ROWS;

template <class D>
inline constexpr int panel_rows = panel_vectors* lanes<D>;

static_assert(prompt_block_entries % panel_entries == 0 ||
              block_entries + panel_entries <= prompt_block_entries);
static_assert(prompt_rows % value_rows == 0);

/// Packs the queries of up to prompt_rows rows of a KV head, panel by panel: [panel][key_dim][panel_rows]. Rows from
/// `rows` to `padded` are zero.
template <class D, class Call>
void pack_prompt(D d, const Call& call, const query_tokens& tokens, std::int64_t head, std::int64_t first,
                 int rows, int padded, float* HWY_RESTRICT to) noexcept {
  constexpr int width = panel_rows<D>;
  const int dim = call.key_dim;
  HWY_ALIGN float row[max_dim];
  for (int r = 0; r < padded; ++r) {
    if (r < rows) {
      pack_queries(d, call, tokens, head, first + r, 1, row);
    } else {
      std::fill_n(row, dim, 0.0f);
    }
    float* const panel = to + std::int64_t{r / width} * width * dim + r % width;
    for (int i = 0; i < dim; ++i) panel[std::int64_t{i} * width] = row[i];
  }
}

/// Widens the keys of a block, in the order of Elements' own, and fills up with zeros to whole groups of entries.
template <class Elements, class D>
void widen_keys(D d, const rows_view<Elements>& from, float* HWY_RESTRICT to) noexcept {
  for (int e = 0; e < from.count; ++e) {
    float* const row = to + std::int64_t{e} * from.length;
    for (int i = 0; i < from.length; i += 2 * lanes<D>) {
      hn::Vec<D> a, b;
      Elements::load(d, from[e], i, a, b);
      hn::Store(a, d, row + i);
      hn::Store(b, d, row + i + lanes<D>);
    }
  }
  for (int e = from.count; e % panel_entries != 0; ++e) {
    std::fill_n(to + std::int64_t{e} * from.length, from.length, 0.0f);
  }
}

/// Widens the values of a block, pair of vectors by pair: [value_dim / 2 N][block_entries][2 N].
template <class Elements, class D>
void widen_values(D d, const rows_view<Elements>& from, float* HWY_RESTRICT to) noexcept {
  constexpr int pair = 2 * lanes<D>;
  for (int e = 0; e < from.count; ++e) {
    for (int i = 0; i < from.length; i += pair) {
      hn::Vec<D> a, b;
      Elements::load(d, from[e], i, a, b);
      float* const at = to + std::int64_t{i} * block_entries + std::int64_t{e} * pair;
      hn::Store(a, d, at);
      hn::Store(b, d, at + lanes<D>);
    }
  }
}

/// logits[e][r] = keys[e] . q[r] for a panel of rows and the first `count` keys; rows of logits lie prompt_rows apart.
template <class D>
HWY_NOINLINE void dot_panel(D d, const float* HWY_RESTRICT q, const float* HWY_RESTRICT keys, int count,
                            int dim, float* HWY_RESTRICT logits) noexcept {
  using V = hn::Vec<D>;
  constexpr int n = lanes<D>, width = panel_rows<D>;
  for (int e = 0; e < count; e += panel_entries) {
    V sum[panel_entries][panel_vectors];
    FLASHMEMORY_CPU_ATTEND_UNROLL
    for (auto& entry : sum) {
      FLASHMEMORY_CPU_ATTEND_UNROLL
      for (V& s : entry) s = hn::Zero(d);
    }
    const float* const key = keys + std::int64_t{e} * dim;
    for (int i = 0; i < dim; ++i) {
      V rows[panel_vectors];
      FLASHMEMORY_CPU_ATTEND_UNROLL
      for (int v = 0; v < panel_vectors; ++v) rows[v] = hn::Load(d, q + i * width + v * n);
      FLASHMEMORY_CPU_ATTEND_UNROLL
      for (int k = 0; k < panel_entries; ++k) {
        const V element = hn::Set(d, key[k * dim + i]);
        FLASHMEMORY_CPU_ATTEND_UNROLL
        for (int v = 0; v < panel_vectors; ++v) sum[k][v] = hn::MulAdd(element, rows[v], sum[k][v]);
      }
    }
    FLASHMEMORY_CPU_ATTEND_UNROLL
    for (int k = 0; k < panel_entries; ++k) {
      FLASHMEMORY_CPU_ATTEND_UNROLL
      for (int v = 0; v < panel_vectors; ++v) hn::Store(sum[k][v], d, logits + (e + k) * prompt_rows + v * n);
    }
  }
}

/// Brings the logits of `rows` rows to what `call` makes of them: scales of entries, the logit policy.
template <class D, class Call>
void finish_prompt(D d, const Call& call, const query_tokens& tokens, std::int64_t head, std::int64_t first,
                   int rows, const entry_block& block, float* HWY_RESTRICT logits) noexcept {
  using logits_type = decltype(call.logits);
  if constexpr (Call::keys_type::scaled) {
    for (int e = 0; e < block.count; ++e) {
      const auto scale = hn::Set(d, call.keys.scale(head, block.slot[e]));
      for (int r = 0; r < rows; r += lanes<D>) {
        float* const at = logits + e * prompt_rows + r;
        hn::Store(hn::Mul(hn::Load(d, at), scale), d, at);
      }
    }
  }
  if constexpr (logits_type::elementwise) {
    for (int e = 0; call.logits.changes() && e < block.count; ++e) {
      for (int r = 0; r < rows; r += lanes<D>) {
        float* const at = logits + e * prompt_rows + r;
        hn::Store(call.logits.change(d, hn::Load(d, at)), d, at);
      }
    }
  } else {
    HWY_ALIGN float row[block_entries + lanes<D>];
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = first + r;
      const query_place place = {tokens.first_token + at / call.group,
                                 std::int32_t(head * call.group + at % call.group),
                                 tokens.visible(at / call.group) - 1};
      for (int e = 0; e < block.count; ++e) row[e] = logits[e * prompt_rows + r];
      pad_logits(d, row, block.count);
      call.logits.apply(d, row, block.count, block.position, place);
      for (int e = 0; e < block.count; ++e) logits[e * prompt_rows + r] = row[e];
    }
  }
}

/// Turns logits into weights and brings the rows' states up to date.
/// \param rows     whole vectors of them
/// \param seen     [rows] how many of the block's entries each row may see; null = all
/// \param factors  [rows] out: what earlier sums must be multiplied with
template <class D>
HWY_NOINLINE void weigh_prompt(D d, float* HWY_RESTRICT logits, int count, int rows,
                               const float* HWY_RESTRICT seen, float* HWY_RESTRICT maxima,
                               float* HWY_RESTRICT denominators, float* HWY_RESTRICT factors) noexcept {
  const auto none = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int r = 0; r < rows; r += lanes<D>) {
    float* const at = logits + r;
    if (seen != nullptr) {
      const auto limit = hn::Load(d, seen + r);
      for (int e = 0; e < count; ++e) {
        const auto hidden = hn::Ge(hn::Set(d, float(e)), limit);
        hn::Store(hn::IfThenElse(hidden, none, hn::Load(d, at + e * prompt_rows)), d, at + e * prompt_rows);
      }
    }
    const auto old = hn::Load(d, maxima + r);
    auto top = old;
    for (int e = 0; e < count; ++e) {  // a NaN is no maximum
      const auto logit = hn::Load(d, at + e * prompt_rows);
      top = hn::IfThenElse(hn::Gt(logit, top), logit, top);
    }
    const auto base = hn::IfThenZeroElse(hn::Eq(top, none), top);
    auto sum = hn::Zero(d);
    for (int e = 0; e < count; ++e) {
      const auto weight = exp_or_nan(d, hn::Sub(hn::Load(d, at + e * prompt_rows), base));
      hn::Store(weight, d, at + e * prompt_rows);
      sum = hn::Add(sum, weight);
    }
    const auto factor = hn::IfThenElse(hn::Eq(top, old), hn::Set(d, 1.0f), exp_or_nan(d, hn::Sub(old, base)));
    hn::Store(factor, d, factors + r);
    hn::Store(hn::MulAdd(hn::Load(d, denominators + r), factor, sum), d, denominators + r);
    hn::Store(top, d, maxima + r);
  }
}

/// sums[r] += sum over entries [from, to) of weights[e][r] * values[e], for kRows rows side by side.
template <int kRows, class D>
HWY_INLINE void add_rows(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT values, int from,
                         int to, const float* HWY_RESTRICT factors, int dim,
                         float* HWY_RESTRICT sums) noexcept {
  using V = hn::Vec<D>;
  constexpr int n = lanes<D>, pair = 2 * n;
  for (int i = 0; i < dim; i += pair) {
    V sum[kRows][2];
    FLASHMEMORY_CPU_ATTEND_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float* const row = sums + std::int64_t{r} * dim + i;
      sum[r][0] = hn::Load(d, row);
      sum[r][1] = hn::Load(d, row + n);
      if (factors != nullptr) {
        const V factor = hn::Set(d, factors[r]);
        sum[r][0] = hn::Mul(sum[r][0], factor);
        sum[r][1] = hn::Mul(sum[r][1], factor);
      }
    }
    const float* value = values + std::int64_t{i} * block_entries + std::int64_t{from} * pair;
    for (int e = from; e < to; ++e, value += pair) {
      const V a = hn::Load(d, value), b = hn::Load(d, value + n);
      FLASHMEMORY_CPU_ATTEND_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const V weight = hn::Set(d, weights[e * prompt_rows + r]);
        sum[r][0] = hn::MulAdd(weight, a, sum[r][0]);
        sum[r][1] = hn::MulAdd(weight, b, sum[r][1]);
      }
    }
    FLASHMEMORY_CPU_ATTEND_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float* const row = sums + std::int64_t{r} * dim + i;
      hn::Store(sum[r][0], d, row);
      hn::Store(sum[r][1], d, row + n);
    }
  }
}

/// Adds a block's values to the sums of `rows` rows, whole groups of value_rows. An entry that a row may not see is not
/// even multiplied with zero: it may hold anything.
template <class D>
HWY_NOINLINE void add_prompt(D d, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT values,
                             int count, int rows, const float* HWY_RESTRICT seen,
                             const float* HWY_RESTRICT factors, int dim, float* HWY_RESTRICT sums) noexcept {
  for (int r = 0; r < rows; r += value_rows) {
    int common = count;
    if (seen != nullptr) {
      for (int k = 0; k < value_rows; ++k) common = std::min(common, int(seen[r + k]));
    }
    float* const group = sums + std::int64_t{r} * dim;
    add_rows<value_rows>(d, weights + r, values, 0, common, factors + r, dim, group);
    for (int k = 0; seen != nullptr && k < value_rows; ++k) {
      const int own = std::min(count, int(seen[r + k]));
      if (own > common)
        add_rows<1>(d, weights + r + k, values, common, own, nullptr, dim, group + std::int64_t{k} * dim);
    }
  }
}

/// What attend_prompt_rows() keeps between calls, and what it works in. 64-byte aligned.
struct prompt_tile {
  float* maxima = nullptr;        ///< [prompt_rows]
  float* denominators = nullptr;  ///< [prompt_rows]
  float* sums = nullptr;          ///< [prompt_rows, value_dim], in Values' own order
  float* work = nullptr;          ///< [prompt_work_floats()]
};

/// Before the first of the calls for some rows.
inline void begin_prompt_rows(const prompt_tile& tile, int value_dim) noexcept {
  std::fill_n(tile.maxima, prompt_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(tile.denominators, prompt_rows, 0.0f);
  std::fill_n(tile.sums, prompt_rows * value_dim, 0.0f);
}

/// Adds what a walk hands out to the softmax of rows [first, first + rows) of one KV head, at most prompt_rows. Rows are
/// those of query_part: row = token * group + head within the group. Several calls with consecutive parts of a list, cut
/// between blocks, leave what one call would.
template <class D, class Call, class Walk>
void attend_prompt_rows(D d, const Call& call, const query_tokens& tokens, std::int64_t head,
                        std::int64_t first, int rows, Walk walk, const prompt_tile& tile) noexcept {
  constexpr int width = panel_rows<D>;
  static_assert(prompt_rows % width == 0 && width % lanes<D> == 0);
  // Whole panels, and whole groups of value_rows.
  int padded = (rows + width - 1) / width * width;
  while (padded % value_rows != 0) padded += width;
  float* const q = tile.work;
  float* const logits = q + std::int64_t{prompt_rows} * call.key_dim;
  float* const seen = logits + std::int64_t{prompt_rows} * prompt_block_entries;
  float* const factors = seen + prompt_rows;
  float* const keys = factors + prompt_rows;
  float* const values = keys + std::int64_t{prompt_block_entries} * call.key_dim;
  pack_prompt(d, call, tokens, head, first, rows, padded, q);

  entry_block block;
  for (walk.fill(block); block.count > 0; walk.fill(block)) {
    widen_keys(d, keys_of(call, block, head), keys);
    widen_values(d, values_of(call, block, head), values);
    // Only blocks that end behind what the first row sees need a look at each row.
    const bool masked = block.position[block.count - 1] >= tokens.visible(first / call.group);
    for (int r = 0; masked && r < padded; ++r) {
      const std::int64_t row = first + std::min(r, rows - 1);
      seen[r] = float(block.before(tokens.visible(row / call.group)));
    }
    for (int r = 0; r < padded; r += width)
      dot_panel(d, q + std::int64_t{r} * call.key_dim, keys, block.count, call.key_dim, logits + r);
    finish_prompt(d, call, tokens, head, first, rows, block, logits);
    const float* const limits = masked ? seen : nullptr;
    weigh_prompt(d, logits, block.count, padded, limits, tile.maxima, tile.denominators, factors);
    if constexpr (Call::values_type::scaled) {
      for (int e = 0; e < block.count; ++e) {
        const auto scale = hn::Set(d, call.values.scale(head, block.slot[e]));
        for (int r = 0; r < padded; r += lanes<D>) {
          float* const at = logits + e * prompt_rows + r;
          hn::Store(hn::Mul(hn::Load(d, at), scale), d, at);
        }
      }
    }
    add_prompt(d, logits, values, block.count, padded, limits, factors, call.value_dim, tile.sums);
  }
}

/// After the last of the calls for some rows: writes their outputs and lse.
template <class D, class Call>
void end_prompt_rows(D d, const Call& call, const query_tokens& tokens, std::int64_t head, std::int64_t first,
                     int rows, const prompt_tile& tile) noexcept {
  for (int r = 0; r < rows; ++r) {
    const softmax_state state = {tile.maxima[r], tile.denominators[r]};
    const std::int64_t row = first + r;
    join_row(d, call, tokens.first_token + row / call.group, head * call.group + row % call.group, 1, 1,
             &state, tile.sums + std::int64_t{r} * call.value_dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
