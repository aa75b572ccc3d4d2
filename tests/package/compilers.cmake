# SPDX-License-Identifier: MIT
# Consumers with habits: no RTTI, no exceptions, warnings as errors on headers of their own, and compilers that are not ours.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
set(prefix ${WORK}/static/prefix)
set(here ${CMAKE_CURRENT_LIST_DIR}/consumer)
set(libraries -L${prefix}/lib -lflashmemory -lhwy)
file(MAKE_DIRECTORY ${WORK}/compilers)
run(${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${prefix}/lib/pkgconfig pkg-config --static --libs flashmemory)
if(output MATCHES "-l(gomp|omp|iomp5)")
  list(APPEND libraries ${CMAKE_MATCH_0})
endif()

set(compilers ${CXX})
find_program(clang clang++)
if(clang AND NOT CXX MATCHES "clang")  # links what g++ built, the runtime by its name
  list(APPEND compilers ${clang})
endif()
foreach(compiler IN LISTS compilers)
  # An engine's own indexer from a build without RTTI: nothing may ask an object of its for its type.
  run(${compiler} -std=c++17 -O0 -fno-rtti -Wall -Wextra -Werror -I${prefix}/include ${here}/own_indexer.cpp
    -o ${WORK}/compilers/own_indexer ${libraries})
  run(${WORK}/compilers/own_indexer)
  expect_match("^own indexer works" "${output}" "own_indexer built by ${compiler}")
  run(${compiler} -std=c++17 -O0 -fno-exceptions -I${prefix}/include ${here}/no_exceptions.cpp
    -o ${WORK}/compilers/no_exceptions ${libraries})
  run(${WORK}/compilers/no_exceptions)

  # What cannot work is told in a sentence.
  foreach(case "C.*17;-std=c++14" "64-bit;-std=c++17;-U__SIZEOF_POINTER__;-D__SIZEOF_POINTER__=4"
      "little-endian;-std=c++17;-U__BYTE_ORDER__;-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__")
    list(POP_FRONT case sentence)
    execute_process(COMMAND ${compiler} ${case} -w -fsyntax-only -x c++ -I${prefix}/include -
      INPUT_FILE ${here}/only_config.txt RESULT_VARIABLE result ERROR_VARIABLE output)
    if(result EQUAL 0)
      message(FATAL_ERROR "${compiler} ${case} was not refused")
    endif()
    expect_match("flashmemory needs ([a ]*)${sentence}" "${output}" "${compiler} ${case}")
  endforeach()
endforeach()
