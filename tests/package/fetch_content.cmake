# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/consumer fetch_content
  -D FETCH_FROM=${SOURCE} -D FETCHCONTENT_FULLY_DISCONNECTED=ON)
run_consumer(${build}/consumer)
