# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_conformance SOURCES
  ${PROJECT_SOURCE_DIR}/tests/conformance/conformance.cpp ${PROJECT_SOURCE_DIR}/tests/conformance/deepseek_v4.cpp
  ${PROJECT_SOURCE_DIR}/tests/conformance/pooled_keys.cpp
  ${CMAKE_CURRENT_LIST_DIR}/conformance_backend.cpp)
flashmemory_cuda_test(flashmemory_cuda_step SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/step_deepseek_v4.cpp
  ${CMAKE_CURRENT_LIST_DIR}/step_example.cpp
  ${CMAKE_CURRENT_LIST_DIR}/step_graph.cpp
  ${CMAKE_CURRENT_LIST_DIR}/step_input.cpp
  ${CMAKE_CURRENT_LIST_DIR}/step_overlap.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device_indexer.cpp
  ${CMAKE_CURRENT_LIST_DIR}/pooled_step.cpp
  ${CMAKE_CURRENT_LIST_DIR}/selector_device.cpp)
target_compile_definitions(flashmemory_cuda_step PRIVATE FLASHMEMORY_TEST_DATA="${PROJECT_SOURCE_DIR}/tests")
# Replaces operator new, so it stands alone.
flashmemory_cuda_test(flashmemory_cuda_step_allocations SOURCES ${CMAKE_CURRENT_LIST_DIR}/step_allocations.cpp)
