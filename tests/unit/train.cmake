# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  flashmemory_test(flashmemory_recordings_unit LABELS unit LIBRARIES flashmemory::train nlohmann_json::nlohmann_json SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/train/attention_mass.cpp
    ${CMAKE_CURRENT_LIST_DIR}/train/labels.cpp
    ${CMAKE_CURRENT_LIST_DIR}/train/recorder.cpp
    ${CMAKE_CURRENT_LIST_DIR}/train/retrieval.cpp)
  # Replaces operator new, so it stands alone, and not under sanitizers, which replace it too.
  flashmemory_test(flashmemory_recordings_memory LABELS heap LIBRARIES flashmemory::train SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/train/memory.cpp)
endif()
