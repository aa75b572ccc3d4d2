// SPDX-License-Identifier: MIT
#include <flashmemory/flashmemory.hpp>
#include <iostream>
#ifdef WITH_TRAIN
#include <flashmemory/train/learn/trainer.hpp>
#endif

int main() {
  flashmemory::store_options options;
  options.geometry.layers = options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = 64;
  options.fast_bytes = options.backing_bytes = std::size_t{1} << 20;
  flashmemory::tiered_chunk_store store(options);
  std::cout << "flashmemory " << flashmemory::version() << " works, " << store.usage().sequences
            << " sequences open\n";
#ifdef WITH_TRAIN
  flashmemory::train::validate(flashmemory::train::trainer_options());
  std::cout << "so does its trainer\n";
#endif
}
