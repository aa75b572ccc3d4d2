# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_policy_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/policy_limits.cpp ${CMAKE_CURRENT_LIST_DIR}/policy_plan.cpp)
flashmemory_test(flashmemory_selector_unit LABELS unit INTERNAL SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/selector_cadence.cpp ${CMAKE_CURRENT_LIST_DIR}/selector_fallback.cpp
  ${CMAKE_CURRENT_LIST_DIR}/selector_input.cpp ${CMAKE_CURRENT_LIST_DIR}/selector_keys.cpp)
