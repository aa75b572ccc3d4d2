// SPDX-License-Identifier: MIT
// An engine's own attention on the device: ALiBi over int8 keys in pages of its own, and more of its variants.
#include <flashmemory/cuda/attend/portable.cuh>
#include <flashmemory/cuda/attend/tensor_core.cuh>

#include "on_device.hpp"
#include "problem.hpp"
#include "selection.hpp"

namespace {

namespace fa = flashmemory::cuda::attend;
using namespace engine;

/// What of a problem the device reads.
struct inputs {
  on_device<std::byte> keys, values;
  on_device<std::int32_t> table, firsts, lengths;
  on_device<float> key_scales, value_scales, slopes, sinks, q;
  on_device<std::uint8_t> mask;
  explicit inputs(const problem& p)
      : keys(p.key_pool),
        values(p.value_pool),
        table(p.table),
        firsts(p.firsts),
        lengths(p.lengths),
        key_scales(p.key_scales),
        value_scales(p.value_scales),
        slopes(p.slopes),
        sinks(p.sinks),
        q(p.q),
        mask(p.mask) {}

  template <bool kPacked>
  fa::page_entries<kPacked> entries(const problem& p) const {
    fa::page_entries<kPacked> e;
    e.key_pool = keys.get();
    e.value_pool = values.get();
    e.key_strides = p.key_strides;
    e.value_strides = p.value_strides;
    e.table = table.get();
    e.firsts = firsts.get();
    e.lengths = lengths.get();
    e.table_stride = p.max_pages;
    e.entries_per_page = p.entries_per_page;
    return e;
  }
  fa::capped_logits logits(const problem& p) const {
    fa::capped_logits l = fa::capped_logits::of(p.scale, p.soft_cap);
    l.sinks = sinks.get();
    return l;
  }
};

/// \param launch  takes a complete call
template <class Call, class Launch>
void run(const problem& p, bool tensor_cores, Call call, double tolerance, const char* what,
         const Launch& launch) {
  on_device<float> out(std::vector<float>(p.out.size(), 99)), lse(std::vector<float>(p.lse.size(), 99));
  call.q_head_stride = p.key_dim;
  call.q_row_stride = std::int64_t{p.query_heads} * p.key_dim;
  call.output.out = out.get();
  call.output.query_heads = p.query_heads;
  call.output.value_dim = p.value_dim;
  call.output.lse = lse.get();
  call.output.lse_row_stride = p.query_heads;
  call.output.lse_head_stride = 1;
  fa::shape shape;
  shape.rows = p.rows;
  shape.max_pages = p.max_pages;
  shape.entries_per_page = p.entries_per_page;
  shape.query_tokens = p.query_tokens;
  shape.query_heads = p.query_heads;
  shape.kv_heads = p.kv_heads;
  shape.key_dim = p.key_dim;
  shape.value_dim = p.value_dim;
  int device = 0, sms = 0;
  ok(cudaGetDevice(&device));
  ok(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  const fa::plan plan = fa::plan_for(shape, sms, tensor_cores);
  const on_device<std::byte> scratch(std::vector<std::byte>(fa::layout_of(plan).bytes, std::byte{0xff}));
  const on_device<std::uint32_t> counters(std::vector<std::uint32_t>(flashmemory::cuda::attend_counters, 0));
  call.work = fa::work_of(plan, p.rows, scratch.get(), counters.get());
  for (int again = 0; again < 2; ++again) {  // counters are left as they were found
    ok(launch(call));
    ok(cudaDeviceSynchronize());
    p.check(out.back(), lse.back(), tolerance, what);
  }
}

template <class Keys, class Values, class Logits, bool kPacked>
void run_portable(const problem& p, const inputs& in, const fa::page_entries<kPacked>& entries,
                  const Keys& keys, const Values& values, const Logits& logits, const char* what) {
  fa::call<float, fa::page_entries<kPacked>, Keys, Values, Logits, fa::dense_output> call;
  call.q = in.q.get();
  call.entries = entries;
  call.keys = keys;
  call.values = values;
  call.logits = logits;
  run(p, false, call, 1e-5, what, [](const auto& c) { return fa::launch_portable(c, nullptr); });
}

void alibi_over_int8_keys(std::uint32_t seed) {
  problem p = odd_problem(seed, true);
  p.keys_format = format::int8_entry_scale;
  p.values_format = format::f16;
  add_slopes(p);
  p.make();
  p.attend();
  const inputs in(p);
  fa::scaled<signed char, fa::entry_scale> keys;
  keys.scale = {in.key_scales.get(), std::int64_t{p.entries_per_page} * p.kv_heads, 1, p.kv_heads};
  run_portable(p, in, in.entries<false>(p), keys, fa::plain<__half>(),
               fa::alibi_logits<>{in.logits(p), in.slopes.get()}, "ALiBi, int8 K, NHD");
}

void mask_over_e4m3_keys_and_q8_0_values(std::uint32_t seed) {
  problem p = odd_problem(seed, false);
  p.keys_format = format::e4m3_head_scale;
  p.values_format = format::q8_0;
  p.make();
  add_mask(p);
  p.attend();
  const inputs in(p);
  fa::scaled<__nv_fp8_e4m3, fa::head_scale> keys;
  keys.scale.scales = in.key_scales.get();
  const fa::masked_logits<> logits = {in.logits(p), in.mask.get(), std::int64_t{p.query_tokens} * p.positions,
                                      p.positions};
  run_portable(p, in, in.entries<true>(p), keys, fa::q8_0(), logits, "mask, e4m3 K, q8_0 V, HND");
}

/// On the tensor cores, where weights are rounded to bf16.
void alibi_cap_and_sinks_over_bf16(std::uint32_t seed) {
  problem p = odd_problem(seed, false);
  p.key_dim = p.value_dim = 128;
  p.keys_format = p.values_format = format::bf16;
  p.q_is_bf16 = true;
  add_slopes(p);
  add_sinks(p);
  p.make();
  p.soft_cap = 3;
  p.attend();
  const inputs in(p);
  std::vector<__nv_bfloat16> queries;
  for (const float x : p.q) queries.push_back(__float2bfloat16_rn(x));
  const on_device<__nv_bfloat16> q(queries);
  using bf16 = fa::plain<__nv_bfloat16>;
  fa::call<__nv_bfloat16, fa::page_entries<true>, bf16, bf16, fa::alibi_logits<>, fa::dense_output> call;
  call.q = q.get();
  call.entries = in.entries<true>(p);
  call.logits = {in.logits(p), in.slopes.get()};
  run(p, true, call, 5e-3, "ALiBi, cap and sinks, bf16, HND, tensor cores",
      [](const auto& c) { return fa::launch_tensor_core<128>(c, nullptr); });
}

}  // namespace

int main() try {
  int devices = 0, major = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cout << "skipped: no CUDA device\n";
    return 0;
  }
  ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  with_fresh_seeds(40, alibi_over_int8_keys);
  with_fresh_seeds(40, mask_over_e4m3_keys_and_q8_0_values);
  if (major == 9) with_fresh_seeds(40, alibi_cap_and_sinks_over_bf16);
  with_fresh_seeds(20, pages_of_the_best_scores);
  with_fresh_seeds(20, copies_between_page_pools);
  with_fresh_seeds(20, scores_with_a_bias);
  std::cout << "kernels of an engine's own agree with double arithmetic\n";
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
