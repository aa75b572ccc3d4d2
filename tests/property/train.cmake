# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  flashmemory_test(flashmemory_recordings_property LABELS property LIBRARIES flashmemory::train SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/train_recordings.cpp)
endif()
