// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <flashmemory/error.hpp>
#include <limits>

#include "cuda/attend/kernel.hpp"
#include "cuda/attend/prompt_kernel.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

prompt_plan plan_prompt(const prompt_shape& shape, std::int32_t num_sms) {
  validate(shape.geometry);
  const auto require = [](bool holds, const char* field, const char* wanted, std::int64_t found) {
    if (!holds)
      throw argument_error(status::bad_argument,
                           fmt::format("prompt_shape::{} must be {}, it is {}", field, wanted, found));
  };
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const auto& g = shape.geometry;
  require(g.format == kv_format::separate, "geometry.format", "separate",
          static_cast<std::int64_t>(g.format));
  require(g.key_dim <= attend::max_dim, "geometry.key_dim", "at most 256", g.key_dim);
  require(g.value_dim <= attend::max_dim, "geometry.value_dim", "at most 256", g.value_dim);
  require(g.tokens_per_entry == 1, "geometry.tokens_per_entry", "1", g.tokens_per_entry);
  require(shape.query_heads >= 1 && shape.query_heads % g.kv_heads == 0 && shape.query_heads <= 65535,
          "query_heads", "a positive multiple of kv_heads", shape.query_heads);
  require(shape.max_items >= 1 && shape.max_items <= most, "max_items", "positive", shape.max_items);
  require(shape.max_tokens >= 1 && shape.max_tokens <= most / shape.query_heads, "max_tokens",
          "between 1 and 2^31 / query_heads", shape.max_tokens);
  require(shape.max_chunks >= 1 && shape.max_chunks <= most / g.entries_per_chunk, "max_chunks",
          "positive, and fewer than 2^31 entries", shape.max_chunks);
  require(num_sms >= 0, "num_sms", "0 or the multiprocessors to fill", num_sms);
  int device = 0, major = 0, minor = 0;
  const auto ask = [](cudaError_t code) {
    if (code != cudaSuccess)
      throw error(status::cuda_error, fmt::format("plan_prompt: {}", cudaGetErrorString(code)));
  };
  ask(cudaGetDevice(&device));
  ask(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  ask(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (num_sms == 0) ask(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  const bool tensor_cores =
      major == 9 && minor == 0 && detail::has_tensor_core_kernel(g) && detail::has_prompt_hopper();
  return attend::prompt_plan_for(shape, num_sms, tensor_cores);
}

std::size_t prompt_state_bytes(const prompt_plan& plan) noexcept { return attend::prompt_states_of(plan); }

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
