// SPDX-License-Identifier: MIT
#pragma once

namespace flashmemory_bench {

/// What this machine can do, measured in this process before the first row that asks. Every row states the
/// fraction of one of these that it reaches.
struct ceilings {
  int threads = 0;             ///< of flashmemory::default_threads(), used for the "all" figures
  double read_bytes = 0;       ///< bytes/s of summing a buffer far larger than the caches, all threads
  double read_bytes_core = 0;  ///< the same on one thread
  double fma_flops = 0;        ///< f32 flop/s (an FMA is two) of independent FMA chains, all threads
  double fma_flops_core = 0;   ///< the same on one thread
};

/// Measured once, about two seconds; the best of several runs each.
const ceilings& measured_ceilings();

}  // namespace flashmemory_bench
