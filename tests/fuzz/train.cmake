# SPDX-License-Identifier: MIT
if(FLASHMEMORY_TRAIN)
  target_compile_options(flashmemory_train PRIVATE ${_sanitize} -fsanitize=fuzzer-no-link)
  flashmemory_fuzz(flashmemory_fuzz_recordings ${CMAKE_CURRENT_LIST_DIR}/fuzz_recordings.cpp)
  target_link_libraries(flashmemory_fuzz_recordings PRIVATE flashmemory::train)
endif()
