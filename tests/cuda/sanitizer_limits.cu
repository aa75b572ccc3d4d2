// SPDX-License-Identifier: MIT
// Kernels of a few lines, all of them right but `cluster_unwaited`, that show what compute-sanitizer makes of ways to hand
// memory over; docs/cuda.md, section Sanitizers. Not a test: built by the target flashmemory_sanitizer_limits, for Hopper.
//   compute-sanitizer --tool racecheck flashmemory_sanitizer_limits ring_one_lane
// ring_one_lane, ring_all_lanes, bulk_one_lane, bulk_all_lanes: a ring between two warps, filled by stores or bulk copies;
//     who arrives at its mbarriers. racecheck 2025.3.1 reports both ring_one_lane and bulk_one_lane.
// cluster_arrive, cluster_send, cluster_unwaited: two blocks that read each other's shared memory after an arrival there, or
//     send by st.async, with or without the wait. Only cluster_arrive is reported.
// bulk_store, batch_copy: global memory written by bulk copies or cudaMemcpyBatchAsync(), then read. initcheck reports both.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <flashmemory/cuda/core/ptx.cuh>

namespace {

namespace ptx = flashmemory::cuda::ptx;

void must(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

enum class source { stores, bulk };

/// Warp 1 writes, warp 0 reads; kLanes of a warp arrive, after the warp has met.
template <source kFrom, int kLanes>
__global__ void ring(const float* from, float* out) {
  __shared__ alignas(128) float place[2][32];
  __shared__ std::uint64_t full[2], empty[2];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      ptx::barrier_init(full + s, kFrom == source::bulk ? 1 : kLanes);
      ptx::barrier_init(empty + s, kLanes);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 6; ++i) {
    const int s = i % 2;
    if (threadIdx.x >= 32) {
      ptx::barrier_wait(empty + s, (i / 2 & 1) ^ 1);
      if (kFrom == source::bulk) {
        if (lane == 0) {
          ptx::barrier_arrive_expect(full + s, sizeof place[s]);
          ptx::bulk_copy(place[s], from, sizeof place[s], full + s);
        }
      } else {
        place[s][lane] = from[lane + i];
        __syncwarp();
        if (lane < kLanes) ptx::barrier_arrive(full + s);
      }
    } else {
      ptx::barrier_wait(full + s, i / 2 & 1);
      sum += place[s][31 - lane];
      __syncwarp();
      if (lane < kLanes) ptx::barrier_arrive(empty + s);
    }
  }
  if (threadIdx.x < 32) out[lane] = sum;
}

enum class way { arrive, send, unwaited };

/// Two blocks of 32 threads, each of which needs the other one's values.
template <way kWay>
__global__ void __cluster_dims__(2, 1, 1) exchange(float* out) {
  __shared__ float values[32], landed[32];
  __shared__ std::uint64_t ready;
  const int t = threadIdx.x;
  const auto other = static_cast<std::uint32_t>(1 - blockIdx.x % 2);
  if (t == 0) {
    ptx::barrier_init(&ready, kWay == way::arrive ? 32 : 1);
    ptx::barrier_init_fence();
  }
  ptx::cluster_sync();
  const std::uint32_t there = ptx::in_block(&ready, other).value;
  values[t] = static_cast<float>(t);
  __syncwarp();
  float value = 0;
  if (kWay == way::arrive) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
    ptx::cluster_wait(&ready, 0);
    asm volatile("ld.shared::cluster.f32 %0, [%1];"
                 : "=f"(value)
                 : "r"(ptx::in_block(values + 31 - t, other).value)
                 : "memory");
  } else {
    if (t == 0) ptx::barrier_arrive_expect(&ready, sizeof landed);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     ptx::in_block(landed + t, other).value),
                 "r"(__float_as_uint(values[t])), "r"(there)
                 : "memory");
    if (kWay == way::send) ptx::cluster_wait(&ready, 0);
    value = landed[31 - t];
  }
  out[blockIdx.x * 32 + t] = value;
  ptx::cluster_sync();
}

__global__ void store_in_bulk(float* to) {
  __shared__ alignas(128) float values[32];
  values[threadIdx.x] = 1;
  ptx::fence_async_proxy();
  __syncwarp();
  if (threadIdx.x == 0)
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 128;\n"
        "cp.async.bulk.commit_group;\n"
        "cp.async.bulk.wait_group 0;" ::"l"(__cvta_generic_to_global(to)),
        "r"(ptx::shared_address(values).value)
        : "memory");
}

__global__ void read(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x]; }

void copy_in_a_batch(float* first, float* second) {
  float* pinned = nullptr;
  cudaStream_t stream = nullptr;
  must(cudaHostAlloc(&pinned, 256, cudaHostAllocDefault));
  must(cudaStreamCreate(&stream));
  void* to[] = {first, second};
  const void* from[] = {pinned, pinned + 32};
  std::size_t bytes[] = {128, 128}, attribute = 0;
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  must(cudaMemcpyBatchAsync(to, from, bytes, 2, &attributes, &attribute, 1, stream));
  must(cudaStreamSynchronize(stream));
}

}  // namespace

int main(int argc, char** argv) {
  const auto is = [&](const char* name) { return argc == 2 && std::strcmp(argv[1], name) == 0; };
  float *fresh = nullptr, *other = nullptr, *zeros = nullptr, *out = nullptr;
  for (float** block : {&fresh, &other, &zeros, &out}) must(cudaMalloc(block, 1024));
  must(cudaMemset(zeros, 0, 1024));
  if (is("ring_one_lane"))
    ring<source::stores, 1><<<1, 64>>>(zeros, out);
  else if (is("ring_all_lanes"))
    ring<source::stores, 32><<<1, 64>>>(zeros, out);
  else if (is("bulk_one_lane"))
    ring<source::bulk, 1><<<1, 64>>>(zeros, out);
  else if (is("bulk_all_lanes"))
    ring<source::bulk, 32><<<1, 64>>>(zeros, out);
  else if (is("cluster_arrive"))
    exchange<way::arrive><<<2, 32>>>(out);
  else if (is("cluster_send"))
    exchange<way::send><<<2, 32>>>(out);
  else if (is("cluster_unwaited"))
    exchange<way::unwaited><<<2, 32>>>(out);
  else if (is("bulk_store"))
    store_in_bulk<<<1, 32>>>(fresh);
  else if (is("batch_copy"))
    copy_in_a_batch(fresh, other);
  else
    return std::printf("which? The source says.\n"), 2;
  must(cudaGetLastError());
  if (is("bulk_store") || is("batch_copy")) read<<<1, 32>>>(fresh, out);
  must(cudaDeviceSynchronize());
}
