// SPDX-License-Identifier: MIT
// Any bytes are a trace that can be drawn, or a bad_trace that names a line; never anything else.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>

#include "examples/trace_view/picture.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  try {
    const trace_view::trace t = trace_view::read_trace(in);
    for (const auto& s : t.sequences) {
      const trace_view::timeline line = trace_view::make_timeline(s, t.tokens_per_chunk);
      for (const auto& span : line.spans)
        for (const auto& run : span.resident)
          if (run.first < 0 || run.first >= run.end || run.end > line.chunks) std::abort();
      if (!line.spans.empty() && trace_view::picture(t, s, line).empty()) std::abort();
    }
  } catch (const trace_view::bad_trace& e) {
    if (std::string(e.what()).empty()) std::abort();
  }
  return 0;
}
