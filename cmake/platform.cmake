# SPDX-License-Identifier: MIT
# Where flashmemory does not work, in a sentence each, before anything is compiled. Files and index keys are little-endian
# and offsets have 64 bits; config.hpp tells projects without CMake the same.
if(CMAKE_SIZEOF_VOID_P AND CMAKE_SIZEOF_VOID_P LESS 8)
  message(FATAL_ERROR "flashmemory needs a 64-bit target; this one's pointers have ${CMAKE_SIZEOF_VOID_P} bytes.")
endif()
if(CMAKE_CXX_BYTE_ORDER STREQUAL "BIG_ENDIAN")
  message(FATAL_ERROR "flashmemory needs a little-endian target.")
endif()
