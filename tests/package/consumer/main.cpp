// SPDX-License-Identifier: MIT
// What every way of taking flashmemory in must be able to do: open a store, append a token, attend to it, and
// catch a typed error that was thrown inside the library.
#include <cstddef>
#include <cstdint>
#include <flashmemory/flashmemory.hpp>
#include <iostream>
#include <string>
#include <vector>

namespace fm = flashmemory;

static void check(fm::status code) {
  if (code != fm::status::ok) throw fm::error(code, fm::to_string(code));
}

int main() try {
  constexpr std::int32_t dim = 64;
  const std::string compiled = std::to_string(FLASHMEMORY_VERSION_MAJOR) + "." +
                               std::to_string(FLASHMEMORY_VERSION_MINOR) + "." +
                               std::to_string(FLASHMEMORY_VERSION_PATCH);
  if (fm::version() != compiled) {
    std::cerr << "linked " << fm::version() << ", compiled " << compiled << '\n';
    return 1;
  }

  fm::store_options options;
  options.geometry.layers = options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = dim;
  options.geometry.type = fm::dtype::f32;
  options.fast_bytes = options.backing_bytes = std::size_t{4} << 20;
  fm::tiered_chunk_store store(options);

  fm::sequence_options ask;
  ask.max_tokens = 256;
  const fm::batch_item item{store.open(ask), 0, 1};
  const fm::batch items(&item, 1);

  std::vector<float> k(dim, 0.5f), v(dim), out(dim);
  for (int i = 0; i < dim; ++i) v[i] = static_cast<float>(i) - 20.f;
  const auto stream = fm::stream_ref::host();
  check(store.append(items, 0, {k.data(), fm::dtype::f32, 1, 1, dim}, {v.data(), fm::dtype::f32, 1, 1, dim},
                     stream));

  std::vector<std::byte> scratch(fm::attend_workspace_bytes(options.geometry, 1, 1, 1));
  fm::attend_options attend;
  attend.scratch = {scratch.data(), scratch.size()};
  check(fm::sparse_attend(store, items, 0, {k.data(), fm::dtype::f32, 1, 1, dim},
                          {out.data(), fm::dtype::f32, 1, 1, dim}, attend, stream));
  if (out != v) {  // one entry has all the weight
    std::cerr << "attention over one token is not its value\n";
    return 1;
  }

  try {
    ask.max_tokens = std::int64_t{1} << 30;
    store.open(ask);
    std::cerr << "a sequence beyond every budget was admitted\n";
    return 1;
  } catch (const fm::admission_error&) {
  }
  std::cout << "flashmemory " << fm::version() << " works\n";
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
