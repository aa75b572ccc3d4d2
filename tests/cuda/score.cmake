# SPDX-License-Identifier: MIT
flashmemory_cuda_test(flashmemory_cuda_score SOURCES score.cpp score_outputs.cpp top_k.cpp)
