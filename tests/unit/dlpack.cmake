# SPDX-License-Identifier: MIT
# The header that it needs is the host's, not the library's.
find_path(FLASHMEMORY_DLPACK dlpack/dlpack.h)
mark_as_advanced(FLASHMEMORY_DLPACK)
if(FLASHMEMORY_DLPACK)
  flashmemory_test(flashmemory_dlpack_unit SERIAL LABELS unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/dlpack_tensors.cpp)
  target_include_directories(flashmemory_dlpack_unit SYSTEM PRIVATE ${FLASHMEMORY_DLPACK})
endif()
