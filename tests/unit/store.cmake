# SPDX-License-Identifier: MIT
set(_store ${CMAKE_CURRENT_LIST_DIR})
flashmemory_test(flashmemory_store_unit LABELS unit SOURCES
  ${_store}/store_admission.cpp ${_store}/store_append.cpp ${_store}/store_deepseek_v4.cpp
  ${_store}/store_fork_truncate.cpp
  ${_store}/store_geometry.cpp ${_store}/store_keys_transfer.cpp ${_store}/store_overlap.cpp ${_store}/store_pass.cpp
  ${_store}/store_recall.cpp)
flashmemory_test(flashmemory_store_slots LABELS unit INTERNAL SOURCES ${_store}/store_slots.cpp
  ${PROJECT_SOURCE_DIR}/src/store/slot_pool.cpp ${PROJECT_SOURCE_DIR}/src/store/chunk_record.cpp)
# alone, because it replaces operator new
flashmemory_test(flashmemory_store_allocation LABELS unit SOURCES ${_store}/store_allocation.cpp)
