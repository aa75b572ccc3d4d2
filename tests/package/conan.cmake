# SPDX-License-Identifier: MIT
# Conan itself creates the package and runs the recipe's own test package. Its requirements are made of the system's
# packages, so that nothing is fetched; fmt is the newest there is, and C++20 has format strings checked when they compile.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
if(NOT EXISTS "${CONAN}" OR NOT EXISTS "${FMT_INCLUDE}/fmt/ranges.h")
  message(FATAL_ERROR "skipped: no conan or no newer fmt; tests/package/tools.sh fetches them")
endif()
set(home ${WORK}/conan/home)
file(REMOVE_RECURSE ${WORK}/conan)
set(ENV{CONAN_HOME} ${home})
set(ENV{CMAKE_GENERATOR} ${GENERATOR})
if(ccache)
  set(ENV{CMAKE_CXX_COMPILER_LAUNCHER} ${ccache})
endif()
set(ENV{CXX} ${CXX})
run(${CONAN} profile detect)
# How things fit together is what is tested: the quickest code will do.
file(APPEND ${home}/global.conf
  "tools.cmake.cmaketoolchain:extra_variables={'CMAKE_CXX_FLAGS_DEBUG': '-O0'}\ntools.cmake.cmaketoolchain:generator=${GENERATOR}\n"
  "tools.build:jobs=2\n")
set(settings --no-remote -s build_type=Debug -s compiler.cppstd=20)
set(ENV{FMT_INCLUDE} ${FMT_INCLUDE})
get_filename_component(fmt_version ${FMT_INCLUDE} DIRECTORY)
string(REGEX REPLACE ".*fmt-" "" fmt_version ${fmt_version})
foreach(requirement fmt/${fmt_version} nlohmann_json/3.11.2 xxhash/0.8.1 cli11/2.1.2 eigen/3.4.0 openblas/0.3.21 highway/1.0.3)
  string(REPLACE "/" ";" requirement ${requirement})
  list(GET requirement 0 name)
  list(GET requirement 1 version)
  run(${CONAN} create ${CMAKE_CURRENT_LIST_DIR}/conan_system --name ${name} --version ${version} ${settings}
    -o "fmt/*:header_only=True" --test-missing)
endforeach()

# The recipe runs its test package, with the trainer and its program.
run(${CONAN} create ${SOURCE}/cmake/conan ${settings} -o "flashmemory/*:train=True" -o "flashmemory/*:tools=True")
expect_match("flashmemory ${VERSION} works" "${output}" "the recipe's test package")
expect_match("so does its trainer" "${output}" "the recipe's test package")
file(GLOB_RECURSE program ${home}/p/*/p/bin/flashmemory_train_indexer)
if(NOT program)
  message(FATAL_ERROR "tools=True packages no flashmemory_train_indexer")
endif()
list(GET program 0 program)
run(${program} --help)

# A consumer of its own, as docs/packaging.md has it.
run(${CONAN} install ${CMAKE_CURRENT_LIST_DIR}/conan_consumer.txt ${settings} -o "flashmemory/*:train=True"
  -o "flashmemory/*:tools=True" --output-folder ${WORK}/conan/generated)
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/consumer conan_consumer
  -D CMAKE_TOOLCHAIN_FILE=${WORK}/conan/generated/conan_toolchain.cmake)
run_consumer(${build}/consumer)

# Options that cannot go together are refused by name.
execute_process(COMMAND ${CONAN} create ${SOURCE}/cmake/conan ${settings} -o "flashmemory/*:tools=True"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
expect_match("needs train=True" "${output}" "tools without train")
