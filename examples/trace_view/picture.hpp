// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "timeline.hpp"

namespace trace_view {

/// A drawing that needs nothing else, for documents: time across, a column for each resident set; chunks down; resident
/// chunks filled, darker the more attention was paid to them (where it was measured), others left empty.
std::string picture(const trace& from, const traced_sequence& sequence, const timeline& line);

/// `text` with the characters that mean something to XML escaped, and those that XML does not allow left out.
std::string xml_text(std::string_view text);

}  // namespace trace_view
