# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_policy_unit SERIAL LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/select/policy_limits.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/policy_plan.cpp)
flashmemory_test(flashmemory_selector_unit LABELS unit LIBRARIES xxHash::inline SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_cadence.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_dual_encoder.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_fallback.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_hold.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_input.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_keys.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_overlap.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_prompts.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_state.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/selector_taps.cpp
  ${CMAKE_CURRENT_LIST_DIR}/select/trace.cpp)
# Replaces operator new, so it stands alone.
flashmemory_test(flashmemory_select_allocations LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/select/select_allocations.cpp)
flashmemory_test(flashmemory_controls_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/indexer/controls_quest.cpp
  ${CMAKE_CURRENT_LIST_DIR}/indexer/controls_simple.cpp)
