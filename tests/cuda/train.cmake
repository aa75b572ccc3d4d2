# SPDX-License-Identifier: MIT
if(TARGET flashmemory_cuda_train)
  flashmemory_cuda_test(flashmemory_cuda_train_backend LIBRARY flashmemory::cuda_train SOURCES
    train_backend.cpp train_memory.cpp train_run.cpp)
endif()
