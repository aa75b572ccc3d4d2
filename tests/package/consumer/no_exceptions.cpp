// SPDX-License-Identifier: MIT
// An engine that is built without exceptions and asks for nothing that cannot be had.
#include <flashmemory/flashmemory.hpp>

int main() {
  flashmemory::store_options options;
  options.geometry.layers = options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = 16;
  options.fast_bytes = options.backing_bytes = std::size_t{1} << 20;
  flashmemory::tiered_chunk_store store(options);
  flashmemory::sequence_options ask;
  ask.max_tokens = 100;
  return store.close(store.open(ask)) == flashmemory::status::ok ? 0 : 1;
}
