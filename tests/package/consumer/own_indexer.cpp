// SPDX-License-Identifier: MIT
// An engine that is built without RTTI and brings an indexer of its own; and catches the library's typed errors.
#include <cstdio>
#include <flashmemory/flashmemory.hpp>

namespace fm = flashmemory;

namespace {

class newest_first final : public fm::indexer {
 public:
  newest_first() : fm::indexer(what_it_reads()) {}
  fm::status score(const fm::score_request& request, fm::view<float, 1> scores) noexcept override {
    for (std::int64_t i = 0; i < request.chunks; ++i) scores(i) = static_cast<float>(i);
    return fm::status::ok;
  }

 private:
  static fm::indexer_taps what_it_reads() {
    fm::indexer_taps taps;
    taps.name = "newest first";
    return taps;
  }
};

}  // namespace

int main() {
  newest_first index;
  fm::store_options options;
  options.geometry.layers = options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = 64;
  options.fast_bytes = options.backing_bytes = std::size_t{4} << 20;
  fm::tiered_chunk_store store(options);
  fm::check_compatible(index.taps(), options.geometry);
  fm::selector select(store, index, fm::selection_policy());
  try {
    options.geometry.layers = 0;
    fm::tiered_chunk_store bad(options);
    return 1;
  } catch (const fm::argument_error&) {
  }
  try {
    (void)fm::load_dual_encoder("/nowhere/at/all");
    return 1;
  } catch (const fm::error&) {
  }
  std::puts("own indexer works");
}
