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

#include "attend/kernel-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

/// Where the keys and values of up to attend_block entries lie. Entries may come from any chunks.
template <class T>
struct entry_block {
  const T* keys[attend_block];
  const T* values[attend_block];
  std::int64_t entry[attend_block];  ///< in the sequence
  int count;

  /// How many of its entries, from the first on, lie before `limit`; they ascend.
  int before(std::int64_t limit) const noexcept {
    int n = count;
    while (n > 0 && entry[n - 1] >= limit) --n;
    return n;
  }
};

/// Hands out the entries of one split and KV head, those before `limit` only.
template <class T>
class entry_walk {
 public:
  entry_walk(const attend_call& call, const attend_unit& unit, std::int64_t head, std::int64_t begin,
             std::int64_t end, std::int64_t limit) noexcept
      : unit_(unit),
        limit_(limit),
        key_dim_(call.geometry.key_dim),
        value_dim_(call.geometry.value_dim),
        per_chunk_(call.geometry.entries_per_chunk),
        at_(begin),
        end_(end) {
    const chunk_layout layout(call.geometry);
    key_offset_ = layout.key_offset(call.layer, head);
    value_offset_ = layout.value_offset(call.layer, head);
  }

  void fill(entry_block<T>& block) noexcept {
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
  void add(entry_block<T>& block, const resident_chunk& chunk, std::int64_t in_chunk,
           std::int64_t entry) noexcept {
    block.keys[block.count] = reinterpret_cast<const T*>(chunk.data + key_offset_) + in_chunk * key_dim_;
    block.values[block.count] =
        reinterpret_cast<const T*>(chunk.data + value_offset_) + in_chunk * value_dim_;
    block.entry[block.count++] = entry;
  }

  void fill_from_list(entry_block<T>& block) noexcept {
    for (; at_ < end_ && block.count < attend_block; ++at_) {
      const std::int64_t entry = unit_.list[at_ * unit_.list_stride];
      if (entry < 0 || entry >= limit_) continue;
      const std::int64_t found = find_chunk(unit_.chunks, unit_.chunk_count, entry / per_chunk_);
      add(block, unit_.chunks[found], entry % per_chunk_, entry);
    }
  }

  const attend_unit& unit_;
  std::int64_t limit_, key_dim_, value_dim_, per_chunk_;
  std::int64_t at_, end_;  ///< resident chunk or place in the list
  std::int64_t in_chunk_ = 0;
  std::size_t key_offset_ = 0, value_offset_ = 0;
};

inline std::int64_t visible_entries(const attend_call& call, const attend_unit& unit,
                                    std::int64_t token) noexcept {
  return call.geometry.entries_for(unit.position + token + 1);
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
    for (int i = 0; i < dim; ++i) {
      natural[i] = load_float(call.q.data, call.q.type, from + i * call.q.stride[2]);
    }
    pack<T>(d, natural, dim, call.scale, to + r * dim);
  }
}

template <class T, class D>
void dot_rows(D d, int rows, const float* q, int dim, const T* const* keys, int count, const T* const* next,
              int next_bytes, float* logits) noexcept {
  switch (rows) {
    case 1:
      return dot_tile<1>(d, q, dim, keys, count, next, next_bytes, logits);
    case 2:
      return dot_tile<2>(d, q, dim, keys, count, next, next_bytes, logits);
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
    case 3:
      return dot_tile<3>(d, q, dim, keys, count, next, next_bytes, logits);
    default:
      return dot_tile<4>(d, q, dim, keys, count, next, next_bytes, logits);
#endif
  }
}

template <class T, class D>
void add_values(D d, int rows, const float* weights, const float* factors, const T* const* values, int count,
                int dim, const T* const* next, int next_count, int next_bytes, float* sums) noexcept {
  switch (rows) {
    case 1:
      return add_values_tile<1>(d, weights, factors, values, count, dim, next, next_count, next_bytes, sums);
    case 2:
      return add_values_tile<2>(d, weights, factors, values, count, dim, next, next_count, next_bytes, sums);
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
    case 3:
      return add_values_tile<3>(d, weights, factors, values, count, dim, next, next_count, next_bytes, sums);
    default:
      return add_values_tile<4>(d, weights, factors, values, count, dim, next, next_count, next_bytes, sums);
#endif
  }
}

/// Partial softmax of rows [first, first + rows) over the walk's entries. What a row adds up, and in which
/// order, does not depend on the rows beside it.
template <class T, class D>
void attend_split(D d, const attend_call& call, const attend_unit& unit, std::int64_t head,
                  std::int64_t first, int rows, entry_walk<T> walk, softmax_state* states,
                  float* sums) noexcept {
  const int key_dim = call.geometry.key_dim, value_dim = call.geometry.value_dim;
  const int key_bytes = key_dim * int(sizeof(T)), value_bytes = value_dim * int(sizeof(T));
  HWY_ALIGN float q[attend_row_group * attend_max_dim];
  HWY_ALIGN float logits[tile_rows * attend_block];
  float factors[tile_rows];
  pack_queries<T>(d, call, unit, head, first, rows, q);
  std::fill_n(states, rows, softmax_state{-std::numeric_limits<float>::infinity(), 0});
  std::memset(sums, 0, sizeof(float) * std::size_t(rows) * std::size_t(value_dim));

  entry_block<T> blocks[2];
  entry_block<T>*block = &blocks[0], *next = &blocks[1];
  walk.fill(*block);
  for (; block->count > 0; std::swap(block, next)) {
    walk.fill(*next);
    bool fetch = true;
    for (int row = 0; row < rows;) {
      // Rows of one token, or all rows when the block lies before every one of them.
      int count = block->count, stop = rows;
      if (unit.list == nullptr &&
          block->entry[count - 1] >= visible_entries(call, unit, (first + row) / call.group)) {
        const std::int64_t token = (first + row) / call.group;
        count = block->before(visible_entries(call, unit, token));
        stop = int(std::min<std::int64_t>(rows, (token + 1) * call.group - first));
      }
      for (; row < stop && count > 0; row += tile_rows) {
        const int tile = std::min(tile_rows, stop - row);
        dot_rows<T>(d, tile, q + row * key_dim, key_dim, block->keys, count, fetch ? block->values : nullptr,
                    value_bytes, logits);
        for (int r = 0; r < tile; ++r) {
          finish_logits(d, logits + r * attend_block, count, call.soft_cap);
          factors[r] = weigh(d, logits + r * attend_block, count, states[row + r]);
        }
        add_values<T>(d, tile, logits, factors, block->values, count, value_dim, next->keys,
                      fetch ? next->count : 0, key_bytes, sums + row * value_dim);
        fetch = false;
      }
      row = stop;
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
    max = std::max(max, call.states[call.partial_row(unit, head, s, row)].max);
  }
  const float base = max == -inf ? 0 : max;
  float denominator = sink == -inf ? 0 : std::exp(sink - base);
  HWY_ALIGN float total[attend_max_dim] = {};
  for (std::int64_t s = 0; s < unit.splits; ++s) {
    const std::int64_t from = call.partial_row(unit, head, s, row);
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
  for (int i = 0; i < dim; ++i) {
    store_float(call.out.data, call.out.type, to + i * call.out.stride[2], natural[i]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
