// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <flashmemory/flashmemory.hpp>
#include <fstream>
#include <string>

#include "bench/ceilings.hpp"

namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string giga(double value) { return std::to_string(value * 1e-9); }

}  // namespace

/// The ceilings themselves, so that every report carries them as rows. The time is meaningless.
static void ceiling(benchmark::State& state) {
  const auto& c = flashmemory_bench::measured_ceilings();
  for (auto _ : state) benchmark::DoNotOptimize(&c);
  state.counters["read_GB/s"] = c.read_bytes * 1e-9;
  state.counters["read_core_GB/s"] = c.read_bytes_core * 1e-9;
  state.counters["fma_Gflop/s"] = c.fma_flops * 1e-9;
  state.counters["fma_core_Gflop/s"] = c.fma_flops_core * 1e-9;
}
BENCHMARK(ceiling)->Iterations(1);

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const auto& c = flashmemory_bench::measured_ceilings();
  benchmark::AddCustomContext("git_commit", FLASHMEMORY_BENCH_COMMIT);
  benchmark::AddCustomContext("flashmemory_version", flashmemory::version());
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("threads", std::to_string(c.threads));
  benchmark::AddCustomContext("read_GB_per_s", giga(c.read_bytes));
  benchmark::AddCustomContext("fma_Gflop_per_s", giga(c.fma_flops));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
