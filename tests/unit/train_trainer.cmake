# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  set(_trainer ${CMAKE_CURRENT_LIST_DIR})
  find_package(Threads REQUIRED)
  flashmemory_test(flashmemory_train_gradients LABELS unit INTERNAL LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_gradients.cpp ${_trainer}/train_optimiser.cpp)
  flashmemory_test(flashmemory_train_trainer LABELS unit LIBRARIES flashmemory::train Threads::Threads SOURCES
    ${_trainer}/train_trainer.cpp)
  flashmemory_test(flashmemory_train_calibrate LABELS unit INTERNAL LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_calibrate.cpp)
endif()
