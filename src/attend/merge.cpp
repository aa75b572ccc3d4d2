// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/attend/sparse_attend.hpp>
#include <limits>

namespace flashmemory {
inline namespace v0 {

status merge_attention(view<float, 3> out, view<float, 2> lse, view<const float, 3> other_out,
                       view<const float, 2> other_lse) noexcept {
  for (int d = 0; d < 3; ++d) {
    if (out.shape[d] < 0 || other_out.shape[d] != out.shape[d]) return status::bad_shape;
  }
  for (int d = 0; d < 2; ++d) {
    if (lse.shape[d] != out.shape[d] || other_lse.shape[d] != out.shape[d]) return status::bad_shape;
  }
  if (lse.size() == 0) return status::ok;
  if (lse.data == nullptr || other_lse.data == nullptr) return status::null_data;
  if (out.size() != 0 && (out.data == nullptr || other_out.data == nullptr)) return status::null_data;

  constexpr float inf = std::numeric_limits<float>::infinity();
  for (std::int64_t row = 0; row < out.shape[0]; ++row) {
    for (std::int64_t head = 0; head < out.shape[1]; ++head) {
      float& first = lse(row, head);
      const float second = other_lse(row, head);
      if (second == -inf) continue;  // the other part is empty
      const float max = first == -inf ? second : std::max(first, second);
      // inf - inf is no number.
      const auto relative = [max](float part) {
        return part == -inf ? 0.0f : part == max ? 1.0f : std::exp(part - max);
      };
      const float weight = relative(first), other_weight = relative(second), sum = weight + other_weight;
      // Shares of 1, so that what both parts can hold is what the result can hold.
      const float share = weight / sum, other_share = other_weight / sum;
      for (std::int64_t i = 0; i < out.shape[2]; ++i) {
        const float ours = share == 0 ? 0 : share * out(row, head, i);
        const float theirs = other_share == 0 ? 0 : other_share * other_out(row, head, i);
        out(row, head, i) = ours + theirs;
      }
      first = max + std::log(sum);
    }
  }
  return status::ok;
}

}  // namespace v0
}  // namespace flashmemory
