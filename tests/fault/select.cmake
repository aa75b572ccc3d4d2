# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_selector_fault LABELS fault SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/selector_faults.cpp ${CMAKE_CURRENT_LIST_DIR}/selector_outcomes.cpp)
# Replaces operator new, so it stands alone.
flashmemory_test(flashmemory_set_up_fault LABELS fault SOURCES ${CMAKE_CURRENT_LIST_DIR}/set_up_failures.cpp)
flashmemory_test(flashmemory_session_fault LABELS fault LIBRARIES xxHash::inline SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/session_files.cpp ${CMAKE_CURRENT_LIST_DIR}/session_identity.cpp)
flashmemory_test(flashmemory_saving_fault LABELS fault LIBRARIES ${CMAKE_DL_LIBS} SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/saving.cpp ${PROJECT_SOURCE_DIR}/tests/support/system_calls.cpp)
