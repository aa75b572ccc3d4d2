# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_store SOURCES store_faults.cpp store_fences.cpp store_random.cpp store_waits.cpp)
