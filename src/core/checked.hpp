// SPDX-License-Identifier: MIT
#pragma once

/// Whether what callers promise is checked at run time, at some cost: on in debug builds, or where the build asks for it
/// (CMake option FLASHMEMORY_CHECKED).
#ifndef FLASHMEMORY_CHECKED
#ifdef NDEBUG
#define FLASHMEMORY_CHECKED 0
#else
#define FLASHMEMORY_CHECKED 1
#endif
#endif
