// SPDX-License-Identifier: MIT
#pragma once

#include "report.hpp"

namespace replay {

/// Name of the current device, and what its memory and its link to the host reach, measured.
circumstances measured_circumstances();

}  // namespace replay
