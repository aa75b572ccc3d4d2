// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace llama_flashmemory {

/// A field of /proc/self/status in MiB, e.g. "VmRSS:"; 0 where there is none.
double process_mebibytes(const std::string& field);

/// The processor's name, and which vector instructions it has of those that matter here.
std::string processor();

}  // namespace llama_flashmemory
