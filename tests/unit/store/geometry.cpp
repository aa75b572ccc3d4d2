// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using Catch::Matchers::Contains;

namespace {

template <class Change>
void refused(const std::string& field, const Change& change) {
  fm::kv_geometry g = small_geometry();
  change(g);
  CAPTURE(field);
  REQUIRE_THROWS_AS(fm::validate(g), fm::argument_error);
  REQUIRE_THROWS_WITH(fm::validate(g), Contains(field));
  fm::store_options o = small_options();
  o.geometry = g;
  REQUIRE_THROWS_AS(fm::tiered_chunk_store(o), fm::argument_error);
}

}  // namespace

TEST_CASE("validate names the field of a geometry that cannot work") {
  for (const int bad : {0, -1, std::numeric_limits<int>::min()}) {
    CAPTURE(bad);
    refused("layers", [&](auto& g) { g.layers = bad; });
    refused("kv_heads", [&](auto& g) { g.kv_heads = bad; });
    refused("key_dim", [&](auto& g) { g.key_dim = bad; });
    refused("value_dim", [&](auto& g) { g.value_dim = bad; });
    refused("entries_per_chunk", [&](auto& g) { g.entries_per_chunk = bad; });
    refused("tokens_per_entry", [&](auto& g) { g.tokens_per_entry = bad; });
    refused("tokens_per_key", [&](auto& g) { g.index_keys.tokens_per_key = bad; });
  }
  refused("type", [](auto& g) { g.type = static_cast<fm::dtype>(7); });
  refused("index_keys.layout", [](auto& g) { g.index_keys.layout = static_cast<fm::index_key_layout>(-3); });
  refused("index_keys.lanes", [](auto& g) { g.index_keys.lanes = -1; });
  refused("index_keys.dim", [](auto& g) { g.index_keys.dim = 0; });
  refused("index_keys.dim", [](auto& g) {
    g.index_keys.dim = 80;
    g.index_keys.type = fm::index_key_type::mxfp4;
  });
  refused("index_keys.type", [](auto& g) { g.index_keys.type = fm::index_key_type(9); });
  refused("tokens_per_key", [](auto& g) { g.index_keys.tokens_per_key = 3; });
}

TEST_CASE("validate names what kv_format::deepseek_v4 does not have") {
  const auto refused_v4 = [](const std::string& field, const auto& change) {
    refused(field, [&](auto& g) {
      g = small_v4_geometry();
      change(g);
    });
  };
  REQUIRE_NOTHROW(fm::validate(small_v4_geometry()));
  refused_v4("kv_heads", [](auto& g) { g.kv_heads = 2; });
  refused_v4("key_dim", [](auto& g) { g.key_dim = 576; });
  refused_v4("value_dim", [](auto& g) { g.value_dim = 512; });
  refused_v4("type", [](auto& g) { g.type = fm::dtype::f16; });
  refused_v4("entries_per_chunk", [](auto& g) { g.entries_per_chunk = 48; });
  refused_v4("format", [](auto& g) { g.format = static_cast<fm::kv_format>(2); });
  refused_v4("passes 2^31 bytes", [](auto& g) { g.entries_per_chunk = 1 << 22; });
}

TEST_CASE("validate refuses sizes that overflow instead of wrapping them around") {
  constexpr int most = std::numeric_limits<int>::max();
  refused("layers", [](auto& g) { g.layers = most; });
  refused("kv_heads", [](auto& g) { g.kv_heads = most; });
  refused("key_dim", [](auto& g) { g.key_dim = most; });
  refused("value_dim", [](auto& g) { g.value_dim = most; });
  refused("entries_per_chunk", [](auto& g) {
    g.entries_per_chunk = most - 1;
    g.index_keys.lanes = 0;
  });
  refused("tokens_per_entry", [](auto& g) { g.tokens_per_entry = most; });
  refused("index_keys.dim", [](auto& g) { g.index_keys.dim = most; });
  refused("layers", [](auto& g) {
    g.layers = g.kv_heads = g.key_dim = g.value_dim = g.entries_per_chunk = most;
    g.index_keys.lanes = 0;
  });
  // 2^16 in five factors: the product is 2^80 and wraps to 0 in 64 bits.
  refused("layers", [](auto& g) {
    g.layers = g.kv_heads = g.key_dim = g.value_dim = g.entries_per_chunk = 1 << 16;
    g.index_keys.lanes = 0;
  });
}

TEST_CASE("validate accepts chunks of up to 2^31 bytes and refuses the next larger") {
  fm::kv_geometry g;
  g.layers = 1;
  g.kv_heads = 1;
  g.key_dim = 1 << 14;
  g.value_dim = 1 << 14;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = 1 << 15;
  REQUIRE(fm::chunk_layout(g).chunk_bytes() == std::size_t{1} << 31);
  CHECK_NOTHROW(fm::validate(g));
  g.kv_heads = 2;
  g.value_dim = 1;
  g.key_dim = (1 << 14) + 1;
  CHECK_THROWS_AS(fm::validate(g), fm::argument_error);
}

TEST_CASE("validate does not ask anything of index keys that are not kept") {
  fm::kv_geometry g = small_geometry();
  g.index_keys.lanes = 0;
  g.index_keys.tokens_per_key = 3;
  g.index_keys.dim = 0;
  CHECK_NOTHROW(fm::validate(g));
}
