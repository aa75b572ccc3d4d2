# SPDX-License-Identifier: MIT
# Overlay port: builds the checkout that holds it, three folders up.
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

vcpkg_check_features(OUT_FEATURE_OPTIONS FEATURE_OPTIONS
    FEATURES
        c      FLASHMEMORY_C
        cuda   FLASHMEMORY_CUDA
        openmp FLASHMEMORY_OPENMP
        tools  FLASHMEMORY_TRAIN_PROGRAM
        train  FLASHMEMORY_TRAIN
)
if("cuda" IN_LIST FEATURES)
    vcpkg_find_cuda(OUT_CUDA_TOOLKIT_ROOT cuda_toolkit_root)
    list(APPEND FEATURE_OPTIONS
        "-DCMAKE_CUDA_COMPILER=${NVCC}"
        "-DCUDAToolkit_ROOT=${cuda_toolkit_root}"
    )
endif()
vcpkg_cmake_configure(
    SOURCE_PATH "${SOURCE_PATH}"
    OPTIONS
        -DFLASHMEMORY_INSTALL=ON
        -DFLASHMEMORY_TESTS=OFF
        -DFLASHMEMORY_EXAMPLES=OFF
        ${FEATURE_OPTIONS}
    MAYBE_UNUSED_VARIABLES
        FLASHMEMORY_TRAIN_PROGRAM
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/flashmemory)
vcpkg_fixup_pkgconfig()
if("tools" IN_LIST FEATURES)
    vcpkg_copy_tools(TOOL_NAMES flashmemory_train_indexer AUTO_CLEAN)
endif()
file(REMOVE_RECURSE
    "${CURRENT_PACKAGES_DIR}/debug/include"
    "${CURRENT_PACKAGES_DIR}/debug/share"
    "${CURRENT_PACKAGES_DIR}/share/doc"
)
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
