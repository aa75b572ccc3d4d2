# SPDX-License-Identifier: MIT
# Builds and installs one KIND and moves the prefix: from here on the place it was installed to does not exist.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
set(shared OFF)
set(flags ${as_built})
if(KIND STREQUAL "shared")  # its objects are others
  set(shared ON)
  set(flags "")
  # One link that sees all types of the library: two classes of one name are an error here, and nowhere else.
  if(CXX_ID STREQUAL "GNU")
    set(flags -D "CMAKE_CXX_FLAGS=-flto -Werror=odr -Werror=lto-type-mismatch")
  endif()
endif()
file(REMOVE_RECURSE ${WORK}/installed_${KIND} ${WORK}/${KIND}/prefix)
configure_and_build(${SOURCE} ${KIND} ${flags} -D BUILD_SHARED_LIBS=${shared} -D FLASHMEMORY_TESTS=OFF
  -D FLASHMEMORY_EXAMPLES=OFF -D FLASHMEMORY_INSTALL=ON -D CMAKE_INSTALL_PREFIX=${WORK}/installed_${KIND} -D CMAKE_INSTALL_LIBDIR=lib)
run(${CMAKE_COMMAND} --install ${build})
file(MAKE_DIRECTORY ${WORK}/${KIND})
file(RENAME ${WORK}/installed_${KIND} ${WORK}/${KIND}/prefix)

set(prefix ${WORK}/${KIND}/prefix)
foreach(file include/flashmemory/flashmemory.hpp include/flashmemory/config.hpp include/flashmemory/interop/dlpack.hpp
    include/flashmemory/c/flashmemory.h lib/libflashmemory_c.so
    include/flashmemory/cpu/attend/attend-inl.hpp include/flashmemory/cuda/attend/tensor_core.cuh
    lib/cmake/flashmemory/flashmemory-config.cmake lib/pkgconfig/flashmemory.pc share/doc/flashmemory/LICENSE)
  if(NOT EXISTS ${prefix}/${file})
    message(FATAL_ERROR "${file} was not installed")
  endif()
endforeach()
file(GLOB top RELATIVE ${prefix} ${prefix}/*)
file(GLOB programs RELATIVE ${prefix} ${prefix}/bin/*)
if(NOT top STREQUAL "bin;include;lib;share" OR NOT programs STREQUAL "bin/flashmemory_train_indexer")
  message(FATAL_ERROR "unexpected things beside the trainer's program, include, lib and share: ${top}, ${programs}")
endif()
file(GLOB_RECURSE texts ${prefix}/*.cmake ${prefix}/*.pc ${prefix}/*.hpp ${prefix}/*.cuh)
foreach(file IN LISTS texts)
  file(READ ${file} text)
  if(text MATCHES "${SOURCE}|${WORK}")
    message(FATAL_ERROR "${file} holds a path of the build: ${CMAKE_MATCH_0}")
  endif()
  # CMake notes what a shared library was linked with, as a hint for linkers that ask; nobody has to find it.
  string(REGEX REPLACE "IMPORTED_LINK_DEPENDENT_LIBRARIES[^\n]*" "" text "${text}")
  if(text MATCHES "fmt::|nlohmann|xxHash"
      OR (KIND STREQUAL "shared" AND NOT file MATCHES "(hpp|cuh)$" AND text MATCHES "hwy|OpenMP"))
    message(FATAL_ERROR "${file} asks consumers for a private dependency: ${CMAKE_MATCH_0}")
  endif()
endforeach()

# A shared library shows its API, and nothing of what its classes keep to themselves.
if(KIND STREQUAL "shared")
  foreach(library flashmemory flashmemory_train)
    run(nm -DC --defined-only ${prefix}/lib/lib${library}.so)
    string(REGEX REPLACE "\n$" "" output "${output}")
    string(REPLACE ";" "," output "${output}")
    string(REPLACE "\n" ";" symbols "${output}")
    foreach(symbol IN LISTS symbols)
      if(NOT symbol MATCHES "^[0-9a-f]+ [A-Za-z] (flashmemory::|typeinfo for flashmemory::|typeinfo name for flashmemory::|vtable for flashmemory::)"
          OR symbol MATCHES "::impl::")
        message(FATAL_ERROR "lib${library}.so shows what is not its API: ${symbol}")
      endif()
    endforeach()
  endforeach()
endif()
