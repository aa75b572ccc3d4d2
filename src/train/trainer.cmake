# SPDX-License-Identifier: MIT
# The trainer's half of flashmemory::train. A GEMM of the CPU: OpenBLAS where there is one, else any BLAS with the C
# interface; Eigen for factorisations.
if(NOT DEFINED BLA_VENDOR AND NOT TARGET BLAS::BLAS)  # the variables of this folder alone
  set(BLA_VENDOR OpenBLAS)
  find_package(BLAS)
  if(NOT BLAS_FOUND)
    unset(BLA_VENDOR)
  endif()
endif()
if(NOT TARGET BLAS::BLAS)
  find_package(BLAS QUIET)
endif()
find_path(FLASHMEMORY_CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas)
mark_as_advanced(FLASHMEMORY_CBLAS_INCLUDE_DIR)
if(NOT TARGET BLAS::BLAS OR NOT FLASHMEMORY_CBLAS_INCLUDE_DIR)
  message(FATAL_ERROR "FLASHMEMORY_TRAIN is ON and needs a BLAS with the C interface, and there is none: install one (Debian: "
    "libopenblas-dev), or set FLASHMEMORY_TRAIN=OFF for the library without the trainer.")
endif()
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 3.3 QUIET NO_MODULE)
endif()
if(NOT TARGET Eigen3::Eigen)
  message(FATAL_ERROR "FLASHMEMORY_TRAIN is ON and needs Eigen 3.3 or newer, and there is none: install it (Debian: "
    "libeigen3-dev), or set FLASHMEMORY_TRAIN=OFF for the library without the trainer.")
endif()

target_sources(flashmemory_train PRIVATE
  exchange/artifact.cpp
  calibrate/calibrate.cpp
  learn/checkpoint.cpp
  learn/cpu_backend.cpp
  record/document_source.cpp
  learn/encoder.cpp
  calibrate/evaluate.cpp
  learn/examples.cpp
  learn/gemm.cpp
  learn/kernels.cpp
  learn/loss.cpp
  learn/model.cpp
  learn/optimiser.cpp
  label/retrieval_heads.cpp
  learn/sampler.cpp
  calibrate/scoring.cpp
  start/start.cpp
  start/start_bilinear.cpp
  start/start_moments.cpp
  learn/trainer.cpp
)
target_include_directories(flashmemory_train SYSTEM PRIVATE ${FLASHMEMORY_CBLAS_INCLUDE_DIR})
if(BLA_VENDOR STREQUAL "OpenBLAS")
  set_source_files_properties(learn/gemm.cpp PROPERTIES COMPILE_DEFINITIONS FLASHMEMORY_OPENBLAS)
endif()
target_link_libraries(flashmemory_train PRIVATE
  BLAS::BLAS $<BUILD_INTERFACE:Eigen3::Eigen>)
