// SPDX-License-Identifier: MIT
#pragma once

// One PTX instruction, or one that cannot be taken apart, per function. Section numbers are those of the PTX ISA 8.x.

#include <cstdint>

namespace flashmemory {
inline namespace v0 {
namespace cuda {
/// PTX instructions that CUDA C++ has no name for. A kind of memory is a type of address, so that none is taken for
/// another; ordinary pointers are to global memory.
namespace ptx {

/// A place in this block's shared memory.
struct shared_address {
  std::uint32_t value;  ///< bytes from the start of shared memory

  /// That of an object in shared memory.
  __device__ __forceinline__ shared_address(const void* pointer)
      : value(static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer))) {}
  /// That many bytes from the start of shared memory.
  __device__ __forceinline__ explicit shared_address(std::uint32_t bytes) : value(bytes) {}

  /// A place `bytes` bytes behind this one.
  __device__ __forceinline__ shared_address operator+(std::uint32_t bytes) const {
    return shared_address(value + bytes);
  }
};

/// A place in the shared memory of any block of a cluster.
struct cluster_address {
  std::uint32_t value;  ///< in the cluster's own numbering
};

/// 2^x, relative error below 2^-22 (9.7.3 ex2.approx.ftz). Of -inf it is 0.
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Adds, releasing what this thread's block has written before and acquiring what others released (9.7.13.4).
__device__ __forceinline__ std::uint32_t add_acq_rel(std::uint32_t* counter, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(value)
               : "memory");
  return before;
}

/// Stores what other blocks poll; orders nothing else (9.7.9.11).
__device__ __forceinline__ void store_relaxed(unsigned long long* at, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

/// Loads what other blocks store with store_relaxed() (9.7.9.8).
__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* at) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}

/// Brings what is there into the L1 cache, unlike prefetch, which stops at the L2 cache (9.7.9.8).
__device__ __forceinline__ void load_unused(const void* at) {
  asm volatile("{\n.reg .b32 unused;\nld.global.ca.u32 unused, [%0];\n}\n" ::"l"(at));
}

/// Of `kThreads` threads of a block, at one of its barriers (9.7.13.1); __syncthreads() is barrier 0.
template <int kThreads>
__device__ __forceinline__ void sync_threads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// Shared memory by its address, which an asm statement keeps where a pointer would be worked out again.

/// An address that is not worked out again at each use.
__device__ __forceinline__ shared_address kept(shared_address from) {
  std::uint32_t address;
  asm volatile("mov.u32 %0, %1;" : "=r"(address) : "r"(from.value));
  return shared_address(address);
}
/// Loads 16 bytes.
__device__ __forceinline__ uint4 load_shared_4(shared_address at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at.value));
  return v;
}
/// Loads 8 bytes.
__device__ __forceinline__ float2 load_shared_2(shared_address at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at.value));
  return v;
}
/// Loads 4 bytes.
__device__ __forceinline__ float load_shared(shared_address at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at.value));
  return v;
}
/// Adds one to a counter if `condition` holds, without a branch (9.7.13.5 red).
__device__ __forceinline__ void count_shared_if(bool condition, shared_address counter) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p red.shared.add.u32 [%1], 1;\n}\n" ::"r"(
                   static_cast<std::uint32_t>(condition)),
               "r"(counter.value)
               : "memory");
}
/// `a` if `first` is not 0, else `b`, without a branch (9.7.7 selp).
__device__ __forceinline__ std::uint32_t select(std::uint32_t a, std::uint32_t b, std::uint32_t first) {
  std::uint32_t c;
  asm("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nselp.b32 %0, %1, %2, p;\n}\n"
      : "=r"(c)
      : "r"(a), "r"(b), "r"(first));
  return c;
}

// Asynchronous copies of a thread's own (9.7.9.25.3), sm_80.

/// Copies 16 bytes between aligned addresses, past the L1 cache.
__device__ __forceinline__ void copy_async_16(shared_address to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to.value), "l"(from) : "memory");
}
/// Copies 4 bytes.
__device__ __forceinline__ void copy_async_4(shared_address to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to.value), "l"(from) : "memory");
}
/// Until this thread's copies have arrived.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// mbarrier objects (9.7.13.15): one producer transaction, many consumers.

/// Makes a barrier whose phases end after `arrivals` arrivals.
__device__ __forceinline__ void barrier_init(shared_address barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.value), "r"(arrivals) : "memory");
}

/// Makes freshly initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// Arrives once.
__device__ __forceinline__ void barrier_arrive(shared_address barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.value) : "memory");
}

/// Arrives, and lets the phase end only once `bytes` have been copied.
__device__ __forceinline__ void barrier_arrive_expect(shared_address barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.value), "r"(bytes)
               : "memory");
}

/// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(shared_address barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier.value),
      "r"(parity)
      : "memory");
}

/// Whether the phase of this parity has ended; does not wait.
__device__ __forceinline__ bool barrier_test(shared_address barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier.value), "r"(parity)
      : "memory");
  return done != 0;
}

// The copy engine of a multiprocessor (9.7.9.25.5). Sizes are multiples of 16 between aligned addresses.

/// Copies `bytes` and counts them on `barrier`.
__device__ __forceinline__ void bulk_copy(shared_address to, const void* global, std::uint32_t bytes,
                                          shared_address barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to.value),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(barrier.value)
      : "memory");
}
/// Copies `bytes` the other way, as part of this thread's next group.
__device__ __forceinline__ void bulk_store(void* global, shared_address from, std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
      "r"(from.value), "r"(bytes)
      : "memory");
}
/// Ends a group of bulk_store().
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until all groups but the last `kPending` have been written.
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
/// Until all groups but the last `kPending` have read shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Clusters of blocks (9.7.13.3, 9.7.13.15): shared memory of another block by its address in the cluster.

/// Where `place` is in the block of this rank.
__device__ __forceinline__ cluster_address in_block(shared_address place, std::uint32_t rank) {
  cluster_address address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address.value) : "r"(place.value), "r"(rank));
  return address;
}
/// Stores to shared memory of another block, and counts 16 bytes on the barrier there (9.7.9.12 st.async).
__device__ __forceinline__ void cluster_send(cluster_address to, const float4& v, cluster_address barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          to.value),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier.value)
      : "memory");
}
/// barrier_wait() that acquires what came from the cluster.
__device__ __forceinline__ void cluster_wait(shared_address barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier.value),
      "r"(parity)
      : "memory");
}
/// Stores 4 bytes in another block.
__device__ __forceinline__ void cluster_store(cluster_address at, std::uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at.value), "r"(value) : "memory");
}
/// One half of cluster_sync(): what was written before it is visible after the other half.
__device__ __forceinline__ void cluster_arrive_all() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// The other half of cluster_sync().
__device__ __forceinline__ void cluster_wait_all() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Until all threads of all blocks of the cluster are here.
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive_all();
  cluster_wait_all();
}

/// Waits for the kernels that this launch may overlap (9.7.13.13).
__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// Lets the next launch begin; it waits for the end of this one by wait_for_previous_kernel().
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/// Orders this thread's ordinary shared-memory accesses before later ones of the copy engine or tensor cores.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Brings the registers of a warpgroup's threads down to a number (9.7.19.5 setmaxnreg), sm_90a.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
/// Brings them up, to what others have given.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace ptx
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
