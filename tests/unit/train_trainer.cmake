# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  set(_trainer ${CMAKE_CURRENT_LIST_DIR})
  find_package(Threads REQUIRED)
  flashmemory_test(flashmemory_train_gradients LABELS unit LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train/gradients.cpp ${_trainer}/train/optimiser.cpp)
  flashmemory_test(flashmemory_train_trainer LABELS unit LIBRARIES flashmemory::train Threads::Threads SOURCES
    ${_trainer}/train/seam.cpp ${_trainer}/train/trainer.cpp)
  flashmemory_test(flashmemory_train_heads LABELS unit LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train/retrieval_heads.cpp)
  flashmemory_test(flashmemory_train_calibrate LABELS unit LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train/calibrate.cpp)
  if(TARGET flashmemory_train_indexer)
    flashmemory_test(flashmemory_train_program LABELS program LIBRARIES flashmemory::train SOURCES
      ${_trainer}/train/program.cpp)
    target_compile_definitions(flashmemory_train_program PRIVATE
      FLASHMEMORY_TRAIN_INDEXER="$<TARGET_FILE:flashmemory_train_indexer>"
      FLASHMEMORY_TRAIN_INDEXER_HAS_CUDA=$<BOOL:${FLASHMEMORY_CUDA}>)
    add_dependencies(flashmemory_train_program flashmemory_train_indexer)
  endif()
endif()
