// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/parallel.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/view.hpp>

namespace flashmemory {
inline namespace v0 {

/// Which chunks of a sequence are attended to.
enum class attend_reach : std::int32_t {
  resident,  ///< those in the fast tier, and those that the item's own tokens lie in, wherever they are
  everything,  ///< all of them: what is not resident is streamed through the scratch, a layer's part of a chunk at a time
};

/// Options of every sparse_attend(): CPU and CUDA, separate K and V and DeepSeek-V4's entries. Every default means "off";
/// a call refuses as unsupported what it cannot honour. Memory is the backend's: host memory on the CPU, device memory on
/// CUDA. Views may be strided.
struct attend_options {
  float softmax_scale = 0;  ///< multiplies logits; 0 = 1/sqrt(key_dim)
  float logit_soft_cap =
      0;  ///< c > 0: logit = c * tanh(logit / c), after scaling; not with DeepSeek-V4's entries
  view<const float, 1>
      sink_logits;  ///< [query heads]: a logit without a value in each head's denominator, unscaled. +inf
                    ///< leaves nothing for the entries: the output is zero and lse is +inf
  view<float, 2>
      lse;  ///< [query tokens, query heads] out: natural log of the softmax denominator, sink included;
            ///< -inf if that is 0, as it is for a row that attends to nothing

  /// Level 2, CPU and separate K and V only: entry positions in the sequence that a row may attend to, [query tokens, k];
  /// -1 pads, any order, no duplicates. Entries that the row may not see yet are skipped. k of 0 = none; only a
  /// default view = all resident entries.
  view<const std::int32_t, 2> entries;

  attend_reach reach = attend_reach::resident;  ///< separate K and V only
  /// What becomes of a streamed chunk that is bad or cannot be read: the call is refused by the chunk's name, or, with
  /// this, the chunk is left out, counted in `left_out` and named by the reader's last_fault().
  bool leave_out_unreadable = false;
  std::int64_t* left_out = nullptr;  ///< host; chunks that a call with leave_out_unreadable has left out
  workspace
      scratch;  ///< what the call's workspace query says, whatever is in it; calls that may run at the same time
                ///< must not share it
  /// CUDA: [cuda::attend_counters], device, needed where the workspace query says more than 0. Set to zero once before the
  /// first call; every call leaves zeros, so plans of all shapes may use them in turn. Calls that may run at the same time
  /// need counters of their own.
  std::uint32_t* counters = nullptr;
  thread_hook threads = default_threads();  ///< CPU
  fault* error = nullptr;                   ///< host; if not null, details when the result is not ok
};

}  // namespace v0
}  // namespace flashmemory
