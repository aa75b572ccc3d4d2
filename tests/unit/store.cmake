# SPDX-License-Identifier: MIT
set(_store ${CMAKE_CURRENT_LIST_DIR})
flashmemory_test(flashmemory_store_unit LABELS unit SOURCES
  ${_store}/store/admission.cpp ${_store}/store/append.cpp ${_store}/store/deepseek_v4.cpp
  ${_store}/store/fork_truncate.cpp
  ${_store}/store/geometry.cpp ${_store}/store/index_key_types.cpp ${_store}/store/keys_transfer.cpp ${_store}/store/overlap.cpp ${_store}/store/pass.cpp
  ${_store}/store/in_place.cpp ${_store}/store/quota.cpp ${_store}/store/recall.cpp ${_store}/store/store_bytes.cpp)
flashmemory_test(flashmemory_store_slots LABELS unit SOURCES ${_store}/store/slots.cpp
  ${PROJECT_SOURCE_DIR}/src/store/slot_pool.cpp ${PROJECT_SOURCE_DIR}/src/store/chunk_record.cpp)
# alone, because it replaces operator new
flashmemory_test(flashmemory_store_allocation LABELS unit SOURCES ${_store}/store/allocation.cpp)
flashmemory_test(flashmemory_store_late LABELS unit INTERNAL LIBRARIES xxHash::inline SOURCES ${_store}/store/late.cpp)
# The store's own files once more, with the checks that the library may have been built without.
file(GLOB _store_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/store/*.cpp)
flashmemory_test(flashmemory_store_checked LABELS unit INTERNAL LIBRARIES xxHash::inline fmt::fmt-header-only
  SOURCES ${_store}/store/checked.cpp ${_store_sources})
target_compile_definitions(flashmemory_store_checked PRIVATE FLASHMEMORY_CHECKED=1)
