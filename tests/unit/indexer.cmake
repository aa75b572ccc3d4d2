# SPDX-License-Identifier: MIT
set(_indexer ${CMAKE_CURRENT_LIST_DIR})
flashmemory_test(flashmemory_safetensors_unit SERIAL LABELS unit SOURCES
  ${_indexer}/io/safetensors_read.cpp ${_indexer}/io/safetensors_write.cpp)
find_package(Threads REQUIRED)
flashmemory_test(flashmemory_output_unit LABELS unit LIBRARIES Threads::Threads SOURCES
  ${_indexer}/output_file.cpp ${_indexer}/parallel_fork.cpp)
flashmemory_test(flashmemory_indexer_unit LABELS unit LIBRARIES hwy::hwy SOURCES
  ${_indexer}/indexer/dual_encoder_artifact.cpp ${_indexer}/indexer/dual_encoder_keys.cpp ${_indexer}/indexer/dual_encoder_score.cpp
  ${_indexer}/indexer/index_key_format.cpp ${_indexer}/indexer/pooled_keys.cpp ${_indexer}/indexer/quantise.cpp)
set_source_files_properties(${_indexer}/indexer/dual_encoder_artifact.cpp PROPERTIES
  COMPILE_DEFINITIONS FLASHMEMORY_TEST_DATA="${PROJECT_SOURCE_DIR}/tests")
# alone, because it uses a private table
flashmemory_test(flashmemory_query_unit LABELS unit SOURCES
  ${_indexer}/indexer/dual_encoder_query.cpp ${PROJECT_SOURCE_DIR}/src/indexer/rope.cpp)
# alone, because it replaces operator new
flashmemory_test(flashmemory_indexer_allocation LABELS unit SOURCES ${_indexer}/indexer/dual_encoder_allocation.cpp)
