# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_attend_property LABELS property SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attend_invariance.cpp)
