# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
file(REMOVE_RECURSE ${WORK}/refusals)

# ask(name arguments-of-find_package): configures a project that asks for that; `result` and `output` tell how it went.
function(ask name request)
  file(WRITE ${WORK}/refusals/${name}/CMakeLists.txt
    "cmake_minimum_required(VERSION 3.24)\nproject(${name} LANGUAGES CXX)\nfind_package(flashmemory ${request})\n"
    "message(STATUS \"found: \${flashmemory_FOUND}, train: \${flashmemory_train_FOUND}.\")\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${WORK}/refusals/${name} -B ${WORK}/refusals/${name}/build -G ${GENERATOR}
    -D CMAKE_CXX_COMPILER=${CXX} -D CMAKE_PREFIX_PATH=${WORK}/static/prefix ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")  # CMake wraps messages
  set(output "${output}" PARENT_SCOPE)
  set(result "${result}" PARENT_SCOPE)
endfunction()

function(must_fail)
  if(result EQUAL 0)
    message(FATAL_ERROR "should have been refused:\n${output}")
  endif()
endfunction()

string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" same ${VERSION})
math(EXPR next_minor "${CMAKE_MATCH_2} + 1")
set(next ${CMAKE_MATCH_1}.${next_minor})

ask(same_minor "${same} CONFIG REQUIRED COMPONENTS core")
expect_match("found: (1|TRUE)" "${output}" "version ${same} with component core")
ask(next_minor "${next} CONFIG REQUIRED")
must_fail()
expect_match("compatible with requested version \"${next}\"" "${output}" "version ${next}")
ask(cuda "${same} CONFIG REQUIRED COMPONENTS cuda")
must_fail()
expect_match("flashmemory ${VERSION} runs on the CPU only: it was built with FLASHMEMORY_CUDA=OFF" "${output}" "component cuda")
ask(cuda_train "${same} CONFIG REQUIRED COMPONENTS cuda_train")
must_fail()
expect_match("flashmemory ${VERSION} cannot train on GPUs: it was built with FLASHMEMORY_CUDA=OFF or FLASHMEMORY_TRAIN=OFF"
  "${output}" "component cuda_train")
ask(train "${same} CONFIG REQUIRED COMPONENTS train")
expect_match("found: (1|TRUE)" "${output}" "component train")
ask(unknown "${same} CONFIG REQUIRED COMPONENTS telepathy")
must_fail()
expect_match("flashmemory ${VERSION} has no component telepathy" "${output}" "component telepathy")
ask(optional_cuda "${same} CONFIG REQUIRED COMPONENTS core OPTIONAL_COMPONENTS cuda")
expect_match("found: (1|TRUE)" "${output}" "optional component cuda")

# What an optional component needs may be missing: then that component is, and the package is not.
ask(optional_train "${same} CONFIG REQUIRED COMPONENTS core OPTIONAL_COMPONENTS train" -D CMAKE_DISABLE_FIND_PACKAGE_BLAS=ON)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "an optional component without its BLAS:\n${output}")
endif()
expect_match("found: (1|TRUE), train: \\." "${output}" "optional component train without a BLAS")
ask(optional_both "${same} CONFIG REQUIRED OPTIONAL_COMPONENTS train cuda cuda_train telepathy")
expect_match("found: (1|TRUE), train: (1|TRUE)\\." "${output}" "optional components, one of them there")
ask(required_train "${same} CONFIG REQUIRED COMPONENTS train" -D CMAKE_DISABLE_FIND_PACKAGE_BLAS=ON)
must_fail()
