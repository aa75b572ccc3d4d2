# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_store_fault LABELS fault SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_faults.cpp
  ${CMAKE_CURRENT_LIST_DIR}/store_files.cpp ${CMAKE_CURRENT_LIST_DIR}/store_outcomes.cpp)
flashmemory_test(flashmemory_store_large LABELS large SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_large.cpp)
