// SPDX-License-Identifier: MIT
// Attention of query rows over the entries that a policy hands out.
#if defined(FLASHMEMORY_CPU_ATTEND_ATTEND_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_ATTEND_INL
#undef FLASHMEMORY_CPU_ATTEND_ATTEND_INL
#else
#define FLASHMEMORY_CPU_ATTEND_ATTEND_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <flashmemory/cpu/attend/blocks.hpp>
#include <flashmemory/cpu/attend/logits-inl.hpp>
#include <flashmemory/cpu/attend/output-inl.hpp>
#include <flashmemory/cpu/attend/tiles-inl.hpp>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {

/// What is the same for all rows of a call.
/// \tparam Keys    how K is read, see elements-inl.hpp
/// \tparam Values  how V is read
/// \tparam Logits  what happens to a logit, see logits-inl.hpp
/// \tparam Output  what is written, see output-inl.hpp
template <class Keys, class Values, class Logits, class Output>
struct call {
  using keys_type = Keys;
  using values_type = Values;

  Keys keys;
  Values values;
  Logits logits;
  Output output;
  const_tensor<3> q;                        ///< [rows, query heads, key_dim], any dtype and strides
  std::int32_t group = 1;                   ///< query heads of a KV head
  std::int32_t key_dim = 0, value_dim = 0;  ///< multiples of 16, at most max_dim
  std::int64_t key_head_bytes = 0,
               value_head_bytes = 0;  ///< from one KV head's place in an entry to the next one's
};

/// One KV head's keys of a block; none of no block.
template <class Call>
rows_view<typename Call::keys_type> keys_of(const Call& call, const entry_block& block, std::int64_t head) {
  return {block.keys, std::ptrdiff_t(head * call.key_head_bytes), block.count, call.key_dim};
}

/// One KV head's values of a block.
template <class Call>
rows_view<typename Call::values_type> values_of(const Call& call, const entry_block& block,
                                                std::int64_t head) {
  return {block.values, std::ptrdiff_t(head * call.value_head_bytes), block.count, call.value_dim};
}

/// Packs the queries of rows [first, first + rows) of a KV head.
template <class D, class Call>
void pack_queries(D d, const Call& call, const query_tokens& tokens, std::int64_t head, std::int64_t first,
                  int rows, float* to) noexcept {
  const int dim = call.key_dim;
  HWY_ALIGN float natural[max_dim];
  for (int r = 0; r < rows; ++r) {
    const std::int64_t token = tokens.first_token + (first + r) / call.group;
    const std::int64_t query_head = head * call.group + (first + r) % call.group;
    const std::int64_t from = token * call.q.stride[0] + query_head * call.q.stride[1];
    const std::int64_t step = call.q.stride[2];
    at_element(call.q.data, call.q.type, from, [&](const auto* p) HWY_ATTR {
      if (step == 1) {
        for (int i = 0; i < dim; ++i) natural[i] = to_float(p[i]);
      } else {
        for (int i = 0; i < dim; ++i) natural[i] = to_float(p[i * step]);
      }
    });
    pack<typename Call::keys_type>(d, natural, dim, call.logits.query_scale(), to + r * dim);
  }
}

template <class Keys, class Values, class D>
void dot_rows(D d, int rows, const float* q, const rows_view<Keys>& keys, int count,
              const rows_view<Values>& next, float* logits) noexcept {
  switch (rows) {
    case 1:
      return dot_tile<1>(d, q, keys, count, next, logits);
    case 2:
      return dot_tile<2>(d, q, keys, count, next, logits);
#if FLASHMEMORY_CPU_ATTEND_TILE_ROWS == 4
    case 3:
      return dot_tile<3>(d, q, keys, count, next, logits);
    default:
      return dot_tile<4>(d, q, keys, count, next, logits);
#endif
  }
}

template <class Keys, class Values, class D>
void add_values(D d, int rows, const float* weights, const float* factors, const rows_view<Values>& values,
                int count, const rows_view<Keys>& next, float* sums) noexcept {
  switch (rows) {
    case 1:
      return add_tile<1>(d, weights, factors, values, count, next, sums);
    case 2:
      return add_tile<2>(d, weights, factors, values, count, next, sums);
#if FLASHMEMORY_CPU_ATTEND_TILE_ROWS == 4
    case 3:
      return add_tile<3>(d, weights, factors, values, count, next, sums);
    default:
      return add_tile<4>(d, weights, factors, values, count, next, sums);
#endif
  }
}

/// Multiplies what belongs to each entry with its scale, if the elements have one.
template <class Elements>
HWY_INLINE void scale_entries(const Elements& elements, const entry_block& block, std::int64_t head,
                              int count, float* HWY_RESTRICT of_entries) {
  if constexpr (Elements::scaled) {
    for (int i = 0; i < count; ++i) of_entries[i] *= elements.scale(head, block.slot[i]);
  }
}

/// From products to logits, and -inf behind the last one up to a full vector.
template <class D, class Call>
HWY_INLINE void finish_logits(D d, const Call& call, const entry_block& block, std::int64_t head, int count,
                              const query_place& place, float* HWY_RESTRICT logits) {
  scale_entries(call.keys, block, head, count, logits);
  pad_logits(d, logits, count);
  if (call.logits.apply(d, logits, count, block.position, place)) pad_logits(d, logits, count);
}

/// Rows [first, first + rows) of one KV head.
struct head_rows {
  const float* q;
  softmax_state* states;
  float* sums;
  std::int64_t head, first;
  int rows;
};

/// Adds one block to the partial softmax of one head's rows. What a row adds up, and in which order, does
/// not depend on the rows beside it.
template <class D, class Call>
void attend_block(D d, const Call& call, const query_tokens& tokens, const head_rows& part,
                  const entry_block& block, const rows_view<typename Call::keys_type>& next_keys) noexcept {
  const auto keys = keys_of(call, block, part.head);
  const auto values = values_of(call, block, part.head);
  HWY_ALIGN float logits[tile_rows * block_entries];
  float factors[tile_rows];
  auto next_values = values;
  auto next = next_keys;
  for (int row = 0; row < part.rows;) {
    // Rows of one token, or all rows when the block lies before every one of them.
    int count = block.count, stop = part.rows;
    const std::int64_t token = (part.first + row) / call.group;
    const std::int64_t limit = tokens.visible(token);
    if (tokens.ascending && block.position[count - 1] >= limit) {
      count = block.before(limit);
      stop = int(std::min<std::int64_t>(stop, (token + 1) * call.group - part.first));
    }
    for (; row < stop && count > 0; row += tile_rows) {
      const int tile = std::min(tile_rows, stop - row);
      dot_rows(d, tile, part.q + row * keys.length, keys, count, next_values, logits);
      for (int r = 0; r < tile; ++r) {
        const std::int64_t at = part.first + row + r;
        const query_place place = {tokens.first_token + at / call.group,
                                   std::int32_t(part.head * call.group + at % call.group),
                                   tokens.visible(at / call.group) - 1};
        float* const mine = logits + r * block_entries;
        finish_logits(d, call, block, part.head, count, place, mine);
        factors[r] = weigh(d, mine, count, part.states[row + r]);
        scale_entries(call.values, block, part.head, count, mine);
      }
      add_values(d, tile, logits, factors, values, count, next, part.sums + row * values.length);
      next_values.count = next.count = 0;
    }
    row = stop;
  }
}

/// Partial softmax of a part over what a walk hands out, block by block, and within a block head by head: the heads of
/// an entry, or of a chunk, lie side by side.
/// \param states  [part.heads * part.rows] out
/// \param sums    [part.heads * part.rows, value_dim] out: weighted values, in Values' own order
template <class D, class Call, class Walk>
void attend_part(D d, const Call& call, const query_tokens& tokens, const query_part& part, Walk walk,
                 softmax_state* states, float* sums) noexcept {
  HWY_ALIGN float q[most_rows * max_dim];
  for (std::int32_t h = 0; h < part.heads; ++h) {
    pack_queries(d, call, tokens, part.head + h, part.row, part.rows, q + h * part.rows * call.key_dim);
  }
  const int rows = part.heads * part.rows;
  std::fill_n(states, rows, softmax_state{-std::numeric_limits<float>::infinity(), 0});
  std::fill_n(sums, rows * call.value_dim, 0.0f);

  entry_block blocks[2];
  entry_block *block = &blocks[0], *next = &blocks[1];
  walk.fill(*block);
  for (; block->count > 0; std::swap(block, next)) {
    walk.fill(*next);
    for (std::int32_t h = 0; h < part.heads; ++h) {
      const std::int64_t head = part.head + h, at = std::int64_t{h} * part.rows;
      attend_block(
          d, call, tokens,
          {q + at * call.key_dim, states + at, sums + at * call.value_dim, head, part.row, part.rows}, *block,
          h + 1 < part.heads ? keys_of(call, *block, head + 1) : keys_of(call, *next, part.head));
    }
  }
}

/// Joins the splits of one row in their order and writes its output and lse.
/// \param row     of q
/// \param states  of the first split; those of the next ones follow at `stride`
/// \param sums    likewise, [stride * splits, value_dim]
template <class D, class Call>
void join_row(D d, const Call& call, std::int64_t row, std::int64_t query_head, std::int64_t splits,
              std::int64_t stride, const softmax_state* states, const float* sums) noexcept {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const int dim = call.value_dim;
  const float sink = call.logits.sink(query_head);
  float max = sink;
  for (std::int64_t s = 0; s < splits; ++s) max = std::max(max, states[s * stride].max);
  const float base = max == -inf ? 0 : max;
  // A sink of +inf has all the weight, and no value.
  const bool all_sink = sink == inf;
  float denominator = all_sink ? inf : sink == -inf ? 0 : std::exp(sink - base);
  HWY_ALIGN float total[max_dim] = {};
  for (std::int64_t s = 0; s < splits && !all_sink; ++s) {
    const softmax_state& state = states[s * stride];
    if (state.sum == 0) continue;
    const float factor = std::exp(state.max - base);
    denominator += factor * state.sum;
    const auto scale = hn::Set(d, factor);
    const float* from = sums + s * stride * dim;
    for (int i = 0; i < dim; i += lanes<D>) {
      hn::Store(hn::MulAdd(scale, hn::LoadU(d, from + i), hn::Load(d, total + i)), d, total + i);
    }
  }
  if (call.output.has_lse()) {
    call.output.store_lse(row, query_head, denominator == 0 ? -inf : base + std::log(denominator));
  }
  HWY_ALIGN float natural[max_dim];
  const auto divisor = hn::Set(d, denominator == 0 ? 1 : denominator);
  for (int i = 0; i < dim; i += 2 * lanes<D>) {
    store_pair<typename Call::values_type>(d, hn::Div(hn::Load(d, total + i), divisor),
                                           hn::Div(hn::Load(d, total + i + lanes<D>), divisor), natural + i);
  }
  call.output.store(row, query_head, natural, dim);
}

/// Calls f(D{}) with full vectors where both dims are whole pairs of them, else pairs of 16 elements, which every dim is.
template <class F>
auto with_lanes(int key_dim, int value_dim, const F& f) noexcept {
  using wide = hn::CappedTag<float, 16>;
  using narrow = hn::CappedTag<float, 8>;
  constexpr int pair = 2 * lanes<wide>;
  if (key_dim % pair == 0 && value_dim % pair == 0) return f(wide());
  return f(narrow());
}

/// Attention of all rows of some query tokens and one KV head over what a walk hands out, in one go and by this thread:
/// out = softmax(logits) v. For an engine's own thread pool: a task for each sequence and KV head.
///
/// Never allocates, never throws; needs some 70 KB of stack.
template <class Call, class Walk>
void attend_head(const Call& call, const query_tokens& tokens, std::int64_t kv_head,
                 const Walk& walk) noexcept {
  with_lanes(call.key_dim, call.value_dim, [&](auto d) HWY_ATTR {
    softmax_state states[most_rows];
    HWY_ALIGN float sums[most_rows * max_dim];
    const std::int64_t rows = std::int64_t{tokens.tokens} * call.group;
    for (std::int64_t first = 0; first < rows; first += most_rows) {
      query_part part;
      part.head = kv_head;
      part.row = first;
      part.rows = std::int32_t(std::min<std::int64_t>(most_rows, rows - first));
      attend_part(d, call, tokens, part, walk, states, sums);
      for (std::int32_t r = 0; r < part.rows; ++r) {
        const std::int64_t row = first + r;
        join_row(d, call, tokens.first_token + row / call.group, kv_head * call.group + row % call.group, 1,
                 1, states + r, sums + std::int64_t{r} * call.value_dim);
      }
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
