// SPDX-License-Identifier: MIT
#include <xxhash.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <vector>

#include "src/session/load.hpp"
#include "src/session/session_header.hpp"

// Loads an arbitrary image into a small store. Whatever it holds, it is loaded as a whole or refused with a
// typed error, and then nothing is open. The first byte decides which lengths and checksums are made right
// first; without that, nothing would get past them.
namespace fm = flashmemory;

namespace {

fm::kv_geometry small() {
  fm::kv_geometry g;
  g.layers = 1;
  g.kv_heads = 1;
  g.key_dim = 2;
  g.value_dim = 2;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = 2;
  g.index_keys.lanes = 1;
  g.index_keys.tokens_per_key = 2;
  g.index_keys.dim = 4;
  return g;
}

constexpr std::size_t header_bytes = 24 + 12 * 4 + 5 * 8 + 16 + 8 + 2 * 4 + 8 + 8;

/// A selector's state with the length and checksum that it has.
void repair_state(std::byte* state, std::size_t bytes) {
  if (bytes < 32) return;
  const std::uint64_t length = bytes;
  std::memcpy(state + 16, &length, 8);
  const std::uint64_t sum = XXH3_64bits(state, bytes - 8);
  std::memcpy(state + bytes - 8, &sum, 8);
}

/// Makes the fields right that random bytes would never hit.
void repair(std::vector<std::byte>& image, unsigned what) {
  if (image.size() < header_bytes) return;
  fm::detail::session_header h;
  h.geometry = small();
  h.keys = {0};
  std::memcpy(&h.options.max_tokens, image.data() + 72, 8);
  std::memcpy(&h.options.max_resident_chunks, image.data() + 80, 8);
  std::memcpy(&h.tokens, image.data() + 88, 8);
  std::memcpy(&h.resident, image.data() + 96, 8);
  std::memcpy(&h.state_bytes, image.data() + 104, 8);
  std::memcpy(h.id.data(), image.data() + 112, 16);
  std::memcpy(&h.encoder, image.data() + 128, 8);
  std::memcpy(h.keys.data(), image.data() + 144, 8);
  if (what & 32) h.encoder = 0;  // the selector's indexer makes no keys
  std::memcpy(&h.options.sink_chunks, image.data() + 64, 4);
  std::memcpy(&h.options.recent_chunks, image.data() + 68, 4);
  if (what & 2) {  // small numbers, so that some fit the image
    h.options.max_tokens &= 63;
    h.tokens &= 31;
    h.resident &= 15;
    h.state_bytes &= 255;
    h.keys[0] &= 15;
    h.options.max_resident_chunks &= 31;
    h.options.sink_chunks &= 3;
    h.options.recent_chunks &= 3;
  }
  if (h.tokens < 0 || h.tokens > (1 << 20) || h.resident < 0 || h.state_bytes < 0 || h.keys[0] < 0) return;
  std::vector<std::byte> head;
  std::uint64_t bytes = 0;
  try {
    bytes = fm::detail::session_bytes(h, "fuzz");
    head = fm::detail::encode_header(h);
  } catch (const fm::format_error&) {
    return;
  }
  std::memcpy(image.data(), head.data(), head.size());
  if (bytes > (1 << 16)) return;
  if (what & 4) image.resize(static_cast<std::size_t>(bytes));
  if (!(what & 8) || image.size() != bytes) return;
  std::size_t at = header_bytes;
  std::uint64_t number = 0;
  const auto section = [&](std::size_t length) {
    const std::uint64_t sum = fm::detail::section_checksum(image.data() + at, length, h.id, number++);
    std::memcpy(image.data() + at + length, &sum, 8);
    at += length + 8;
  };
  section(static_cast<std::size_t>(h.resident) * 4);
  const std::size_t chunk = fm::chunk_layout(h.geometry).chunk_bytes();
  for (std::int64_t c = 0; c < h.chunks(); ++c) section(chunk);
  section(static_cast<std::size_t>(h.keys[0]) * 8);
  if (what & 64) repair_state(image.data() + at, static_cast<std::size_t>(h.state_bytes));
  section(static_cast<std::size_t>(h.state_bytes));
  const std::uint64_t digest = XXH3_64bits(image.data(), at);
  std::memcpy(image.data() + at, &digest, 8);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static_assert(sizeof(std::byte) == 1);
  std::vector<std::byte> image(size - 1);
  if (size > 1) std::memcpy(image.data(), data + 1, size - 1);
  if (data[0] & 1) repair(image, data[0]);

  fm::store_options o;
  o.geometry = small();
  o.fast_bytes = 1 << 18;
  o.backing_bytes = 1 << 16;
  o.max_sequences = 2;
  fm::tiered_chunk_store store(o);
  fm::recency_indexer index;
  fm::selection_policy policy;
  policy.sink_chunks = 1;
  policy.recent_chunks = 1;
  fm::selector_options so;
  so.max_sequences = 2;
  fm::selector select(store, index, policy, so);
  const bool selects = data[0] & 16;
  fm::detail::memory_input in(image.data(), image.size(), "fuzz");
  try {
    const fm::sequence_handle s =
        fm::detail::load_session_from(in, store, selects ? &select : nullptr, {}, {});
    // Whatever a state says, the next steps work under the selector's own policy.
    fm::sequence_info info;
    if (store.info(s, &info) != fm::status::ok) std::abort();
    for (int i = 0; selects && i < 3 && info.tokens < info.options.max_tokens; ++i) {
      const std::vector<float> row(2, 1.0f);
      const fm::batch_item item{s, info.tokens, 1};
      const fm::view<const float, 3> kv(row.data(), 1, 1, 2);
      if (store.append(fm::batch(&item, 1), 0, kv, kv, fm::stream_ref::host()) != fm::status::ok) break;
      ++info.tokens;
      if (select.request_refresh(s) != fm::status::ok) std::abort();
      (void)fm::select_chunks(select, fm::batch(&item, 1), fm::stream_ref::host());
    }
    if (store.close(s) != fm::status::ok) std::abort();
  } catch (const fm::error&) {
    // io_failure cannot happen here; everything else is an answer.
  }
  if (store.usage().sequences != 0) std::abort();
  return 0;
}
