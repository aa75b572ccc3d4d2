// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/flashmemory.hpp>
#include <flashmemory/io/output_file.hpp>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

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

/// --benchmark_out=FILE, which the framework empties before the first row and writes as it goes: it is given a file beside
/// it, and what was there before stays until everything stands in the new one.
class report_file {
 public:
  /// \throws flashmemory::io_failure if it could not be written in the end
  explicit report_file(std::vector<std::string>& arguments) {
    const std::string option = "--benchmark_out=";
    for (std::string& argument : arguments) {
      if (argument.rfind(option, 0) != 0) continue;
      path_ = argument.substr(option.size());
      flashmemory::check_output_file(path_);
      if (std::filesystem::is_other(path_)) {
        path_.clear();
        continue;
      }
      argument = option + part();
    }
  }

  /// Everything has been measured.
  void finish() const {
    if (path_.empty()) return;
    std::ifstream file(part(), std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    if (text.empty() || file.bad())
      throw flashmemory::io_failure(flashmemory::status::io_error, part() + " cannot be read");
    flashmemory::write_file(path_, text);
    std::remove(part().c_str());
  }

 private:
  std::string part() const { return path_ + ".partial"; }
  std::string path_;
};

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

int main(int argc, char** argv) try {
  std::vector<std::string> arguments(argv, argv + argc);
  const report_file report(arguments);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  benchmark::Initialize(&argc, pointers.data());
  argv = pointers.data();
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const auto& c = flashmemory_bench::measured_ceilings();
  benchmark::AddCustomContext("git_commit", FLASHMEMORY_BENCH_COMMIT);
  benchmark::AddCustomContext("flashmemory_version", flashmemory::version());
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("threads", std::to_string(c.threads));
  benchmark::AddCustomContext("read_GB_per_s", giga(c.read_bytes));
  benchmark::AddCustomContext("fma_Gflop_per_s", giga(c.fma_flops));
  const std::size_t rows = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (rows == 0) {
    std::fprintf(stderr, "flashmemory_bench: --benchmark_filter matches no row\n");
    return 1;
  }
  report.finish();
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "flashmemory_bench: %s\n", e.what());
  return 1;
}
