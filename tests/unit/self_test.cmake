# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_self_test_unit SERIAL LABELS unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/self_test.cpp)
