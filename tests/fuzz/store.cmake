# SPDX-License-Identifier: MIT
flashmemory_fuzz(flashmemory_fuzz_store ${CMAKE_CURRENT_LIST_DIR}/fuzz_store.cpp)
