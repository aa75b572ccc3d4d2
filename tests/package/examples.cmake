# SPDX-License-Identifier: MIT
# The examples are projects of their own: they need the installed package and nothing of the checkout.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
foreach(example minimal paged_engine tinylm)
  if(EXISTS ${SOURCE}/examples/${example}/CMakeLists.txt)
    configure_and_build(${SOURCE}/examples/${example} example_${example} -D CMAKE_PREFIX_PATH=${WORK}/static/prefix)
  endif()
endforeach()
build_folder(example_minimal)
run(${build}/minimal)
build_folder(example_paged_engine)
run(${build}/paged_engine)

# This one needs the CUDA component, and says so where a package has none.
file(REMOVE_RECURSE ${WORK}/example_deepseek_v4_replay)
execute_process(COMMAND ${CMAKE_COMMAND} -S ${SOURCE}/examples/deepseek_v4_replay
  -B ${WORK}/example_deepseek_v4_replay -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${CXX}
  -D CMAKE_PREFIX_PATH=${WORK}/static/prefix RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "deepseek_v4_replay was configured against a package without CUDA")
endif()
string(REGEX REPLACE "[ \n]+" " " output "${output}")
expect_match("runs on the CPU only" "${output}" "the error of deepseek_v4_replay's configuration")
