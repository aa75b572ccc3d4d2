# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  set(_trainer ${CMAKE_CURRENT_LIST_DIR})
  flashmemory_test(flashmemory_train_gradients LABELS unit INTERNAL LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_gradients.cpp)
endif()
