# SPDX-License-Identifier: MIT
flashmemory_cuda_test(cuda_score SOURCES score.cpp score_outputs.cpp score_select.cpp)
