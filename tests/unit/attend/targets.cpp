// SPDX-License-Identifier: MIT
#include <hwy/highway.h>
#include <hwy/targets.h>

#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

/// Makes the library choose among `targets` until the end of the scope.
class restrict_targets {
 public:
  explicit restrict_targets(std::int64_t targets) { choose(targets); }
  ~restrict_targets() { choose(0); }

 private:
  static void choose(std::int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

}  // namespace

TEST_CASE("every instruction set that this machine has agrees with the reference", "[attend]") {
  const std::int64_t machine = hwy::SupportedTargets();
  const auto type = GENERATE(dtype::f32, dtype::bf16, dtype::f16);
  const auto dim = GENERATE(48, 128);
  const auto seed = fresh_seed();
  CAPTURE(to_string(type), dim, seed);
  int tried = 0;
  for (std::int64_t target = 1; target != 0 && target <= HWY_SCALAR; target <<= 1) {
    // The last one is what every build can fall back to.
    if ((machine & target) == 0 && target != HWY_SCALAR) continue;
    CAPTURE(hwy::TargetName(target));
    const restrict_targets only(target);
    attend_shape s;
    s.type = type;
    s.group = 5;
    s.key_dim = dim;
    s.value_dim = dim + 16;
    s.entries_per_chunk = 7;
    attend_problem p(s, seed);
    p.options.logit_soft_cap = 9;
    p.sinks.assign(10, 0.5f);
    p.add(150, 3);
    p.add(150, 61);
    CHECK(p.difference(p.run()) == "");
    ++tried;
  }
  CHECK(tried >= 2);
}
