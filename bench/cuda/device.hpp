// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <flashmemory/status.hpp>
#include <flashmemory/stream.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace flashmemory_bench {

inline void must(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}
inline void must(flashmemory::status code) {
  if (code != flashmemory::status::ok) throw std::runtime_error(flashmemory::to_string(code));
}
inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// A block of device memory.
template <class T>
class device_block {
 public:
  device_block() = default;
  explicit device_block(std::size_t count) : count_(count) {
    void* block = nullptr;
    must(cudaMalloc(&block, std::max<std::size_t>(count * sizeof(T), 1)));
    data_ = static_cast<T*>(block);
  }
  explicit device_block(const std::vector<T>& host) : device_block(host.size()) {
    must(cudaMemcpy((void*)data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  device_block(device_block&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  device_block& operator=(device_block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~device_block() { cudaFree((void*)data_); }
  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

/// Random 16-bit floats of magnitude 1/8 to 2, the same bits meaning numbers of ordinary size in bf16 and f16.
void fill_random(void* device, std::size_t bytes, std::uint32_t seed);

/// Seconds of one of `calls` launches, back to back in one CUDA graph: the median of several replays. `launch(i,
/// stream)` enqueues call i, which should read other memory than the calls before it.
template <class Launch>
double seconds_per_call(int calls, const Launch& launch) {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  launch(0, flashmemory::stream_ref(stream));  // loads the module
  must(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t program;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) launch(i, flashmemory::stream_ref(stream));
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&program, graph, 0));
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int replay = 0; replay < 9; ++replay) {
    must(cudaEventRecord(begin, stream));
    must(cudaGraphLaunch(program, stream));
    must(cudaEventRecord(end, stream));
    must(cudaStreamSynchronize(stream));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end));
    if (replay >= 2) seconds.push_back(ms * 1e-3 / calls);
  }
  must(cudaEventDestroy(begin));
  must(cudaEventDestroy(end));
  must(cudaGraphExecDestroy(program));
  must(cudaGraphDestroy(graph));
  must(cudaStreamDestroy(stream));
  std::nth_element(seconds.begin(), seconds.begin() + std::ptrdiff_t(seconds.size() / 2), seconds.end());
  return seconds[seconds.size() / 2];
}

/// What the device can do, measured in this process before the first row that asks.
struct device_ceilings {
  double read_bytes =
      0;  ///< bytes/s of reading 4 GB by bulk copies into shared memory, 132 blocks of 16 KB stages
};
const device_ceilings& measured_device_ceilings();

/// Reports one call that reads `bytes`.
inline void report(benchmark::State& state, double seconds, double bytes) {
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["us"] = seconds * 1e6;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_read"] = bytes / seconds / measured_device_ceilings().read_bytes;
}

}  // namespace flashmemory_bench
