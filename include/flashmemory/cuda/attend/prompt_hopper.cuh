// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/cuda/attend/prompt_produce.cuh>
#include <flashmemory/cuda/attend/prompt_softmax.cuh>
#include <flashmemory/cuda/core/ptx_wgmma_16.cuh>
#include <type_traits>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace attend {
namespace detail {

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The consumers: two warpgroups that multiply and soften.
template <int kDim, bool kLinear, class Call>
__device__ __forceinline__ void prompt_consume(const Call& call,
                                               typename prompt_pipeline<kDim>::memory& shared) {
  using pipe = prompt_pipeline<kDim>;
  using T = typename Call::query_type;
  constexpr int steps = kDim / 16;
  const prompt_work& w = call.work;
  const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const std::uint64_t first_keys = wgmma::descriptor(shared.keys[0]),
                      first_values = wgmma::value_descriptor(shared.values[0], prompt_block * 128),
                      first_q =
                          wgmma::descriptor(ptx::shared_address(shared.q) + std::uint32_t(group * 64 * 128));
  prompt_place<pipe::stages> place;  // of the next block
  for (std::uint32_t turn = 0;; ++turn) {
    ptx::barrier_wait(shared.full_unit + turn % 2, (turn / 2) & 1);
    const prompt_unit u = shared.units[turn % 2];
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(shared.empty_unit + turn % 2);
    if (!u.there) break;
    if (u.range >= u.ranges) continue;
    if (u.blocks == 0 && !w.first && !w.last) continue;  // its state stays what it was
    const int mine = group * 64;                         // first row of this warpgroup
    prompt_thread thread;
    prompt_rows rows;
    rows.clear();
    float o[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t r = mine + warp * 16 + g + 8 * half;
      thread.row[half] = r;
      thread.visible[half] = u.sees(r, w.group);
      thread.place[half] = {u.item,
                            (u.first_row + r) / w.group,
                            u.kv_head * w.group + (u.first_row + r) % w.group,
                            0,
                            0,
                            std::int64_t(u.position) + (u.first_row + r) / w.group};
    }
    if (!w.first && (u.ranges == 1 || u.blocks > 0)) load_prompt_state<kDim>(w, u, thread.row, rows, o);
    if (mine >= u.rows) {  // nothing to do but to keep up
      for (std::int32_t b = 0; b < u.blocks; ++b, place = place.next()) {
        ptx::barrier_wait(shared.full_keys + place.slot, place.parity);
        if (lane == 0) ptx::barrier_arrive(shared.empty_keys + place.slot);
        ptx::barrier_wait(shared.full_values + place.slot, place.parity);
        if (lane == 0) ptx::barrier_arrive(shared.empty_values + place.slot);
      }
    } else if (u.blocks > 0) {
      std::uint32_t q[pipe::q_in_registers ? steps : 1][4];
      const auto q_row = [&](std::int32_t r) {
        const std::int32_t row = u.first_row + r;
        return call.q + (u.first_token + row / w.group) * call.q_row_stride +
               std::int64_t(u.kv_head * w.group + row % w.group) * call.q_head_stride;
      };
      if constexpr (pipe::q_in_registers) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const T* const from = q_row(thread.row[half]);
          const bool there = thread.row[half] < u.rows;
#pragma unroll
          for (int k = 0; k < steps; ++k) {
            q[k][half] = there ? *reinterpret_cast<const std::uint32_t*>(from + 16 * k + 2 * t) : 0;
            q[k][half + 2] = there ? *reinterpret_cast<const std::uint32_t*>(from + 16 * k + 2 * t + 8) : 0;
          }
        }
      } else {
        ptx::sync_threads<128>(4 + group);  // the unit before has been multiplied
        for (int i = threadIdx.x % 128; i < 64 * kDim / 8; i += 128) {
          const int r = mine + i / (kDim / 8), piece = i % (kDim / 8);
          const uint4 v =
              r < u.rows ? *reinterpret_cast<const uint4*>(q_row(r) + 8 * piece) : make_uint4(0, 0, 0, 0);
          unsigned char* const to =
              shared.q + piece / 8 * (prompt_tile * 128) + r * 128 + ((piece ^ r) % 8) * 16;
          *reinterpret_cast<uint4*>(to) = v;
        }
        ptx::fence_async_proxy();
        ptx::sync_threads<128>(4 + group);
      }
      const auto multiply_keys = [&](int slot, float(&s)[32]) {
        const std::uint32_t keys = std::uint32_t(first_keys) + std::uint32_t(slot * (pipe::block_bytes / 16));
#pragma unroll
        for (int k = 0; k < steps; ++k) {
          const std::uint64_t b = std::uint64_t{1024 / 16 | 1u << 30} << 32 |
                                  (keys + (k / 4 * prompt_block * 128 + k % 4 * 32) / 16);
          if constexpr (pipe::q_in_registers) {
            wgmma::keys_64<T>(s, q[k], b, k > 0);
          } else {
            wgmma::keys_64<T>(s, first_q + (k / 4 * prompt_tile * 128 + k % 4 * 32) / 16, b, k > 0);
          }
        }
      };
      const auto multiply_values = [&](int slot, const std::uint32_t(&p)[4][4]) {
        const std::uint32_t values =
            std::uint32_t(first_values) + std::uint32_t(slot * (pipe::block_bytes / 16));
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma::values<T>(o, p[k], std::uint64_t{1024 / 16 | 1u << 30} << 32 | (values + k * 2048 / 16), 1);
      };
      // The least that any row of this warpgroup sees: blocks before its end need no mask.
      const std::int32_t all_see = mine + 64 <= u.rows ? u.sees(mine, w.group) : 0;
      const float scale = prompt_scale<kLinear>(call.logits);
      const auto rescale = [&](const float(&factor)[2]) {
        if (!__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) o[i] *= factor[i / 2 % 2];
      };
      // What a block takes is under way while the one before it is softened: at its start the keys of this block, the
      // values of the one before and the keys of the next one are, in this order.
      const std::int32_t blocks = __shfl_sync(~0u, u.blocks, 0);
      constexpr bool ahead = kDim < 256;  // whether there are registers for the products of two blocks
      constexpr int buffers = ahead ? 2 : 1;
      float s[buffers][32], factor[2];
      std::uint32_t p[4][4];
      std::int32_t first[buffers], count[buffers];
      using place_type = prompt_place<pipe::stages>;
      const auto issue_keys = [&](const place_type& at, bool there, int i) {
        if (!there) ptx::barrier_wait(shared.full_keys + at.slot, at.parity);
        wgmma::fence();
        multiply_keys(uniform(at.slot), s[i]);
        wgmma::commit();
      };
      const auto issue_values = [&](const place_type& at, bool there) {
        if (!there) ptx::barrier_wait(shared.full_values + at.slot, at.parity);
        wgmma::fence();
        multiply_values(uniform(at.slot), p);
        wgmma::commit();
      };
      const auto look = [&](const place_type& at, int i) {
        first[i] = shared.first[at.slot];
        count[i] = shared.count[at.slot];
      };
      const auto soften = [&](int i) {
        prompt_logits<kLinear>(call, thread, count[i] < prompt_block || first[i] + prompt_block > all_see,
                               first[i], count[i], s[i]);
        prompt_maxima(s[i], scale, rows.maximum, factor);
        prompt_weights(s[i], scale, rows.maximum, factor, rows.sum);
        done_before(shared.unused, rows.sum[0] + rows.sum[1]);
      };
      const auto free_keys = [&](const place_type& at, int i) {
        wgmma::hold(s[i]);
        if (lane == 0) ptx::barrier_arrive(shared.empty_keys + at.slot);
      };
      const auto free_values = [&](const place_type& at) {
        wgmma::hold(o);
        if (lane == 0) ptx::barrier_arrive(shared.empty_values + at.slot);
      };
      const auto settle = [&](int i) {
        rescale(factor);
        prompt_pack<T>(s[i], p);
      };
      if (!ahead || blocks % 2 == 1) {
        issue_keys(place, false, 0);
        look(place, 0);
        wgmma::wait();
        free_keys(place, 0);
        soften(0);
        settle(0);
        if constexpr (ahead) {
          issue_values(place, false);
          wgmma::wait();
          free_values(place);
          place = place.next();
        }
      }
      if constexpr (!ahead) {
        // The values of the block before are multiplied while this one is softened.
        for (std::int32_t b = 1; b < blocks; ++b) {
          const place_type before = place;
          place = place.next();
          issue_keys(place, false, 0);
          look(place, 0);
          issue_values(before, false);
          wgmma::wait_but<1>();
          free_keys(place, 0);
          soften(0);
          wgmma::wait();
          free_values(before);
          settle(0);
        }
        issue_values(place, false);
        wgmma::wait();
        free_values(place);
        place = place.next();
      } else if (blocks > 1) {
        // Softens block `place`, whose products with the keys are there, while those of the next block and the values
        // of the block before are multiplied. Nothing stays under way from one block to the next: the assembler would
        // take all multiplications one by one.
        place_type before = place, next = place.next();
        bool keys_there = false, values_there = false;
        const auto step = [&](auto is_first, auto is_last, int i) {
          if constexpr (!decltype(is_last)::value) issue_keys(next, keys_there, 1 - i);
          if constexpr (!decltype(is_first)::value) issue_values(before, values_there);
          if constexpr (!decltype(is_last)::value) look(next, 1 - i);
          const place_type done_keys = next, done_values = before;
          before = place;
          place = next;
          next = next.next();
          keys_there = ptx::barrier_test(shared.full_keys + next.slot, next.parity);
          values_there = ptx::barrier_test(shared.full_values + before.slot, before.parity);
          soften(i);
          wgmma::wait();
          if constexpr (!decltype(is_last)::value) free_keys(done_keys, 1 - i);
          if constexpr (!decltype(is_first)::value) free_values(done_values);
          settle(i);
        };
        issue_keys(place, false, 0);
        look(place, 0);
        wgmma::wait();
        free_keys(place, 0);
        step(std::true_type{}, std::false_type{}, 0);
        for (std::int32_t left = blocks / 2; left > 1; --left) {
          step(std::false_type{}, std::false_type{}, 1);
          step(std::false_type{}, std::false_type{}, 0);
        }
        step(std::false_type{}, std::true_type{}, 1);
        issue_values(before, values_there);
        wgmma::wait();
        free_values(before);
      }
    }
    if (u.ranges == 1 && w.last) {
      write_prompt_rows<kDim>(call, u, thread.row, rows, o);
      continue;
    }
    if (w.first || u.blocks > 0) store_prompt_state<kDim>(w, u, thread.row, rows, o);
    if (!w.last) continue;
    // The unit that comes last joins the states of all ranges, in their order.
    ptx::sync_threads<pipe::consumers>(1);
    if (threadIdx.x == 128) {
      std::uint32_t* const counter = w.counters + prompt_first_counter + u.tile;
      const bool last = ptx::add_acq_rel(counter, 1u) == unsigned(u.ranges - 1);
      if (last) *counter = 0;
      shared.last = last;
    }
    ptx::sync_threads<pipe::consumers>(1);
    const bool last = shared.last != 0;
    ptx::sync_threads<pipe::consumers>(1);  // before the next unit's answer overwrites this one
    if (!last) continue;
    join_prompt_states<kDim>(w, u, thread.row, rows, o);
    write_prompt_rows<kDim>(call, u, thread.row, rows, o);
  }
}

#endif

template <int kDim, bool kLinear, class Call>
static __global__ void __launch_bounds__(prompt_pipeline<kDim>::threads, 1)
    prompt_kernel(const Call call, const __grid_constant__ CUtensorMap map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using pipe = prompt_pipeline<kDim>;
  extern __shared__ __align__(1024) unsigned char dynamic[];
  auto& shared = *reinterpret_cast<typename pipe::memory*>(dynamic);
  if (threadIdx.x == 0) {
    for (int i = 0; i < pipe::stages; ++i) {
      ptx::barrier_init(shared.full_keys + i, 1);
      ptx::barrier_init(shared.full_values + i, 1);
      ptx::barrier_init(shared.empty_keys + i, pipe::consumers / 32);
      ptx::barrier_init(shared.empty_values + i, pipe::consumers / 32);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::barrier_init(shared.full_unit + i, 1);
      ptx::barrier_init(shared.empty_unit + i, pipe::consumers / 32 + 2);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::give_registers<40>();
    if (threadIdx.x < 32)
      prompt_produce<kDim, true>(call, map, shared);
    else if (threadIdx.x < 64)
      prompt_produce<kDim, false>(call, map, shared);
    else if (threadIdx.x < 96)
      prompt_schedule<kDim>(call, shared);
  } else {
    ptx::take_registers<232>();
    prompt_consume<kDim, kLinear>(call, shared);
  }
#endif
}

/// A map of all memory: 64 elements, rows below prompt_block, columns of 64 elements, multiples of 16 bytes, multiples of
/// 2^32 bytes.
template <int kDim>
cudaError_t prompt_map(CUtensorMap& map) noexcept {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t code =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t code =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (code != cudaSuccess) return code;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[5] = {64, prompt_block, kDim / 64, cuuint64_t{1} << 28, cuuint64_t{1} << 25};
  const cuuint64_t strides[4] = {kDim * 2, 128, 16, cuuint64_t{1} << 32};
  const cuuint32_t box[5] = {64, prompt_block, kDim / 64, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 5, nullptr, sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int kDim, bool kLinear, class Call>
cudaError_t launch_prompt_hopper(const Call& call, cudaStream_t stream) noexcept {
  using pipe = prompt_pipeline<kDim>;
  constexpr int bytes = sizeof(typename pipe::memory);
  static_assert(bytes <= 227 * 1024, "what a block can have");
  constexpr auto kernel = prompt_kernel<kDim, kLinear, Call>;
  CUtensorMap map;
  if (const cudaError_t code = prompt_map<kDim>(map); code != cudaSuccess) return code;
  if (const cudaError_t code =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      code != cudaSuccess)
    return code;
  kernel<<<unsigned(call.work.num_sms), pipe::threads, bytes, stream>>>(call, map);
  return cudaGetLastError();
}

/// Whether logits are products times a factor.
inline bool is_linear(const capped_logits& logits) noexcept { return logits.soft_cap == 0; }

}  // namespace detail

/// Whether the build has the kernels of launch_prompt_hopper(), which take sm_90a.
template <class Call>
bool has_prompt_hopper() noexcept {
  // Built for another architecture the kernel is a stub, which shows in its registers.
  cudaFuncAttributes built;
  return cudaFuncGetAttributes(&built, detail::prompt_kernel<128, false, Call>) == cudaSuccess &&
         built.numRegs >= 64;
}

/// Attention of prompts by tensor cores, for compute capability 9.0: Query is __nv_bfloat16 or __half, the entries of a page
/// and KV head are packed, K, V and q lie at multiples of 16 bytes and so do pages, heads and rows of q, and key_dim =
/// value_dim = kDim; any Logits and Output. Softmax weights are rounded to Query before they multiply V.
///
/// Enqueues; never synchronises, never allocates, can be captured.
/// \param call  with a prompt_work_of() a plan for tensor cores, of at least one item
template <int kDim, class Call>
cudaError_t launch_prompt_hopper(const Call& call, cudaStream_t stream) noexcept {
  using query = typename Call::query_type;
  static_assert(kDim == 64 || kDim == 128 || kDim == 256, "of which it has pipelines");
  static_assert(std::is_same_v<query, __nv_bfloat16> || std::is_same_v<query, __half>, "what it multiplies");
  if constexpr (std::is_same_v<typename Call::logits_type, capped_logits>)
    if (detail::is_linear(call.logits)) return detail::launch_prompt_hopper<kDim, true>(call, stream);
  return detail::launch_prompt_hopper<kDim, false>(call, stream);
}

}  // namespace attend
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
