# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
set(include ${WORK}/static/prefix/include)
file(GLOB_RECURSE headers RELATIVE ${include} ${include}/*.hpp)
list(FILTER headers EXCLUDE REGEX "-inl\\.hpp$")  # for who has Highway: see kernels.cmake
if(NOT headers)
  message(FATAL_ERROR "no headers below ${include}")
endif()

# Only our own headers, the standard library's and, in interop/, the one that the caller brings.
foreach(header IN LISTS headers)
  file(STRINGS ${include}/${header} lines REGEX "^ *# *include")
  foreach(line IN LISTS lines)
    if(line MATCHES "<flashmemory/[a-z0-9_/]+\\.hpp>" OR line MATCHES "<[a-z_0-9]+>"
        OR (header MATCHES "/interop/dlpack" AND line MATCHES "<dlpack/dlpack.h>"))
      continue()
    endif()
    message(FATAL_ERROR "${header} includes what consumers need not have: ${line}")
  endforeach()
endforeach()

find_path(dlpack dlpack/dlpack.h)
if(NOT dlpack)
  list(FILTER headers EXCLUDE REGEX "/interop/dlpack")
  message(STATUS "no dlpack.h here: interop/dlpack.hpp is not compiled")
endif()
configure_and_build(${CMAKE_CURRENT_LIST_DIR}/headers headers -D "HEADERS=${headers}" -D INCLUDE=${include})
