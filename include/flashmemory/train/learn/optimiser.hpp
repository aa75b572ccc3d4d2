// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/config.hpp>

namespace flashmemory {
inline namespace v0 {
namespace train {

/// How the learning rate falls after warm-up.
enum class rate_schedule : std::int32_t { cosine, linear, constant };

/// AdamW (arXiv 1711.05101) with warm-up and global gradient clipping. Norm weights and logit offsets are not
/// decayed.
struct optimiser_options {
  double rate = 1e-3;
  double final_rate = 0.02;  ///< share of `rate` at the last step
  rate_schedule schedule = rate_schedule::cosine;
  std::int64_t warm_up = 20;  ///< steps
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double decay = 0;
  double clip =
      1;  ///< the norm of all retrievers' gradient is limited to this times their number; 0 = unlimited
};

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
