// SPDX-License-Identifier: MIT
#pragma once

/// \file
/// The version that was compiled. CMake, pkg-config and the package recipes read these lines.

#define FLASHMEMORY_VERSION_MAJOR 0
#define FLASHMEMORY_VERSION_MINOR 2
#define FLASHMEMORY_VERSION_PATCH 0
