# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  set(_trainer ${CMAKE_CURRENT_LIST_DIR})
  find_package(Threads REQUIRED)
  flashmemory_test(flashmemory_train_gradients LABELS unit INTERNAL LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_gradients.cpp ${_trainer}/train_optimiser.cpp)
  flashmemory_test(flashmemory_train_trainer LABELS unit LIBRARIES flashmemory::train Threads::Threads SOURCES
    ${_trainer}/train_seam.cpp ${_trainer}/train_trainer.cpp)
  flashmemory_test(flashmemory_train_heads LABELS unit LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_retrieval_heads.cpp)
  flashmemory_test(flashmemory_train_calibrate LABELS unit INTERNAL LIBRARIES flashmemory::train SOURCES
    ${_trainer}/train_calibrate.cpp)
  if(TARGET flashmemory_train_indexer)
    flashmemory_test(flashmemory_train_program LABELS unit LIBRARIES flashmemory::train SOURCES
      ${_trainer}/train_program.cpp)
    target_compile_definitions(flashmemory_train_program PRIVATE
      FLASHMEMORY_TRAIN_INDEXER="$<TARGET_FILE:flashmemory_train_indexer>"
      FLASHMEMORY_TRAIN_INDEXER_HAS_CUDA=$<BOOL:${FLASHMEMORY_CUDA}>)
    add_dependencies(flashmemory_train_program flashmemory_train_indexer)
  endif()
endif()
