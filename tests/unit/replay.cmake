# SPDX-License-Identifier: MIT
# The planted structure of the deepseek_v4_replay example, which needs neither CUDA nor the library.
set(_replay ${PROJECT_SOURCE_DIR}/examples/deepseek_v4_replay)
flashmemory_test(flashmemory_replay_unit SERIAL LABELS unit SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/examples/replay_topics.cpp ${_replay}/topics.cpp)
target_include_directories(flashmemory_replay_unit PRIVATE ${_replay})
