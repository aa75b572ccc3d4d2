# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_query_encoder SOURCES query_encoder.cpp)
target_compile_definitions(flashmemory_cuda_query_encoder PRIVATE FLASHMEMORY_TEST_DATA="${PROJECT_SOURCE_DIR}/tests")
