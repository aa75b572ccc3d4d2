# SPDX-License-Identifier: MIT
# A host that has dependencies of its own, as targets, and a unity build, takes the checkout in: packages must not be looked
# for. One file that uses each dependency is compiled.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
find_program(ninja ninja)
set(lists ${WORK}/host/CMakeLists.txt)
foreach(fmt compiled both)
  set(more "")
  if(fmt STREQUAL "both")
    set(more "add_library(fmt-header-only INTERFACE)\ntarget_include_directories(fmt-header-only INTERFACE /usr/include)\ntarget_compile_definitions(fmt-header-only INTERFACE FMT_HEADER_ONLY=1)\nadd_library(fmt::fmt-header-only ALIAS fmt-header-only)\n")
  endif()
  file(WRITE ${lists} "cmake_minimum_required(VERSION 3.24)
project(host LANGUAGES CXX)
add_library(fmt INTERFACE)
target_include_directories(fmt INTERFACE /usr/include)
add_library(fmt::fmt ALIAS fmt)
${more}add_library(nlohmann_json INTERFACE)
target_include_directories(nlohmann_json INTERFACE /usr/include)
add_library(nlohmann_json::nlohmann_json ALIAS nlohmann_json)
add_library(hwy INTERFACE)
target_include_directories(hwy INTERFACE /usr/include)
target_link_libraries(hwy INTERFACE -lhwy)
add_library(xxhash INTERFACE)
target_include_directories(xxhash INTERFACE /usr/include)
add_library(xxHash::xxhash ALIAS xxhash)
add_subdirectory(${SOURCE} _deps/flashmemory-build)
add_executable(host main.cpp)
target_link_libraries(host PRIVATE flashmemory::flashmemory)
if(NOT CMAKE_UNITY_BUILD)
  message(FATAL_ERROR \"the host's CMAKE_UNITY_BUILD was changed\")
endif()
")
  file(WRITE ${WORK}/host/main.cpp "int main() {}\n")
  build_folder(host)
  file(REMOVE_RECURSE ${build})
  run(${CMAKE_COMMAND} -S ${WORK}/host -B ${build} -G Ninja -D CMAKE_BUILD_TYPE=Debug -D CMAKE_CXX_COMPILER=${CXX} ${quick}
    ${launcher} -D CMAKE_UNITY_BUILD=ON -D FLASHMEMORY_INSTALL=ON -D CMAKE_DISABLE_FIND_PACKAGE_fmt=ON
    -D CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON -D CMAKE_DISABLE_FIND_PACKAGE_hwy=ON -D xxHash_INCLUDE_DIR=xxHash_INCLUDE_DIR-NOTFOUND)
  set(objects "")
  foreach(file io/safetensors_header store/chunk_record attend/merge)  # fmt and nlohmann, xxHash, Highway
    list(APPEND objects _deps/flashmemory-build/CMakeFiles/flashmemory.dir/src/${file}.cpp.o)
  endforeach()
  run(${CMAKE_COMMAND} --build ${build} --parallel 2 --target ${objects})
endforeach()

# Where it cannot work, a sentence says so before anything is compiled.
execute_process(COMMAND ${CMAKE_COMMAND} -D CMAKE_SIZEOF_VOID_P=4 -P ${SOURCE}/cmake/platform.cmake RESULT_VARIABLE result
  ERROR_VARIABLE output)
expect_match("flashmemory needs a 64-bit target" "${output}" "a 32-bit target")
execute_process(COMMAND ${CMAKE_COMMAND} -D CMAKE_CXX_BYTE_ORDER=BIG_ENDIAN -P ${SOURCE}/cmake/platform.cmake
  ERROR_VARIABLE output)
expect_match("flashmemory needs a little-endian target" "${output}" "a big-endian target")
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${build} -D CMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON
  -D CMAKE_DISABLE_FIND_PACKAGE_fmt=OFF -G Ninja --fresh RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE output)
string(REGEX REPLACE "[ \n]+" " " output "${output}")
expect_match("FLASHMEMORY_OPENMP is ON, but .* has no OpenMP here: install .*or set FLASHMEMORY_OPENMP=OFF" "${output}"
  "a compiler without OpenMP")
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${build} -D CMAKE_DISABLE_FIND_PACKAGE_BLAS=ON -G Ninja --fresh
  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE output)
string(REGEX REPLACE "[ \n]+" " " output "${output}")
expect_match("needs a BLAS.*or set FLASHMEMORY_TRAIN=OFF" "${output}" "a machine without a BLAS")
