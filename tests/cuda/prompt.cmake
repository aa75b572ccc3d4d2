# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_prompt SOURCES prompt_values.cpp prompt_invariance.cpp prompt_input.cpp
  prompt_stream.cpp)
