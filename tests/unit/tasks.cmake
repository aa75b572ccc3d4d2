# SPDX-License-Identifier: MIT
# The task generator of the tinylm example, which needs none of the example's other dependencies.
set(_tinylm ${PROJECT_SOURCE_DIR}/examples/tinylm)
flashmemory_test(flashmemory_tasks_unit LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/tasks_generator.cpp
  ${_tinylm}/task_file.cpp
  ${_tinylm}/tasks.cpp
  ${_tinylm}/tokenizer.cpp
  LIBRARIES fmt::fmt-header-only nlohmann_json::nlohmann_json)
target_include_directories(flashmemory_tasks_unit PRIVATE ${_tinylm})
target_compile_definitions(flashmemory_tasks_unit PRIVATE TINYLM_DATA="${_tinylm}/data")
