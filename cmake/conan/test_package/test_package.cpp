// SPDX-License-Identifier: MIT
#include <flashmemory/flashmemory.hpp>
#include <iostream>

int main() {
  flashmemory::store_options options;
  options.geometry.layers = options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = 64;
  options.fast_bytes = options.backing_bytes = std::size_t{1} << 20;
  flashmemory::tiered_chunk_store store(options);
  std::cout << "flashmemory " << flashmemory::version() << " works, " << store.usage().sequences
            << " sequences open\n";
}
