// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/deepseek_v4/accumulate.cuh"
#include "cuda/deepseek_v4/attend_sm90.cuh"
#include "cuda/deepseek_v4/produce.cuh"
#include "cuda/deepseek_v4/score.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

template <int kStages, int kRaw, int kParts>
__global__ void __launch_bounds__(attend_threads, 1)
    attend_kernel(const __grid_constant__ attend_params params, int splits) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using smem = attend_smem<kStages, kRaw>;
  using fetcher = attend_fetcher<kStages, kRaw>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t base = (ptx::shared_address(memory).value + 1023) & ~1023u;
  const int rank = blockIdx.x % splits, first_head = blockIdx.y * 64;
  const std::int64_t row = blockIdx.x / splits;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) smem::init_barriers(base);
  __syncthreads();
  // Parameters come through a cache that each launch finds cold: all of them at once, before there is anything to do.
  asm volatile("" ::"l"(params.window_pool.pages), "l"(params.selected_pool.step), "l"(params.window.entries),
               "l"(params.selected.stride), "l"(params.out), "r"(params.heads));
  // Up to here a launch may run beside the end of the kernel before it, and so may the next one beside this.
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const auto* q = static_cast<const __nv_bfloat16*>(params.q) + (row * params.heads + first_head) * entry_dim;
  const std::int32_t window_stated = stated_count(params.window, row),
                     selected_stated = stated_count(params.selected, row);
  // A block without entries works through one empty tile: the pipeline has no other special case.
  const auto tiles_of = [](const block_range& range) {
    return max(1, (range.end - range.begin + tile_rows - 1) / tile_rows);
  };
  const auto stated_range = [&] {
    return block_range(clamped_count(params.window, window_stated),
                       clamped_count(params.selected, selected_stated), rank, splits);
  };
  if (group == 0) {
    ptx::take_registers<128>();
    load_half_q(base + smem::q_upper, q + 256);
    attend_scorer<kStages, kRaw>{base, tiles_of(stated_range())}.run(params.scale_log2);
  } else if (group == 3) {
    ptx::give_registers<64>();
    load_half_q(base + smem::q_lower, q);
    arrive_after_copies(base + smem::q_full);
    attend_producer<kStages, kRaw>{base, tiles_of(stated_range())}.run();
  } else {
    ptx::take_registers<160>();
    // The lists' numbers are asked for before the counts are known, as if the lists were full: they mostly are, and a
    // round trip to memory is a good part of a short call.
    const block_range guess(params.window.capacity, params.selected.capacity, rank, splits);
    std::int32_t first = fetcher::number(params, guess, row, 0),
                 second = fetcher::number(params, guess, row, 1);
    const block_range range = stated_range();
    if (!(range == guess)) {
      first = fetcher::number(params, range, row, 0);
      second = fetcher::number(params, range, row, 1);
    }
    const int tiles = tiles_of(range);
    attend_accumulator<kStages, kRaw, kParts>{base, tiles}.run(
        {params, range, row, base, tiles, first, second},
        {params, base, row, first_head, static_cast<int>(blockIdx.z), rank, splits});
  }
#else
  __trap();
#endif
}

/// How a launch looks. `attributes` must outlive the result.
template <int kStages, int kRaw, int kParts>
cudaError_t configure(std::int64_t rows, std::int32_t heads, std::int32_t splits,
                      cudaLaunchAttribute (&attributes)[2], cudaLaunchConfig_t& config) {
  constexpr int bytes = attend_smem<kStages, kRaw>::bytes + 1024;
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(splits);
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.gridDim = dim3(static_cast<unsigned>(rows * splits), static_cast<unsigned>(heads / 64), kParts);
  config.blockDim = dim3(attend_threads);
  config.dynamicSmemBytes = bytes;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaFuncSetAttribute(attend_kernel<kStages, kRaw, kParts>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <int kStages, int kRaw, int kParts>
cudaError_t launch(const attend_params& params, std::int64_t rows, std::int32_t splits, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  const cudaError_t error = configure<kStages, kRaw, kParts>(rows, params.heads, splits, attributes, config);
  if (error != cudaSuccess) return error;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, attend_kernel<kStages, kRaw, kParts>, params, static_cast<int>(splits));
}

}  // namespace

constexpr int tile_stages = 4, raw_stages = 3;

int launch_attend_sm90(const attend_params& params, std::int64_t rows, const attend_cut& cut,
                       void* stream) noexcept {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (cut.dim_splits) {
    case 1:
      return launch<tile_stages, raw_stages, 1>(params, rows, cut.splits, on);
    case 2:
      return launch<tile_stages, raw_stages, 2>(params, rows, cut.splits, on);
    default:
      return launch<tile_stages, raw_stages, 4>(params, rows, cut.splits, on);
  }
}

int resident_clusters(std::int32_t splits, int* clusters) noexcept {
  // Built without sm_90a the kernel is a stub, which shows in its registers.
  cudaFuncAttributes built{};
  cudaError_t error = cudaFuncGetAttributes(&built, attend_kernel<tile_stages, raw_stages, 1>);
  *clusters = 0;
  if (error != cudaSuccess || built.numRegs < 64) return error;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  error = configure<tile_stages, raw_stages, 1>(1, 64, splits, attributes, config);
  if (error != cudaSuccess) return error;
  config.numAttrs = 1;  // the cluster alone
  return cudaOccupancyMaxActiveClusters(clusters, attend_kernel<tile_stages, raw_stages, 1>, &config);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
