# SPDX-License-Identifier: MIT
flashmemory_fuzz(flashmemory_fuzz_session ${CMAKE_CURRENT_LIST_DIR}/fuzz_session.cpp)
