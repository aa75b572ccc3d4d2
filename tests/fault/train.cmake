# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  flashmemory_test(flashmemory_recordings_fault LABELS fault SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/train_recordings.cpp ${CMAKE_CURRENT_LIST_DIR}/train_resumed.cpp
    LIBRARIES flashmemory::train xxHash::inline)
endif()
