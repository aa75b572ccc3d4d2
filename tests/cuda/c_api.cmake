# SPDX-License-Identifier: MIT
if(FLASHMEMORY_C)
  flashmemory_cuda_test(flashmemory_cuda_c_api LIBRARY flashmemory::c SOURCES ${CMAKE_CURRENT_LIST_DIR}/c_api.cpp)
  target_link_libraries(flashmemory_cuda_c_api PRIVATE CUDA::cudart)
endif()
