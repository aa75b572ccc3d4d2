# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_store_unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_append.cpp LABELS unit INTERNAL)
