// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <flashmemory/parallel.hpp>

namespace flashmemory_bench {

/// The baseline: decode attention as one would write it down, over contiguous bf16 K and V
/// [kv_heads, entries, dim], one task per query head.
void naive_attention(const float* q, const flashmemory::bfloat16* k, const flashmemory::bfloat16* v,
                     std::int64_t query_heads, std::int64_t kv_heads, std::int64_t entries, std::int64_t dim,
                     float* logits, float* out, const flashmemory::thread_hook& threads);

}  // namespace flashmemory_bench
