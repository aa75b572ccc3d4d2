// SPDX-License-Identifier: MIT
#include "src/indexer/key_fingerprint.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace flashmemory {
inline namespace v0 {
namespace detail {

std::uint64_t key_fingerprint(const dual_encoder_config& config) noexcept {
  std::uint32_t floor_bits;
  static_assert(sizeof floor_bits == sizeof config.key_scale_floor);
  std::memcpy(&floor_bits, &config.key_scale_floor, sizeof floor_bits);
  const std::uint32_t shape[] = {static_cast<std::uint32_t>(config.hidden),
                                 static_cast<std::uint32_t>(config.tokens_per_key),
                                 static_cast<std::uint32_t>(config.key_window), floor_bits};
  std::uint64_t print = XXH3_64bits(shape, sizeof shape);
  bool encodes = false;
  for (const retriever_weights& retriever : config.retrievers) {
    encodes |= !retriever.wk.empty();
    const std::uint64_t stream[] = {
        print, retriever.wk.empty() ? ~std::uint64_t{0} : static_cast<std::uint64_t>(retriever.key_layer),
        XXH3_64bits(retriever.wk.data(), retriever.wk.size() * sizeof(float))};
    print = XXH3_64bits(stream, sizeof stream);
  }
  return encodes ? std::max<std::uint64_t>(print, 1) : 0;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
