// SPDX-License-Identifier: MIT
// An engine's own attention on the CPU: ALiBi over int8 keys in pages of its own, and two more of its variants.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include <flashmemory/cpu/attend/attend-inl.hpp>

#include "problem.hpp"

HWY_BEFORE_NAMESPACE();
namespace engine {
namespace HWY_NAMESPACE {

namespace fa = flashmemory::cpu::attend;
namespace fk = flashmemory::cpu::attend::HWY_NAMESPACE;

fk::capped_logits logits_of(const problem& p) {
  fk::capped_logits logits;
  logits.softmax_scale = p.scale;
  logits.soft_cap = p.soft_cap;
  if (!p.sinks.empty()) logits.sinks = flashmemory::view<const float, 1>(p.sinks.data(), p.query_heads);
  return logits;
}

template <class Keys, class Values, class Logits>
void run(const problem& p, const Keys& keys, const Values& values, const Logits& logits, const char* what) {
  const int tokens = p.rows * p.query_tokens;
  std::vector<float> out(p.out.size(), 99), lse(p.lse.size(), 99);
  fk::call<Keys, Values, Logits, fk::dense_output> call;
  call.keys = keys;
  call.values = values;
  call.logits = logits;
  call.output.out = {out.data(), flashmemory::dtype::f32, tokens, p.query_heads, p.value_dim};
  call.output.lse = flashmemory::view<float, 2>(lse.data(), tokens, p.query_heads);
  call.q = {p.q.data(), flashmemory::dtype::f32, tokens, p.query_heads, p.key_dim};
  call.group = p.group();
  call.key_dim = p.key_dim;
  call.value_dim = p.value_dim;
  call.key_head_bytes = p.key_strides.head;
  call.value_head_bytes = p.value_strides.head;
  const fa::kv_pages pool = {p.key_pool.data(), p.value_pool.data(), p.key_strides, p.value_strides,
                             p.entries_per_page};
  for (int r = 0; r < p.rows; ++r) {
    const std::size_t at = std::size_t(r) * p.max_pages;
    const int last = p.lengths[r] - 1;
    fa::query_tokens queries;
    queries.first_token = r * p.query_tokens;
    queries.tokens = p.query_tokens;
    queries.position = last < 0 ? 0
                                : p.firsts[at + last / p.entries_per_page] + last % p.entries_per_page -
                                      (p.query_tokens - 1);
    const fa::page_walk walk(pool, p.table.data() + at, p.firsts.data() + at, p.lengths[r]);
    for (int head = 0; head < p.kv_heads; ++head) fk::attend_head(call, queries, head, walk);
  }
  p.check(out, lse, 1e-5, what);
}

void alibi_over_int8_keys(std::uint32_t seed) {
  problem p = odd_problem(seed, true);
  p.keys_format = format::int8_entry_scale;
  p.values_format = format::f16;
  add_slopes(p);
  p.make();
  p.attend();
  fk::scaled_elements<std::int8_t, fk::entry_scale> keys;
  keys.factor = {p.key_scales.data(), 1, p.kv_heads};
  run(p, keys, fk::plain<flashmemory::float16>(), fk::alibi_logits<>{logits_of(p), p.slopes.data()},
      "ALiBi, int8 K, NHD");
}

void mask_over_e4m3_keys_and_q8_0_values(std::uint32_t seed) {
  problem p = odd_problem(seed, false);
  p.keys_format = format::e4m3_head_scale;
  p.values_format = format::q8_0;
  p.make();
  add_mask(p);
  p.attend();
  fk::scaled_elements<fk::float8_e4m3, fk::head_scale> keys;
  keys.factor.scales = p.key_scales.data();
  run(p, keys, fk::q8_0(), fk::masked_logits<>{logits_of(p), p.mask.data(), p.positions},
      "mask, e4m3 K, q8_0 V, HND");
}

void cap_and_sinks_over_bf16(std::uint32_t seed) {
  problem p = odd_problem(seed, false);
  p.keys_format = p.values_format = format::bf16;
  add_sinks(p);
  p.make();
  p.soft_cap = 3;
  p.attend();
  run(p, fk::plain<flashmemory::bfloat16>(), fk::plain<flashmemory::bfloat16>(), logits_of(p),
      "cap and sinks, bf16, HND");
}

}  // namespace HWY_NAMESPACE
}  // namespace engine
HWY_AFTER_NAMESPACE();

int main() try {
  using namespace engine::HWY_NAMESPACE;
  engine::with_fresh_seeds(40, alibi_over_int8_keys);
  engine::with_fresh_seeds(40, mask_over_e4m3_keys_and_q8_0_values);
  engine::with_fresh_seeds(40, cap_and_sinks_over_bf16);
  std::cout << "kernels of an engine's own agree with double arithmetic\n";
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
