# SPDX-License-Identifier: MIT
# The examples are projects of their own: they need the installed package and nothing of the checkout.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
foreach(example minimal tinylm)
  if(EXISTS ${SOURCE}/examples/${example}/CMakeLists.txt)
    configure_and_build(${SOURCE}/examples/${example} example_${example} -D CMAKE_PREFIX_PATH=${WORK}/static/prefix)
  endif()
endforeach()
run(${WORK}/example_minimal/build/minimal)
