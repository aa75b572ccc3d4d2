# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_select_property LABELS property SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/select_properties.cpp)
