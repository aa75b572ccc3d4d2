// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <flashmemory/attend/page_strides.hpp>

namespace flashmemory {
inline namespace v0 {

/// CPU kernels for engines that instantiate their own. The -inl.hpp files are compiled for the SIMD target that Highway
/// is at: included once, for the one that the translation unit is compiled for; under foreach_target.h for all of them.
namespace cpu {

/// Attention over entries that a policy hands out block by block.
namespace attend {

/// Entries whose logits are computed before their values are read; keys and values of a block fit in L1.
inline constexpr std::int32_t block_entries = 64;

/// Query rows that are served at once, so that their packed queries fit on any stack.
inline constexpr std::int32_t most_rows = 32;

/// Largest key_dim and value_dim, both multiples of 16.
inline constexpr std::int32_t max_dim = 256;

/// Query rows of a prompt that share what they read: a multiple of two and of three vectors of any length.
inline constexpr std::int32_t prompt_rows = 96;

/// Entries of a block there, filled up to whole groups of 6 or 8.
inline constexpr std::int32_t prompt_block_entries = 72;

/// Floats that the kernel for prompts works in: queries, logits, limits, factors, keys and values of a block.
constexpr std::int64_t prompt_work_floats(std::int32_t key_dim, std::int32_t value_dim) noexcept {
  return std::int64_t{prompt_rows} * (key_dim + prompt_block_entries + 2) +
         std::int64_t{prompt_block_entries} * (key_dim + value_dim);
}

/// Floats that it keeps of prompt_rows rows: maxima, denominators and sums.
constexpr std::int64_t prompt_state_floats(std::int32_t value_dim) noexcept {
  return std::int64_t{prompt_rows} * (value_dim + 2);
}

/// Where the keys and values of up to block_entries entries lie. Entries may come from anywhere.
struct entry_block {
  const std::byte* keys[block_entries];  ///< of KV head 0
  const std::byte* values[block_entries];
  std::int64_t position[block_entries];  ///< of the entry in the sequence
  std::int64_t slot[block_entries];      ///< of the entry in its pool; for element policies with scales only
  int count;

  /// How many of its entries, from the first on, lie before `limit`.
  int before(std::int64_t limit) const noexcept {
    int n = count;
    while (n > 0 && position[n - 1] >= limit) --n;
    return n;
  }
};

/// Largest softmax logit seen, and the sum of exp(logit - max).
struct softmax_state {
  float max;
  float sum;
};

/// Query tokens that read the same entries. Per KV head they have tokens x group rows, row = token * group + head within
/// the group.
struct query_tokens {
  std::int64_t first_token = 0;  ///< in the packed q and output
  std::int64_t position = 0;     ///< of the first one in the sequence
  std::int32_t tokens = 1;
  std::int32_t tokens_per_entry = 1;  ///< a query sees the entries whose last token is at or before it
  /// Whether entries come ascending by position, as they must if there are several tokens. If not, the policy hands out
  /// none that the only token may not see.
  bool ascending = true;

  /// Entries of the sequence that token `t` may see.
  std::int64_t visible(std::int64_t t) const noexcept { return (position + t + 1) / tokens_per_entry; }
};

/// What is served at once: all rows of some KV heads, or some rows of one; at most most_rows in all.
struct query_part {
  std::int64_t head = 0;
  std::int32_t heads = 1;
  std::int64_t row = 0;   ///< first row within each head
  std::int32_t rows = 0;  ///< of each head
};

/// A query row whose logits are worked out.
struct query_place {
  std::int64_t row;       ///< of q and of the output
  std::int32_t head;      ///< query head
  std::int64_t position;  ///< of the last entry that it sees: its own
};

/// An engine's own pages: a pool of K and one of V (or one pool of both: their strides).
struct kv_pages {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  page_strides key_strides, value_strides;
  std::int32_t entries_per_page = 0;
};

/// Where entries lie. Such a policy has `void fill(entry_block&)`, which hands out the next block_entries entries, or what
/// is left of them, and is copied where several passes are made. This one walks a page table.
class page_walk {
 public:
  /// \param pool     outlives the walk
  /// \param pages    [ceil(entries / pool.entries_per_page)]: numbers of pages
  /// \param firsts   as many: the position in the sequence of each page's first entry, ascending; null = pages are listed
  ///     from the sequence's start on, without a gap
  /// \param entries  in all; every page but the last is full
  page_walk(const kv_pages& pool, const std::int32_t* pages, const std::int32_t* firsts,
            std::int64_t entries) noexcept
      : pool_(&pool), pages_(pages), firsts_(firsts), left_(entries) {}

  /// The next entries.
  void fill(entry_block& block) noexcept {
    block.count = static_cast<int>(std::min<std::int64_t>(block_entries, left_));
    left_ -= block.count;
    for (int i = 0; i < block.count; ++i) {
      const std::int64_t page = pages_[page_];
      block.keys[i] = pool_->keys + page * pool_->key_strides.page + in_page_ * pool_->key_strides.entry;
      block.values[i] =
          pool_->values + page * pool_->value_strides.page + in_page_ * pool_->value_strides.entry;
      block.position[i] = (firsts_ == nullptr ? page_ * pool_->entries_per_page : firsts_[page_]) + in_page_;
      block.slot[i] = page * pool_->entries_per_page + in_page_;
      if (++in_page_ == pool_->entries_per_page) {
        in_page_ = 0;
        ++page_;
      }
    }
  }

 private:
  const kv_pages* pool_;
  const std::int32_t* pages_;
  const std::int32_t* firsts_;
  std::int64_t left_, page_ = 0, in_page_ = 0;
};

}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
