// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "v4/attend_sm90.cuh"
#include "v4/consume.cuh"
#include "v4/produce.cuh"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {
namespace {

template <int kStages, int kRaw>
__global__ void __launch_bounds__(attend_threads, 1)
    attend_kernel(const __grid_constant__ attend_params params, int splits) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using smem = attend_smem<kStages, kRaw>;
  using fetcher = attend_fetcher<kStages, kRaw>;
  extern __shared__ unsigned char memory[];
  const std::uint32_t base = (ptx::shared_address(memory) + 1023) & ~1023u;
  const int rank = blockIdx.x % splits, first_head = blockIdx.y * 64;
  const std::int64_t row = blockIdx.x / splits;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) smem::init_barriers(base);
  // Up to here a launch may run beside the end of the kernel before it, and so may the next one beside this.
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const std::int32_t window_stated = stated_count(params.window, row),
                     selected_stated = stated_count(params.selected, row);
  // The lists' numbers are asked for before the counts are known, as if the lists were full: they mostly are, and a
  // round trip to memory is a good part of a short call.
  const block_range guess(params.window.capacity, params.selected.capacity, rank, splits);
  std::int32_t first = -1, second = -1;
  if (group == 1) {
    first = fetcher::number(params, guess, row, 0);
    second = fetcher::number(params, guess, row, 1);
  }
  if (group < 2) {
    attend_consumer<kStages, kRaw>::load_q(
        base, static_cast<const __nv_bfloat16*>(params.q) + (row * params.heads + first_head) * entry_dim);
  }
  __syncthreads();
  const block_range range(clamped_count(params.window, window_stated),
                          clamped_count(params.selected, selected_stated), rank, splits);
  if (group == 1 && !(range == guess)) {
    first = fetcher::number(params, range, row, 0);
    second = fetcher::number(params, range, row, 1);
  }
  // A block without entries works through one empty tile: the pipeline has no other special case.
  const int tiles = max(1, (range.end - range.begin + tile_rows - 1) / tile_rows);

  if (group >= 2) {
    ptx::give_registers<64>();
    attend_producer<kStages, kRaw>{base, tiles}.run();
  } else if (group == 0) {
    ptx::take_registers<208>();
    attend_consumer<kStages, kRaw>{base, tiles}.first(params, splits);
  } else {
    ptx::take_registers<168>();
    attend_consumer<kStages, kRaw>{base, tiles}.second({params, range, row, base, tiles, first, second},
                                                       params, splits);
  }
#else
  __trap();
#endif
}

/// How a launch looks. `attributes` must outlive the result.
template <int kStages, int kRaw>
cudaError_t configure(std::int64_t rows, std::int32_t heads, std::int32_t splits,
                      cudaLaunchAttribute (&attributes)[2], cudaLaunchConfig_t& config) {
  constexpr int bytes = attend_smem<kStages, kRaw>::bytes + 1024;
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(splits);
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.gridDim = dim3(static_cast<unsigned>(rows * splits), static_cast<unsigned>(heads / 64));
  config.blockDim = dim3(attend_threads);
  config.dynamicSmemBytes = bytes;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaFuncSetAttribute(attend_kernel<kStages, kRaw>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes);
}

template <int kStages, int kRaw>
cudaError_t launch(const attend_params& params, std::int64_t rows, std::int32_t splits, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  const cudaError_t error = configure<kStages, kRaw>(rows, params.heads, splits, attributes, config);
  if (error != cudaSuccess) return error;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, attend_kernel<kStages, kRaw>, params, static_cast<int>(splits));
}

}  // namespace

constexpr int tile_stages = 3, raw_stages = 3;

int launch_attend_sm90(const attend_params& params, std::int64_t rows, std::int32_t splits,
                       void* stream) noexcept {
  return launch<tile_stages, raw_stages>(params, rows, splits, static_cast<cudaStream_t>(stream));
}

int resident_clusters(std::int32_t splits, int* clusters) noexcept {
  // Built without sm_90a the kernel is a stub, which shows in its registers.
  cudaFuncAttributes built{};
  cudaError_t error = cudaFuncGetAttributes(&built, attend_kernel<tile_stages, raw_stages>);
  *clusters = 0;
  if (error != cudaSuccess || built.numRegs < 64) return error;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  error = configure<tile_stages, raw_stages>(1, 64, splits, attributes, config);
  if (error != cudaSuccess) return error;
  config.numAttrs = 1;  // the cluster alone
  return cudaOccupancyMaxActiveClusters(clusters, attend_kernel<tile_stages, raw_stages>, &config);
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
