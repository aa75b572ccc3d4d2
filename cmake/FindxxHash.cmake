# SPDX-License-Identifier: MIT
# Debian's libxxhash-dev has no CMake package. Defines xxHash::inline: the header, compiled into the including file
# (XXH_INLINE_ALL), nothing to link.
find_path(xxHash_INCLUDE_DIR xxhash.h)
mark_as_advanced(xxHash_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(xxHash REQUIRED_VARS xxHash_INCLUDE_DIR)
if(xxHash_FOUND AND NOT TARGET xxHash::inline)
  add_library(xxHash::inline INTERFACE IMPORTED)
  set_target_properties(xxHash::inline PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${xxHash_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS XXH_INLINE_ALL)
endif()
