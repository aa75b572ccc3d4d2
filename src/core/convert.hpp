// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/detail/convert.hpp>  // where the public kernels find it too
