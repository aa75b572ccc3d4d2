// SPDX-License-Identifier: MIT
#include "always_kept.hpp"

#include "policy_cell.hpp"
#include "tests/catch.hpp"

using namespace tinylm;

TEST_CASE("recent chunks leave half of a small budget to be chosen", "[tinylm]") {
  const auto recent = [](const char* policy, double budget, std::int64_t chunks, std::int32_t wanted) {
    return flashmemory::fitted(make_cell(policy, budget, {64, 1, wanted}).policy, chunks).recent_chunks;
  };
  CHECK(recent("lsa", 0.135, 252, 4) == 4);  // 34 chunks
  CHECK(recent("lsa", 0.135, 60, 4) == 3);   // 8: 1 sink, 3 recent, 4 chosen
  CHECK(recent("lsa", 0.135, 60, 3) == 3);
  CHECK(recent("lsa", 0.10, 60, 4) == 2);  // 6: 3 and 3
  CHECK(recent("lsa", 0.10, 20, 4) == 2);  // never below the paper's
  CHECK(recent("lsa", 0.10, 20, 1) == 1);  // unless less was wanted
  CHECK(recent("lsa-threshold", 0.5, 60, 4) == 4);
  CHECK(recent("full", 0, 60, 4) == 4);
}

TEST_CASE("an indexer's file says how many chunks stay anyway", "[tinylm]") {
  const std::string data = TINYLM_DATA;
  const always_kept shipped = kept_by(data + "/indexer.safetensors");
  CHECK(shipped.interval == 64);
  CHECK(shipped.sink == 1);
  CHECK(shipped.recent == 4);
  const always_kept silent = kept_by(data + "/model.safetensors");
  CHECK(silent.recent == 2);
  CHECK(silent.interval == 64);
  CHECK_THROWS(kept_by(data + "/nothing.safetensors"));
}
