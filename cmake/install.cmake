# SPDX-License-Identifier: MIT
# Install rules and the CMake and pkg-config packages. Everything is relative to the prefix, which may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flashmemory)
install(TARGETS flashmemory EXPORT flashmemory-targets FILE_SET HEADERS FILE_SET interop_headers)
install(TARGETS flashmemory_headers EXPORT flashmemory-targets FILE_SET HEADERS FILE_SET kernels)
install(EXPORT flashmemory-targets NAMESPACE flashmemory:: DESTINATION ${_package_dir})
if(FLASHMEMORY_CUDA)  # an export set of its own, so that a CPU consumer of a full install needs no CUDA Toolkit
  install(TARGETS flashmemory_cuda EXPORT flashmemory-cuda-targets FILE_SET HEADERS)
  install(EXPORT flashmemory-cuda-targets NAMESPACE flashmemory:: DESTINATION ${_package_dir})
endif()
if(FLASHMEMORY_TRAIN)
  install(TARGETS flashmemory_train EXPORT flashmemory-train-targets FILE_SET HEADERS)
  install(EXPORT flashmemory-train-targets NAMESPACE flashmemory:: DESTINATION ${_package_dir})
endif()
if(FLASHMEMORY_C)
  install(TARGETS flashmemory_c EXPORT flashmemory-c-targets FILE_SET HEADERS)
  install(EXPORT flashmemory-c-targets NAMESPACE flashmemory:: DESTINATION ${_package_dir})
endif()
if(FLASHMEMORY_CUDA AND FLASHMEMORY_TRAIN)
  install(TARGETS flashmemory_cuda_train EXPORT flashmemory-cuda_train-targets FILE_SET HEADERS)
  install(EXPORT flashmemory-cuda_train-targets NAMESPACE flashmemory:: DESTINATION ${_package_dir})
endif()
# The project's name is spelt out: inside another project CMAKE_INSTALL_DOCDIR may be that project's.
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/flashmemory)

# A shared library brings what it links; whoever links the static one must find the same libraries.
set(_find_dependencies "")
set(_pc_requires "")
set(_pc_libs "")
if(NOT FLASHMEMORY_SHARED)
  string(APPEND _find_dependencies "if(NOT TARGET hwy::hwy)\n  find_dependency(hwy)\nendif()\n")
  set(_pc_requires libhwy)
  if(FLASHMEMORY_OPENMP)
    set(_pc_libs -l${FLASHMEMORY_OPENMP_RUNTIME})
  endif()
endif()

set(_train_needs_blas OFF)
if(FLASHMEMORY_TRAIN AND NOT FLASHMEMORY_SHARED)
  set(_train_needs_blas ON)
endif()
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/flashmemory-config.cmake.in
  ${PROJECT_BINARY_DIR}/flashmemory-config.cmake
  INSTALL_DESTINATION ${_package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/flashmemory-config-version.cmake
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/flashmemory-config.cmake ${PROJECT_BINARY_DIR}/flashmemory-config-version.cmake
  DESTINATION ${_package_dir})

# From the .pc file's own folder to the prefix, so that lib, lib64 and lib/<triplet> all work.
file(RELATIVE_PATH _pc_to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" _pc_to_prefix ${_pc_to_prefix})
file(RELATIVE_PATH _pc_libdir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH _pc_includedir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(${PROJECT_SOURCE_DIR}/cmake/flashmemory.pc.in ${PROJECT_BINARY_DIR}/flashmemory.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/flashmemory.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
