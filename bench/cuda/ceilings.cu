// SPDX-License-Identifier: MIT
#include <cstdint>

#include "bench/cuda/device.hpp"

namespace flashmemory_bench {
namespace {

__global__ void random_kernel(std::uint32_t* words, std::size_t count, std::uint32_t seed) {
  const std::size_t stride = std::size_t(gridDim.x) * blockDim.x;
  for (std::size_t i = std::size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    std::uint32_t x = std::uint32_t(i) * 2654435761u ^ seed ^ std::uint32_t(i >> 32);
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    x ^= x >> 16;
    // 0x3800 to 0x3fff is 3e-5 to 2 in bf16 and 0.5 to 2 in f16.
    words[i] = (x & 0x87ff87ffu) | 0x38003800u;
  }
}

constexpr int stages = 6, stage_bytes = 16384;

/// One thread per block keeps six bulk copies of 16 KB in flight; nothing is done with what arrives.
__global__ void __launch_bounds__(32, 1) read_kernel(const unsigned char* data, std::size_t bytes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ std::uint64_t barriers[stages];
  if (threadIdx.x != 0) return;
  const auto address = [](const void* p) { return std::uint32_t(__cvta_generic_to_shared(p)); };
  for (int s = 0; s < stages; ++s)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(barriers + s)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const std::size_t blocks = bytes / stage_bytes;
  std::size_t issued = blockIdx.x;
  int count = 0;
  const auto issue = [&](int slot) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barriers + slot)),
                 "r"(stage_bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            address(shared + slot * stage_bytes)),
        "l"(__cvta_generic_to_global(data + issued * stage_bytes)), "r"(stage_bytes),
        "r"(address(barriers + slot))
        : "memory");
    issued += gridDim.x;
    ++count;
  };
  for (int s = 0; s < stages && issued < blocks; ++s) issue(s);
  for (int done = 0; done < count; ++done) {
    const int slot = done % stages;
    asm volatile(
        "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra ready;\nbra "
        "again;\nready:\n}\n" ::"r"(address(barriers + slot)),
        "r"((done / stages) & 1)
        : "memory");
    if (issued < blocks) issue(slot);
  }
#endif
}

}  // namespace

void fill_random(void* device, std::size_t bytes, std::uint32_t seed) {
  random_kernel<<<1024, 256>>>(static_cast<std::uint32_t*>(device), bytes / 4, seed);
  must(cudaGetLastError());
  must(cudaDeviceSynchronize());
}

const device_ceilings& measured_device_ceilings() {
  static const device_ceilings measured = [] {
    device_ceilings c;
    constexpr std::size_t bytes = std::size_t{4} << 30;
    device_block<unsigned char> buffer(bytes);
    fill_random(buffer.data(), bytes, 1);
    int device = 0, sms = 0;
    must(cudaGetDevice(&device));
    must(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
    must(
        cudaFuncSetAttribute(read_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, stages * stage_bytes));
    const double seconds = seconds_per_call(4, [&](int, flashmemory::stream_ref stream) {
      read_kernel<<<unsigned(sms), 32, stages * stage_bytes, stream.cuda()>>>(buffer.data(), bytes);
      must(cudaGetLastError());
    });
    c.read_bytes = double(bytes) / seconds;
    return c;
  }();
  return measured;
}

}  // namespace flashmemory_bench
