# SPDX-License-Identifier: MIT
set(_view ${PROJECT_SOURCE_DIR}/examples/trace_view)
flashmemory_test(flashmemory_trace_view_unit SERIAL LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/examples/trace_view.cpp
  ${_view}/picture.cpp
  ${_view}/timeline.cpp
  ${_view}/trace_file.cpp
  LIBRARIES fmt::fmt nlohmann_json::nlohmann_json)
if(TARGET trace_view)
  target_compile_definitions(flashmemory_trace_view_unit PRIVATE FLASHMEMORY_TRACE_VIEW="$<TARGET_FILE:trace_view>")
  add_dependencies(flashmemory_trace_view_unit trace_view)
endif()
