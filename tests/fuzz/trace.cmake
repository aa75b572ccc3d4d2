# SPDX-License-Identifier: MIT
set(_view ${PROJECT_SOURCE_DIR}/examples/trace_view)
flashmemory_fuzz(flashmemory_fuzz_trace ${CMAKE_CURRENT_LIST_DIR}/fuzz_trace.cpp ${_view}/picture.cpp ${_view}/timeline.cpp
  ${_view}/trace_file.cpp)
target_link_libraries(flashmemory_fuzz_trace PRIVATE fmt::fmt nlohmann_json::nlohmann_json)
