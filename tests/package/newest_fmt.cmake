# SPDX-License-Identifier: MIT
# The example's files that format are compiled against a newer fmt than the system's, in C++20, which checks format strings
# when it compiles. The library's own are compiled against it by Conan's case.
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
if(NOT EXISTS "${FMT_INCLUDE}/fmt/ranges.h")
  message(FATAL_ERROR "skipped: no newer fmt; tests/package/tools.sh fetches one")
endif()
file(GLOB_RECURSE files RELATIVE ${SOURCE} ${SOURCE}/src/*.cpp ${SOURCE}/examples/tinylm/*.cpp)
set(users "")
foreach(file IN LISTS files)
  file(READ ${SOURCE}/${file} text)
  # join() and ranges have a header of their own since fmt 11.
  if(text MATCHES "fmt::join" AND NOT text MATCHES "<fmt/ranges.h>")
    message(FATAL_ERROR "${file} joins ranges without <fmt/ranges.h>")
  endif()
  if(file MATCHES "^examples" AND text MATCHES "fmt::|<fmt/")
    list(APPEND users ${file})
  endif()
endforeach()
list(LENGTH users count)
if(count LESS 15)
  message(FATAL_ERROR "only ${count} files format: this test has lost its way")
endif()
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/newest_fmt newest_fmt -D ROOT=${SOURCE} -D "USERS=${users}"
  -D FMT_INCLUDE=${FMT_INCLUDE})
