# SPDX-License-Identifier: MIT
# What the cases share. Paths: SOURCE the checkout, WORK a folder for all cases, <WORK>/<kind> a moved install, BUILDS where
# this build's folder lies.
cmake_minimum_required(VERSION 3.24)

find_program(ccache ccache)
set(launcher "")
if(ccache)
  # The cases compile the same files as each other and as the build that they are tests of, in folders beside it: paths
  # relative to the checkout are then the same for all, and for every other checkout.
  set(ENV{CCACHE_BASEDIR} ${SOURCE})
  set(ENV{CCACHE_NOHASHDIR} 1)
  set(launcher -D CMAKE_CXX_COMPILER_LAUNCHER=${ccache})
endif()

# What is tested is how things fit together. `as_built` compiles the library as the build that this is a test of did,
# `quick` is for code that it did not compile: the quickest will do, the same in all configurations.
set(quick -D CMAKE_CXX_FLAGS_DEBUG=-O0 -D CMAKE_CXX_FLAGS_RELEASE=-O0)
execute_process(COMMAND uname -m OUTPUT_VARIABLE machine OUTPUT_STRIP_TRAILING_WHITESPACE)
if(machine STREQUAL "x86_64")
  list(APPEND quick -D CMAKE_CXX_FLAGS=-m64)  # as Conan has it
endif()
set(as_built -D CMAKE_BUILD_TYPE=${TYPE} -D "CMAKE_CXX_FLAGS=${FLAGS}" -D FLASHMEMORY_WERROR=${WERROR})
foreach(type DEBUG RELEASE RELWITHDEBINFO)
  list(APPEND as_built -D "CMAKE_CXX_FLAGS_${type}=${TYPE_FLAGS}")
endforeach()

# run(args...): a command that must succeed; its output is shown when it does not.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nresult: ${result}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# build_folder(name): where a case builds.
function(build_folder name)
  set(build ${BUILDS}/package_${name} PARENT_SCOPE)
endfunction()

# configure_and_build(source name options...): freshly, in the folder of that name; sets `build`.
function(configure_and_build source name)
  build_folder(${name})
  set(build ${build} PARENT_SCOPE)
  file(REMOVE_RECURSE ${build})
  run(${CMAKE_COMMAND} -S ${source} -B ${build} -G ${GENERATOR} -D CMAKE_BUILD_TYPE=Debug
    -D CMAKE_CXX_COMPILER=${CXX} ${quick} ${launcher} ${ARGN})
  run(${CMAKE_COMMAND} --build ${build} --parallel 2)
endfunction()

# expect(text value what)
function(expect_match regex text what)
  if(NOT text MATCHES "${regex}")
    message(FATAL_ERROR "${what}: expected a match of '${regex}' in:\n${text}")
  endif()
endfunction()

# How the consumer's program ends when everything it did was right.
function(run_consumer program)
  run(${program})
  expect_match("^flashmemory ${VERSION} works" "${output}" ${program})
endfunction()
