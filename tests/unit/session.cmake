# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_session_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/session/roundtrip.cpp)
