// SPDX-License-Identifier: MIT
#include "src/attend/call.hpp"

// As in kernel.cpp.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/attend/prompt_kernel.cpp"
#include <hwy/foreach_target.h>
//
#include <flashmemory/cpu/attend/prompt-inl.hpp>

#include "src/attend/chunk_call-inl.hpp"
#include "src/attend/entry_walk.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

void prompt_block_of(const attend_call& call, const prompt_block& block, float* state, float* work) {
  with_types(call.geometry, [&](auto t, auto d) HWY_ATTR {
    const attend_unit& unit = *block.unit;
    const auto of_type = call_of<decltype(t)>(call);
    const fma::query_tokens tokens = tokens_of(call, unit);
    hna::prompt_tile tile;
    tile.maxima = state;
    tile.denominators = tile.maxima + fma::prompt_rows;
    tile.sums = tile.denominators + fma::prompt_rows;
    tile.work = work;
    if (block.begins) hna::begin_prompt_rows(tile, of_type.value_dim);
    const std::int64_t last = (block.first + block.rows - 1) / call.group;
    hna::attend_prompt_rows(d, of_type, tokens, block.head, block.first, block.rows,
                            entry_walk(call, unit, 0, unit.chunk_count, tokens.visible(last)), tile);
    if (block.ends) hna::end_prompt_rows(d, of_type, tokens, block.head, block.first, block.rows, tile);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashmemory {
inline namespace v0 {
namespace detail {

HWY_EXPORT(prompt_block_of);

void run_prompt_block(const attend_call& call, const prompt_block& block, float* state,
                      float* work) noexcept {
  HWY_DYNAMIC_DISPATCH(prompt_block_of)(call, block, state, work);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif  // HWY_ONCE
