# SPDX-License-Identifier: MIT
# No package files at all: the include folder, the library, what a static one links, and not one macro.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
set(prefix ${WORK}/${KIND}/prefix)
set(private "")
if(KIND STREQUAL "static")
  set(private -lhwy -fopenmp)
endif()
file(MAKE_DIRECTORY ${WORK}/bare_${KIND})
run(${CXX} -std=c++17 -I${prefix}/include ${CMAKE_CURRENT_LIST_DIR}/consumer/main.cpp -o ${WORK}/bare_${KIND}/consumer
  -L${prefix}/lib -lflashmemory ${private})
set(ENV{LD_LIBRARY_PATH} ${prefix}/lib)
run_consumer(${WORK}/bare_${KIND}/consumer)
