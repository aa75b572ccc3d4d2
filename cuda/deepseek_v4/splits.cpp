// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/deepseek_v4/params.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace deepseek_v4 {

// Microseconds on an H100, as ratios: what a block costs whatever its length, what each of its tiles of 32 entries adds,
// and what joining the parts of a cluster adds, at once, per block and by how much of the dims a cluster has. Of 471 cuts
// measured at 1 to 128 rows of 64 and 128 heads and 640, 1152 and 2176 entries, these choose the fastest or one within
// 2.5 % of it.
constexpr double block_us = 6.0, tile_us = 1.1, join_us = 0.2, join_block_us = 0.05, join_dims_us = 3.0;

attend_cut choose_cut(const attend_shape& shape, const int (&clusters)[max_cluster + 1]) noexcept {
  attend_cut best;
  double least = std::numeric_limits<double>::infinity();
  const std::int64_t rows = std::max<std::int64_t>(shape.rows, 1) * (shape.heads / 64);
  for (const std::int32_t dim_splits : {1, 2, 4}) {
    for (std::int32_t splits = 1; splits <= max_cluster; ++splits) {
      if (clusters[splits] < 1) continue;
      const std::int64_t waves = (rows * dim_splits + clusters[splits] - 1) / clusters[splits];
      const std::int32_t tiles = std::max(1, ((shape.max_entries + splits - 1) / splits + 31) / 32);
      const double join = splits == 1 ? 0 : join_us + join_block_us * splits + join_dims_us / dim_splits;
      const double time = static_cast<double>(waves) * (block_us + tile_us * tiles + join);
      if (time < least) {
        least = time;
        best = {splits, dim_splits};
      }
    }
  }
  return best;
}

}  // namespace deepseek_v4
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
