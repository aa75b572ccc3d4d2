# SPDX-License-Identifier: MIT
flashmemory_test(flashmemory_store_property SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_model.cpp LABELS property)
