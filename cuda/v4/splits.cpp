// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <limits>

#include "v4/params.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

// Microseconds on an H200, as ratios: what a block costs whatever its length, what each of its tiles of 32 entries adds,
// and what joining the parts of a cluster adds, at once and per block. The plans that follow are those that measured
// fastest among their neighbours at 1 to 128 rows of 640 and 1152 entries.
constexpr double block_us = 5.0, tile_us = 0.75, join_us = 1.0, join_block_us = 0.1;

std::int32_t choose_splits(const attend_shape& shape, const int (&clusters)[max_cluster + 1]) noexcept {
  std::int32_t best = 1;
  double least = std::numeric_limits<double>::infinity();
  const std::int64_t parts = std::max<std::int64_t>(shape.rows, 1) * (shape.heads / 64);
  for (std::int32_t splits = 1; splits <= max_cluster; ++splits) {
    if (clusters[splits] < 1) continue;
    const std::int64_t waves = (parts + clusters[splits] - 1) / clusters[splits];
    const std::int32_t tiles = std::max(1, ((shape.max_entries + splits - 1) / splits + 31) / 32);
    const double join = splits == 1 ? 0 : join_us + join_block_us * splits;
    const double time = static_cast<double>(waves) * (block_us + tile_us * tiles + join);
    if (time < least) {
      least = time;
      best = splits;
    }
  }
  return best;
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
