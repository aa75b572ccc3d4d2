# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/consumer add_subdirectory -D SUBDIRECTORY=${SOURCE})
run_consumer(${build}/consumer)
