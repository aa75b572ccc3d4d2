// SPDX-License-Identifier: MIT
// One task: walking its entries block by block. Included once per SIMD target by kernel.cpp.
#if defined(FLASHMEMORY_ATTEND_TASK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_ATTEND_TASK_INL
#undef FLASHMEMORY_ATTEND_TASK_INL
#else
#define FLASHMEMORY_ATTEND_TASK_INL
#endif

#include <algorithm>
#include <cstring>

#include "src/attend/kernel-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

/// Where the keys and values of up to attend_block entries lie. Entries may come from any chunks.
struct entry_block {
  const std::byte* keys[attend_block];  ///< of KV head 0
  const std::byte* values[attend_block];
  std::int64_t entry[attend_block];  ///< in the sequence, ascending unless they come from a list
  int count;

  /// How many of its entries, from the first on, lie before `limit`.
  int before(std::int64_t limit) const noexcept {
    int n = count;
    while (n > 0 && entry[n - 1] >= limit) --n;
    return n;
  }
};

/// Hands out the entries of one split, those before `limit` only.
class entry_walk {
 public:
  entry_walk(const attend_call& call, const attend_unit& unit, std::int64_t begin, std::int64_t end,
             std::int64_t limit) noexcept
      : unit_(unit), limit_(limit), per_chunk_(call.geometry.entries_per_chunk), at_(begin), end_(end) {
    const chunk_layout layout(call.geometry);
    key_offset_ = layout.key_offset(call.layer, 0);
    value_offset_ = layout.value_offset(call.layer, 0);
    key_bytes_ = std::size_t(call.geometry.key_dim) * size_of(call.geometry.type);
    value_bytes_ = std::size_t(call.geometry.value_dim) * size_of(call.geometry.type);
  }

  void fill(entry_block& block) noexcept {
    block.count = 0;
    if (unit_.list != nullptr) {
      fill_from_list(block);
      return;
    }
    for (; at_ < end_; ++at_, in_chunk_ = 0) {
      const resident_chunk& chunk = unit_.chunks[at_];
      const std::int64_t first = chunk.id * per_chunk_;
      const std::int64_t readable = std::min<std::int64_t>(chunk.entries, limit_ - first);
      const std::int64_t stop = std::min<std::int64_t>(readable, in_chunk_ + attend_block - block.count);
      for (; in_chunk_ < stop; ++in_chunk_) add(block, chunk, in_chunk_, first + in_chunk_);
      if (in_chunk_ < readable) return;  // the block is full
    }
  }

 private:
  void add(entry_block& block, const resident_chunk& chunk, std::int64_t in_chunk,
           std::int64_t entry) const noexcept {
    block.keys[block.count] = chunk.data + key_offset_ + std::size_t(in_chunk) * key_bytes_;
    block.values[block.count] = chunk.data + value_offset_ + std::size_t(in_chunk) * value_bytes_;
    block.entry[block.count++] = entry;
  }

  void fill_from_list(entry_block& block) noexcept {
    for (; at_ < end_ && block.count < attend_block; ++at_) {
      const std::int64_t entry = unit_.list[at_ * unit_.list_stride];
      if (entry < 0 || entry >= limit_) continue;
      const std::int64_t found = find_chunk(unit_.chunks, unit_.chunk_count, entry / per_chunk_);
      add(block, unit_.chunks[found], entry % per_chunk_, entry);
    }
  }

  const attend_unit& unit_;
  std::int64_t limit_, per_chunk_;
  std::int64_t at_, end_;  ///< resident chunk or place in the list
  std::int64_t in_chunk_ = 0;
  std::size_t key_offset_, value_offset_, key_bytes_, value_bytes_;
};

/// One KV head's keys or values of a block; none of no block.
template <class T>
rows_view<T> keys_of(const attend_call& call, const entry_block& block, std::int64_t head) noexcept {
  const chunk_layout layout(call.geometry);
  return {block.keys, std::size_t(head) * layout.key_block_bytes(), block.count, call.geometry.key_dim};
}

template <class T>
rows_view<T> values_of(const attend_call& call, const entry_block& block, std::int64_t head) noexcept {
  const chunk_layout layout(call.geometry);
  return {block.values, std::size_t(head) * layout.value_block_bytes(), block.count, call.geometry.value_dim};
}

inline std::int64_t visible_entries(const attend_call& call, const attend_unit& unit,
                                    std::int64_t token) noexcept {
  return call.geometry.entries_for(unit.position + token + 1);
}

/// Calls f with the typed pointer to an element of a tensor, so that loops decide about the type once.
template <class Void, class F>
HWY_INLINE void at_element(Void* data, dtype type, std::int64_t element, const F& f) {
  constexpr bool read = std::is_const_v<Void>;
  switch (type) {
    case dtype::f32:
      return f(static_cast<std::conditional_t<read, const float, float>*>(data) + element);
    case dtype::bf16:
      return f(static_cast<std::conditional_t<read, const bfloat16, bfloat16>*>(data) + element);
    case dtype::f16:
      return f(static_cast<std::conditional_t<read, const float16, float16>*>(data) + element);
  }
}

/// Packs the queries of rows [first, first + rows) of a KV head.
template <class T, class D>
void pack_queries(D d, const attend_call& call, const attend_unit& unit, std::int64_t head,
                  std::int64_t first, int rows, float* to) noexcept {
  const int dim = call.geometry.key_dim;
  HWY_ALIGN float natural[attend_max_dim];
  for (int r = 0; r < rows; ++r) {
    const std::int64_t token = unit.first_token + (first + r) / call.group;
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
    pack<T>(d, natural, dim, call.scale, to + r * dim);
  }
}

template <class T, class D>
void dot_rows(D d, int rows, const float* q, const rows_view<T>& keys, int count, const rows_view<T>& next,
              float* logits) noexcept {
  switch (rows) {
    case 1:
      return dot_tile<1>(d, q, keys, count, next, logits);
    case 2:
      return dot_tile<2>(d, q, keys, count, next, logits);
#if FLASHMEMORY_ATTEND_TILE_ROWS == 4
    case 3:
      return dot_tile<3>(d, q, keys, count, next, logits);
    default:
      return dot_tile<4>(d, q, keys, count, next, logits);
#endif
  }
}

template <class T, class D>
void add_values(D d, int rows, const float* weights, const float* factors, const rows_view<T>& values,
                int count, const rows_view<T>& next, float* sums) noexcept {
  switch (rows) {
    case 1:
      return add_tile<1>(d, weights, factors, values, count, next, sums);
    case 2:
      return add_tile<2>(d, weights, factors, values, count, next, sums);
#if FLASHMEMORY_ATTEND_TILE_ROWS == 4
    case 3:
      return add_tile<3>(d, weights, factors, values, count, next, sums);
    default:
      return add_tile<4>(d, weights, factors, values, count, next, sums);
#endif
  }
}

/// Rows [first, first + rows) of one KV head.
struct head_rows {
  const float* q;
  softmax_state* states;
  float* sums;
  std::int64_t first;
  int rows;
};

/// Adds one block to the partial softmax of one head's rows. What a row adds up, and in which order, does
/// not depend on the rows beside it.
template <class T, class D>
void attend_block_of_head(D d, const attend_call& call, const attend_unit& unit, const head_rows& part,
                          const entry_block& block, const rows_view<T>& keys, const rows_view<T>& values,
                          const rows_view<T>& next_keys) noexcept {
  HWY_ALIGN float logits[tile_rows * attend_block];
  float factors[tile_rows];
  rows_view<T> next_values = values, next = next_keys;
  for (int row = 0; row < part.rows;) {
    // Rows of one token, or all rows when the block lies before every one of them.
    int count = block.count, stop = part.rows;
    const std::int64_t token = (part.first + row) / call.group;
    const std::int64_t limit = visible_entries(call, unit, token);
    if (unit.list == nullptr && block.entry[count - 1] >= limit) {
      count = block.before(limit);
      stop = int(std::min<std::int64_t>(stop, (token + 1) * call.group - part.first));
    }
    for (; row < stop && count > 0; row += tile_rows) {
      const int tile = std::min(tile_rows, stop - row);
      dot_rows(d, tile, part.q + row * keys.length, keys, count, next_values, logits);
      for (int r = 0; r < tile; ++r) {
        finish_logits(d, logits + r * attend_block, count, call.soft_cap);
        factors[r] = weigh(d, logits + r * attend_block, count, part.states[row + r]);
      }
      add_values(d, tile, logits, factors, values, count, next, part.sums + row * values.length);
      next_values.count = next.count = 0;
    }
    row = stop;
  }
}

/// Partial softmax of a part over one split, block by block, and within a block head by head: the heads of a
/// chunk lie side by side.
template <class T, class D>
void attend_split(D d, const attend_call& call, const attend_unit& unit, const attend_part& part,
                  std::int64_t split, entry_walk walk) noexcept {
  const int key_dim = call.geometry.key_dim, value_dim = call.geometry.value_dim;
  HWY_ALIGN float q[attend_task_rows * attend_max_dim];
  for (std::int32_t h = 0; h < part.heads; ++h) {
    pack_queries<T>(d, call, unit, part.head + h, part.row, part.rows, q + h * part.rows * key_dim);
  }
  // The rows of a part follow each other: it has all rows of its heads, or one head.
  const std::int64_t base = call.partial(unit, split, part.head, part.row);
  const int rows = part.heads * part.rows;
  std::fill_n(call.states + base, rows, softmax_state{-std::numeric_limits<float>::infinity(), 0});
  std::fill_n(call.sums + base * value_dim, rows * value_dim, 0.0f);

  entry_block blocks[2];
  entry_block *block = &blocks[0], *next = &blocks[1];
  walk.fill(*block);
  for (; block->count > 0; std::swap(block, next)) {
    walk.fill(*next);
    for (std::int32_t h = 0; h < part.heads; ++h) {
      const std::int64_t head = part.head + h, at = base + h * part.rows;
      attend_block_of_head<T>(
          d, call, unit,
          {q + h * part.rows * key_dim, call.states + at, call.sums + at * value_dim, part.row, part.rows},
          *block, keys_of<T>(call, *block, head), values_of<T>(call, *block, head),
          h + 1 < part.heads ? keys_of<T>(call, *block, head + 1) : keys_of<T>(call, *next, part.head));
    }
  }
}

/// Joins the splits of one row in their order and writes its output and lse.
template <class T, class D>
void join_row(D d, const attend_call& call, const attend_unit& unit, std::int64_t head,
              std::int64_t row) noexcept {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const int dim = call.geometry.value_dim;
  const std::int64_t token = unit.first_token + row / call.group;
  const std::int64_t query_head = head * call.group + row % call.group;

  const float sink = call.sinks.data != nullptr ? call.sinks(query_head) : -inf;
  float max = sink;
  for (std::int64_t s = 0; s < unit.splits; ++s) {
    max = std::max(max, call.states[call.partial(unit, s, head, row)].max);
  }
  const float base = max == -inf ? 0 : max;
  float denominator = sink == -inf ? 0 : std::exp(sink - base);
  HWY_ALIGN float total[attend_max_dim] = {};
  for (std::int64_t s = 0; s < unit.splits; ++s) {
    const std::int64_t from = call.partial(unit, s, head, row);
    const softmax_state& state = call.states[from];
    if (state.sum == 0) continue;
    const float factor = std::exp(state.max - base);
    denominator += factor * state.sum;
    const auto scale = hn::Set(d, factor);
    const float* sums = call.sums + from * dim;
    for (int i = 0; i < dim; i += lanes<D>) {
      hn::Store(hn::MulAdd(scale, hn::LoadU(d, sums + i), hn::Load(d, total + i)), d, total + i);
    }
  }
  if (call.lse.data != nullptr) {
    call.lse(token, query_head) = denominator == 0 ? -inf : base + std::log(denominator);
  }

  HWY_ALIGN float natural[attend_max_dim];
  const auto divisor = hn::Set(d, denominator == 0 ? 1 : denominator);
  for (int i = 0; i < dim; i += 2 * lanes<D>) {
    store_pair<T>(d, hn::Div(hn::Load(d, total + i), divisor),
                  hn::Div(hn::Load(d, total + i + lanes<D>), divisor), natural + i);
  }
  const std::int64_t to = token * call.out.stride[0] + query_head * call.out.stride[1];
  const std::int64_t step = call.out.stride[2];
  at_element(call.out.data, call.out.type, to, [&](auto* p) HWY_ATTR {
    if (step == 1) {
      for (int i = 0; i < dim; ++i) from_float(natural[i], p[i]);
    } else {
      for (int i = 0; i < dim; ++i) from_float(natural[i], p[i * step]);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
