# SPDX-License-Identifier: MIT
# What the library is built with, wherever it comes from: targets that a host already has, else packages. A host's own copy
# is never looked for a second time: two copies of one library in a program are one too many.

# fmt, header-only: compiled into our .cpp files, so that nobody who links us links it. Of a host that has only the compiled
# library the headers serve as well.
if(NOT TARGET fmt::fmt-header-only AND NOT TARGET fmt::fmt)
  find_package(fmt REQUIRED)
endif()
if(TARGET fmt::fmt-header-only)
  set(_fmt fmt::fmt-header-only)
else()
  add_library(flashmemory_fmt INTERFACE)
  target_include_directories(flashmemory_fmt SYSTEM INTERFACE $<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>)
  target_compile_definitions(flashmemory_fmt INTERFACE FMT_HEADER_ONLY=1)
  set(_fmt flashmemory_fmt)
endif()

if(NOT TARGET nlohmann_json::nlohmann_json)
  find_package(nlohmann_json 3.10 REQUIRED)
endif()

# Highway's own project names its target `hwy`, its package `hwy::hwy`.
if(NOT TARGET hwy::hwy AND NOT TARGET hwy)
  find_package(hwy REQUIRED)
endif()
set(FLASHMEMORY_HWY hwy)
if(TARGET hwy::hwy)
  set(FLASHMEMORY_HWY hwy::hwy)
endif()

find_package(xxHash MODULE REQUIRED)

if(FLASHMEMORY_OPENMP)
  find_package(OpenMP COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    set(_runtime "its OpenMP runtime")
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
      string(REGEX MATCH "^[0-9]+" _major "${CMAKE_CXX_COMPILER_VERSION}")
      set(_runtime "libomp (Debian: libomp-${_major}-dev)")
    endif()
    message(FATAL_ERROR "FLASHMEMORY_OPENMP is ON, but ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} has no OpenMP here: "
      "install ${_runtime}, or set FLASHMEMORY_OPENMP=OFF and give flashmemory the engine's own threads.")
  endif()
  # Installed, the runtime is asked for by its name: -fopenmp would bring a consumer's compiler's own, which is another one
  # when the compiler is.
  set(FLASHMEMORY_OPENMP_RUNTIME "")
  foreach(_name gomp omp iomp5)
    if(_name IN_LIST OpenMP_CXX_LIB_NAMES)
      set(FLASHMEMORY_OPENMP_RUNTIME ${_name})
      break()
    endif()
  endforeach()
  if(NOT FLASHMEMORY_OPENMP_RUNTIME)
    message(FATAL_ERROR "none of the OpenMP runtimes '${OpenMP_CXX_LIB_NAMES}' is known to flashmemory: set FLASHMEMORY_OPENMP=OFF")
  endif()
endif()

# For targets of this project; installed ones ask their consumers for Highway's package and the runtime's name alone.
add_library(flashmemory_dependencies INTERFACE)
target_link_libraries(flashmemory_dependencies INTERFACE ${_fmt} nlohmann_json::nlohmann_json xxHash::inline)
