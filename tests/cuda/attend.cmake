# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_attend SOURCES attend_values.cpp attend_invariance.cpp attend_input.cpp
  shared_scratch.cpp)
