# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  flashmemory_test(flashmemory_train_faults LABELS fault LIBRARIES flashmemory::train SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/train_trainer.cpp)
endif()
