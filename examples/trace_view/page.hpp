// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "timeline.hpp"

namespace trace_view {

/// One page that needs nothing else, of all sequences of a trace. It works from a disk, without a network.
std::string page(const trace& from, const std::vector<timeline>& lines);

}  // namespace trace_view
