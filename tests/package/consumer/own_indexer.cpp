// SPDX-License-Identifier: MIT
// An engine that is built without RTTI and brings an indexer of its own; and catches the library's typed errors.
#include <cstdio>
#include <flashmemory/flashmemory.hpp>

namespace fm = flashmemory;

namespace {

class newest_first final : public fm::indexer {
 public:
  const char* name() const noexcept override { return "newest first"; }
  fm::view<const fm::query_tap, 1> query_taps() const noexcept override { return {}; }
  fm::view<const fm::index_key_tap, 1> key_taps() const noexcept override { return {}; }
  std::int32_t key_streams() const noexcept override { return 0; }
  bool log_odds() const noexcept override { return false; }
  std::size_t workspace_bytes(const fm::kv_geometry&, std::int64_t, std::int64_t) const noexcept override {
    return 0;
  }
  fm::status encode_index_keys(std::int32_t, fm::view<const float, 2>, fm::view<std::byte, 2>, fm::workspace,
                               fm::thread_hook) const noexcept override {
    return fm::status::unsupported;
  }
  fm::status score(const fm::score_request& request, fm::view<float, 1> scores, fm::workspace,
                   fm::thread_hook, fm::stream_ref) noexcept override {
    for (std::int64_t i = 0; i < request.chunks; ++i) scores(i) = static_cast<float>(i);
    return fm::status::ok;
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
  fm::check_compatible(index, options.geometry);
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
