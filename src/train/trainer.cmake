# SPDX-License-Identifier: MIT
# The trainer's half of flashmemory::train. A GEMM of the CPU: OpenBLAS where there is one, else any BLAS with the C
# interface; Eigen for factorisations.
if(NOT DEFINED BLA_VENDOR)  # the variables of this folder alone
  set(BLA_VENDOR OpenBLAS)
  find_package(BLAS)
  if(NOT BLAS_FOUND)
    unset(BLA_VENDOR)
  endif()
endif()
find_package(BLAS REQUIRED)
find_path(FLASHMEMORY_CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas REQUIRED)
mark_as_advanced(FLASHMEMORY_CBLAS_INCLUDE_DIR)
find_package(Eigen3 3.3 REQUIRED NO_MODULE)

target_sources(flashmemory_train PRIVATE
  artifact.cpp
  calibrate.cpp
  checkpoint.cpp
  cpu_backend.cpp
  document_source.cpp
  encoder.cpp
  evaluate.cpp
  examples.cpp
  gemm.cpp
  kernels.cpp
  loss.cpp
  model.cpp
  optimiser.cpp
  retrieval_heads.cpp
  sampler.cpp
  scoring.cpp
  start.cpp
  start_bilinear.cpp
  start_moments.cpp
  trainer.cpp
)
target_include_directories(flashmemory_train SYSTEM PRIVATE ${FLASHMEMORY_CBLAS_INCLUDE_DIR})
if(BLA_VENDOR STREQUAL "OpenBLAS")
  set_source_files_properties(gemm.cpp PROPERTIES COMPILE_DEFINITIONS FLASHMEMORY_OPENBLAS)
endif()
target_link_libraries(flashmemory_train PRIVATE
  BLAS::BLAS $<BUILD_INTERFACE:Eigen3::Eigen> $<BUILD_INTERFACE:hwy::hwy>)
