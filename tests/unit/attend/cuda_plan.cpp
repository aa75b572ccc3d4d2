// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend/plan.hpp>

#include "tests/catch.hpp"

namespace cu = flashmemory::cuda;

TEST_CASE("splits fill the device in whole waves and never leave a chunk out", "[attend]") {
  for (const std::int64_t tiles : {1, 7, 8, 64, 256, 512, 5000})
    for (const std::int64_t chunks : {1, 2, 63, 64, 65, 500, 4096}) {
      CAPTURE(tiles, chunks);
      const std::int64_t per_split = cu::attend::chunks_per_split(tiles, chunks, 64, 132, 2);
      REQUIRE(per_split >= 1);
      REQUIRE(per_split <= chunks);
      const std::int64_t splits = (chunks + per_split - 1) / per_split;
      REQUIRE(splits <= cu::attend::max_splits);
      const std::int64_t per_sm = (tiles * splits + 131) / 132;
      // No worse than twice a perfectly even distribution, unless there are not enough chunks to hand out.
      if (tiles * chunks >= 132 * 4 && tiles * cu::attend::max_splits >= 132)
        REQUIRE(double(per_sm * per_split) <= 2.0 * double(tiles * chunks) / 132 + 1);
      if (tiles >= 132 * 8) REQUIRE(splits <= 2);
    }
}

TEST_CASE("a plan has no more splits than chunks, and scratch where three or more of a tile meet",
          "[attend]") {
  cu::attend::shape shape;
  shape.query_heads = 8;
  shape.kv_heads = 2;
  shape.key_dim = shape.value_dim = 128;
  for (const bool tensor_cores : {false, true})
    for (const std::int64_t rows : {1, 3, 33, 300})
      for (const std::int64_t pages : {1, 2, 3, 64, 1000}) {
        CAPTURE(tensor_cores, rows, pages);
        shape.rows = rows;
        shape.max_pages = pages;
        const cu::attend::plan plan = cu::attend::plan_for(shape, 132, tensor_cores);
        REQUIRE(plan.splits >= 1);
        REQUIRE(std::int64_t{plan.splits} * plan.pages_per_split >= pages);
        REQUIRE((plan.splits - 1) * std::int64_t{plan.pages_per_split} < pages);
        const auto layout = cu::attend::layout_of(plan);
        REQUIRE((layout.bytes != 0) == (plan.splits > (tensor_cores ? cu::attend::max_cluster : 1)));
        if (layout.bytes != 0) REQUIRE(layout.tiles <= cu::attend_counters);
        REQUIRE(layout.floats_per_split % 4 == 0);
        REQUIRE(layout.floats_per_split >= layout.head_floats + layout.rows_per_tile * 128);
        REQUIRE(layout.head_floats >= 2 * layout.rows_per_tile);
        const auto work = cu::attend::work_of(plan, rows, nullptr, nullptr);
        REQUIRE(work.cluster == (tensor_cores && plan.splits == 2 ? 2 : 1));
      }
}
