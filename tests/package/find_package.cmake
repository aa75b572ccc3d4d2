# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/consumer find_package_${KIND} -D CMAKE_PREFIX_PATH=${WORK}/${KIND}/prefix)
run_consumer(${build}/consumer)
