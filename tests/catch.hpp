// SPDX-License-Identifier: MIT
#pragma once

// Debian 12 has Catch2 v2, newer systems v3: the same macros from either.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
