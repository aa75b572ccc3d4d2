# SPDX-License-Identifier: MIT
flashmemory_fuzz(flashmemory_fuzz_safetensors ${CMAKE_CURRENT_LIST_DIR}/fuzz_safetensors.cpp)
