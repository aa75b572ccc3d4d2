# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_v4 SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/deepseek_v4_append.cpp
  ${CMAKE_CURRENT_LIST_DIR}/deepseek_v4_attend.cpp)
