# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_attend_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend/edges.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/input.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/lists.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/mass.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/merge.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/prompts.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/reach.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/values.cpp)
# Replaces operator new, so it stands alone.
flashmemory_test(flashmemory_attend_allocation LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend/allocation.cpp)
# Chooses instruction sets for the whole process, so it stands alone.
flashmemory_test(flashmemory_attend_targets SERIAL LABELS unit LIBRARIES hwy::hwy SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend/targets.cpp)
flashmemory_test(flashmemory_deepseek_v4_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend/deepseek_v4_attend.cpp
  ${CMAKE_CURRENT_LIST_DIR}/attend/deepseek_v4_format.cpp)
flashmemory_test(flashmemory_attend_cuda_plan LABELS unit SERIAL SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend/cuda_plan.cpp)
