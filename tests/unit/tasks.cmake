# SPDX-License-Identifier: MIT
# The task generator of the tinylm example, which needs none of the example's other dependencies.
set(_tinylm ${PROJECT_SOURCE_DIR}/examples/tinylm)
flashmemory_test(flashmemory_tasks_unit SERIAL LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/examples/tasks_generator.cpp
  ${CMAKE_CURRENT_LIST_DIR}/examples/session_maker.cpp
  ${CMAKE_CURRENT_LIST_DIR}/examples/always_kept.cpp
  ${_tinylm}/always_kept.cpp
  ${_tinylm}/haystack.cpp
  ${_tinylm}/policy_cell.cpp
  ${_tinylm}/session_maker.cpp
  ${_tinylm}/task_file.cpp
  ${_tinylm}/tasks.cpp
  ${_tinylm}/tokenizer.cpp
  LIBRARIES fmt::fmt nlohmann_json::nlohmann_json)
target_include_directories(flashmemory_tasks_unit PRIVATE ${_tinylm})
target_compile_definitions(flashmemory_tasks_unit PRIVATE TINYLM_DATA="${_tinylm}/data")

flashmemory_test(flashmemory_tinylm_report_unit SERIAL LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/examples/tinylm_report.cpp
  ${_tinylm}/always_kept.cpp
  ${_tinylm}/eval_report.cpp
  ${_tinylm}/html_report.cpp
  ${_tinylm}/policy_cell.cpp
  ${_tinylm}/residency_map.cpp
  ${_tinylm}/run_record.cpp
  ${_tinylm}/svg.cpp
  ${_tinylm}/terminal.cpp
  LIBRARIES fmt::fmt nlohmann_json::nlohmann_json)
target_include_directories(flashmemory_tinylm_report_unit PRIVATE ${_tinylm})

if(TARGET tinylm)
  flashmemory_test(flashmemory_tinylm_program SERIAL LABELS example SOURCES ${CMAKE_CURRENT_LIST_DIR}/examples/tinylm_program.cpp
    LIBRARIES nlohmann_json::nlohmann_json)
  target_compile_definitions(flashmemory_tinylm_program PRIVATE FLASHMEMORY_TINYLM="$<TARGET_FILE:tinylm>")
  add_dependencies(flashmemory_tinylm_program tinylm)
endif()
