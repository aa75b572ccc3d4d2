# SPDX-License-Identifier: MIT
# BACKEND cpu or cuda. Without a GPU the latter is compiled, and shows as skipped.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
set(options -D BACKEND=${BACKEND} -D CMAKE_PREFIX_PATH=${WORK}/static/prefix)
if(BACKEND STREQUAL "cuda")
  list(APPEND options -D CMAKE_CUDA_COMPILER=${NVCC} -D CMAKE_CUDA_ARCHITECTURES=90a-real)
  if(ccache)
    list(APPEND options -D CMAKE_CUDA_COMPILER_LAUNCHER=${ccache})
  endif()
endif()
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/kernels kernels_${BACKEND} ${options})
run(${build}/kernels)
message(STATUS "${output}")
expect_match("agree with double arithmetic|skipped: no CUDA device" "${output}" kernels)
