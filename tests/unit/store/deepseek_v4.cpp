// SPDX-License-Identifier: MIT
#include "tests/reference/deepseek_v4.hpp"

#include <cmath>
#include <flashmemory/attend/deepseek_v4_resident.hpp>
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/session.hpp>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;
namespace v4 = fm::deepseek_v4;
namespace reference = flashmemory_test::reference;

namespace {

constexpr std::int64_t dim = v4::entry_dim, lightning_dim = v4::lightning_dim;

fm::store_options v4_options(std::int32_t entries_per_chunk) {
  fm::store_options o = small_options(small_v4_geometry(entries_per_chunk));
  o.fast_bytes = o.backing_bytes = 4 << 20;
  return o;
}

/// One sequence and, per layer, the entries and index keys that were appended.
struct remembered {
  fm::sequence_handle handle;
  std::int64_t tokens = 0;
  std::vector<std::vector<float>> entries, keys;
};

/// A forward pass with made-up values, f32 or bf16, in tensors with room between rows.
void grow_v4(fm::chunk_store& store, remembered& s, std::int32_t tokens, std::mt19937& random) {
  const fm::kv_geometry& g = store.geometry();
  const std::int64_t rows = g.entries_for(s.tokens + tokens) - g.entries_for(s.tokens);
  const std::int64_t gap = 3 * std::int64_t(random() % 2);
  const bool narrow = random() % 2 == 0;
  s.entries.resize(std::size_t(g.layers));
  s.keys.resize(std::size_t(g.layers));
  const fm::batch_item item{s.handle, s.tokens, tokens};
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    std::normal_distribution<float> normal;
    const float size = std::ldexp(1.0f, int(random() % 12) - 6);
    const auto make = [&](std::int64_t width, std::vector<float>& kept, std::vector<float>& wide,
                          std::vector<std::uint16_t>& halves) {
      wide.assign(std::size_t(rows * (width + gap) + 1), 7e30f);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < width; ++i) {
          float x = normal(random) * size;
          if (narrow) x = float(reference::bf16_value(reference::bf16_bits(x)));
          wide[std::size_t(r * (width + gap) + i)] = x;
          kept.push_back(x);
        }
      for (const float x : wide) halves.push_back(reference::bf16_bits(x));
      fm::const_tensor<3> t = narrow ? fm::const_tensor<3>(halves.data(), fm::dtype::bf16, rows, 1, width)
                                     : fm::const_tensor<3>(wide.data(), fm::dtype::f32, rows, 1, width);
      t.stride[0] = width + gap;
      return t;
    };
    std::vector<float> k, v;
    std::vector<std::uint16_t> k_half, v_half;
    const auto k_view = make(dim, s.entries[std::size_t(layer)], k, k_half);
    const auto v_view = make(lightning_dim, s.keys[std::size_t(layer)], v, v_half);
    REQUIRE(store.append(fm::batch(&item, 1), layer, k_view, v_view, host) == status::ok);
  }
  s.tokens += tokens;
}

std::vector<float> entry_of(const remembered& s, std::int32_t layer, std::int64_t entry) {
  const float* const first = s.entries[std::size_t(layer)].data() + entry * dim;
  return std::vector<float>(first, first + dim);
}

/// A chunk as the format's definition has it, from the double-precision quantiser.
std::vector<std::byte> reference_chunk(const fm::kv_geometry& g, const remembered& s, std::int64_t chunk) {
  const std::int64_t each = g.entries_per_chunk, there = s.tokens / g.tokens_per_entry;
  const std::int64_t page = (584 * each + 575) / 576 * 576, piece = (page + 132 * each + 63) / 64 * 64;
  std::vector<std::byte> out(std::size_t(piece * g.layers));
  for (std::int32_t layer = 0; layer < g.layers; ++layer)
    for (std::int64_t e = 0; e < each && chunk * each + e < there; ++e) {
      std::byte* const at = out.data() + layer * piece;
      const reference::v4_entry stored = reference::v4_quantise(entry_of(s, layer, chunk * each + e));
      std::memcpy(at + 576 * e, stored.row.data(), 576);
      std::memcpy(at + 576 * each + 8 * e, stored.scales.data(), 8);
      const float* const key = s.keys[std::size_t(layer)].data() + (chunk * each + e) * lightning_dim;
      float largest = 1e-4f;
      for (int i = 0; i < lightning_dim; ++i) largest = std::max(largest, std::fabs(key[i]));
      const float scale = largest / 448.0f;
      for (int i = 0; i < lightning_dim; ++i)
        at[page + 128 * e + i] = std::byte(reference::e4m3_code(double(key[i] / scale)));
      std::memcpy(at + page + 128 * each + 4 * e, &scale, 4);
    }
  return out;
}

std::vector<std::byte> stored_chunk(const fm::chunk_store& store, const remembered& s, std::int64_t chunk) {
  engine_sequence named;
  named.handle = s.handle;
  return read_chunk(store, named, chunk);
}

void check_chunks(const fm::chunk_store& store, const remembered& s) {
  for (std::int64_t c = 0; c < store.geometry().chunks_for(s.tokens); ++c) {
    CAPTURE(c, s.tokens);
    REQUIRE(stored_chunk(store, s, c) == reference_chunk(store.geometry(), s, c));
  }
}

}  // namespace

TEST_CASE("a chunk of DeepSeek-V4-Flash is its planar pages, one after another") {
  fm::kv_geometry g = small_v4_geometry(64);
  g.layers = 21;
  fm::validate(g);
  const fm::chunk_layout layout(g);
  CHECK(g.tokens_per_chunk() == 256);
  CHECK(layout.key_block_bytes() == 37440);
  CHECK(layout.value_block_bytes() == 8448);
  CHECK(layout.layer_bytes() == 45888);
  CHECK(layout.chunk_bytes() == 963648);
  CHECK(layout.key_offset(20, 0) == 20 * 45888);
  CHECK(layout.value_offset(20, 0) == 20 * 45888 + 37440);
  CHECK(layout.index_key_page_bytes() == 8448);
}

TEST_CASE("entries and index keys are stored as the double-precision quantiser makes them") {
  const auto entries_per_chunk = GENERATE(1, 2, 8, 64);
  const bool in_file = GENERATE(false, true);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(entries_per_chunk, in_file, seed);
  std::mt19937 random(seed);
  fm::store_options o = v4_options(entries_per_chunk);
  temporary_path path;
  if (in_file) o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  const std::int32_t per_chunk = 4 * entries_per_chunk;
  const std::int32_t prompts[] = {1, 3, 4, per_chunk - 1, per_chunk, 5 * per_chunk + 6};
  for (const std::int32_t prompt : prompts) {
    if (prompt < 1) continue;
    fm::sequence_options options;
    options.max_tokens = prompt + 40;
    options.max_resident_chunks = 5 + 40 / per_chunk;
    remembered s;
    s.handle = store.open(options);
    grow_v4(store, s, prompt, random);
    check_chunks(store, s);
    for (int i = 0; i < 13; ++i) grow_v4(store, s, 1 + std::int32_t(random() % 3), random);
    check_chunks(store, s);
    REQUIRE(store.recall(s.handle, {}, nullptr, host) == status::ok);
    check_chunks(store, s);
    REQUIRE(store.close(s.handle) == status::ok);
  }
}

TEST_CASE(
    "attention over a layer's resident entries is the reference's, whatever the host's slots hold beyond "
    "them") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  fm::tiered_chunk_store store(v4_options(8));
  const fm::kv_geometry& g = store.geometry();
  fm::sequence_options options;
  options.max_tokens = 600;
  options.max_resident_chunks = 8;
  remembered s;
  s.handle = store.open(options);
  grow_v4(store, s, 32 * 13 + 21, random);  // the open chunk has 5 of 8 entries
  const std::vector<fm::chunk_id> wanted = {3, 9, 4};
  REQUIRE(store.recall(s.handle, fm::view<const fm::chunk_id, 1>(wanted.data(), 3), nullptr, host) ==
          status::ok);
  const std::vector<fm::chunk_id> ids = {0, 3, 4, 9, 11, 12, 13};
  constexpr std::int64_t rows = 3, heads = 2;
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    std::vector<const std::byte*> table(ids.size());
    v4::resident_entries there;
    REQUIRE(v4::list_resident(store, s.handle, layer,
                              fm::view<const std::byte*, 1>(table.data(), table.size()),
                              &there) == status::ok);
    REQUIRE(there.count == 6 * 8 + 5);
    REQUIRE(there.pool.num_pages == 7);
    // Level 2 picks some of them; the last row names every one and some that do not exist.
    std::vector<std::int32_t> list(std::size_t(rows * 64), -1);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t i = 0; i < (r == 2 ? there.count : 9); ++i)
        list[std::size_t(r * 64 + i)] =
            r == 2 ? std::int32_t(i) : std::int32_t(random() % std::uint64_t(there.count));
    list[std::size_t(2 * 64 + there.count)] = 7 * 8;
    v4::entry_source selected;
    selected.pool = there.pool;
    selected.entries = fm::view<const std::int32_t, 2>(list.data(), rows, 64);
    std::normal_distribution<float> normal;
    std::vector<float> q(std::size_t(rows * heads * dim)), out(q.size());
    for (float& x : q) x = normal(random);
    REQUIRE(v4::sparse_attend({}, selected, fm::const_tensor<3>(q.data(), fm::dtype::f32, rows, heads, dim),
                              fm::tensor<3>(out.data(), fm::dtype::f32, rows, heads, dim), {}) == status::ok);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<std::vector<double>> values;
      for (std::int64_t i = 0; i < (r == 2 ? there.count : 9); ++i) {
        const std::int32_t e = list[std::size_t(r * 64 + i)];
        const std::int64_t entry = ids[std::size_t(e / 8)] * 8 + e % 8;
        values.push_back(reference::v4_dequantise(reference::v4_quantise(entry_of(s, layer, entry))));
      }
      for (std::int64_t h = 0; h < heads; ++h) {
        const float* const first = q.data() + (r * heads + h) * dim;
        const auto expected = reference::v4_attend(std::vector<double>(first, first + dim), values,
                                                   1 / std::sqrt(512.0), std::nullopt);
        // Rounding shifts weights, which moves an output by a share of the entries' size, however small it is itself.
        double largest = 1;
        for (const double x : expected.out) largest = std::max(largest, std::fabs(x));
        for (std::int64_t i = 0; i < dim; ++i) {
          const double wanted_value = expected.out[std::size_t(i)];
          const double found = double(out[std::size_t((r * heads + h) * dim + i)]);
          if (!(std::fabs(found - wanted_value) <= 1e-4 * largest)) {
            CAPTURE(layer, r, h, i, largest);
            REQUIRE(found == Approx(wanted_value).margin(1e-4 * largest));
          }
        }
      }
    }
    // The index keys of the same entries: where the table entry and the offset say.
    for (std::int64_t e = 0; e < there.count; ++e) {
      const std::byte* const page = there.pool.table[e / 8] + there.index_offset;
      const auto chunk = reference_chunk(g, s, ids[std::size_t(e / 8)]);
      const std::size_t at = fm::chunk_layout(g).value_offset(layer, 0);
      REQUIRE(std::memcmp(page + e % 8 * 128, chunk.data() + at + std::size_t(e % 8 * 128), 128) == 0);
      REQUIRE(std::memcmp(page + 8 * 128 + e % 8 * 4, chunk.data() + at + std::size_t(8 * 128 + e % 8 * 4),
                          4) == 0);
    }
  }
}

TEST_CASE("what cannot read kv_format::deepseek_v4 says so, and so does what can read nothing else") {
  fm::tiered_chunk_store store(v4_options(4)), other(small_options());
  fm::sequence_options options;
  options.max_tokens = 100;
  const auto s = store.open(options), plain = other.open(options);
  std::vector<const std::byte*> table(30);
  const fm::view<const std::byte*, 1> room(table.data(), table.size());
  v4::resident_entries there;
  fm::fault f;
  CHECK(v4::list_resident(other, plain, 0, room, &there, &f) == status::unsupported);
  CHECK(std::string(f.what) == "the store's kv_format");
  CHECK(v4::list_resident(store, s, 2, room, &there, &f) == status::out_of_range);
  CHECK(f.layer == 2);
  CHECK(v4::list_resident(store, {}, 0, room, &there, &f) == status::unknown_sequence);
  CHECK(v4::list_resident(store, s, 0, room, nullptr, &f) == status::null_data);
  CHECK(v4::list_resident(store, s, 0, {}, &there, &f) == status::ok);  // nothing is resident yet
  CHECK(there.count == 0);
  std::mt19937 random(1);
  remembered grown;
  grown.handle = s;
  grow_v4(store, grown, 50, random);
  CHECK(v4::list_resident(store, s, 0, fm::view<const std::byte*, 1>(table.data(), 2), &there, &f) ==
        status::bad_shape);
  CHECK(f.expected == 3);
  CHECK(f.actual == 2);

  std::vector<float> q(dim), out(dim);
  std::vector<std::byte> scratch(1 << 20);
  fm::attend_options attend;
  attend.scratch = {scratch.data(), scratch.size()};
  attend.error = &f;
  const fm::batch_item item{s, 49, 1};
  CHECK(fm::sparse_attend(
            store, fm::batch(&item, 1), 0, fm::const_tensor<3>(q.data(), fm::dtype::f32, 1, 1, dim),
            fm::tensor<3>(out.data(), fm::dtype::f32, 1, 1, 128), attend, host) == status::unsupported);
  CHECK(std::string(f.what).find("kv_format") != std::string::npos);
  CHECK_THROWS_WITH(fm::quest_indexer(store.geometry(), 1, 1, 10), Catch::Matchers::Contains("kv_format"));

  REQUIRE(v4::list_resident(store, s, 0, room, &there) == status::ok);
  const std::int32_t place = 0;
  CHECK(v4::append_entries(there.pool, fm::const_tensor<2>(q.data(), fm::dtype::f32, 1, dim),
                           fm::view<const std::int32_t, 1>(&place, 1), &f) == status::bad_argument);
}

TEST_CASE("chunks and sessions of DeepSeek-V4 travel between stores byte for byte") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  fm::tiered_chunk_store from(v4_options(4)), to(v4_options(4)), loaded(v4_options(4));
  fm::sequence_options options;
  options.max_tokens = 300;
  options.max_resident_chunks = 7;
  remembered s;
  s.handle = from.open(options);
  grow_v4(from, s, 16 * 9 + 11, random);
  remembered copy = s;
  copy.handle = to.open(options);
  for (std::int64_t c = 0; c < 10; ++c) {
    const auto bytes = stored_chunk(from, s, c);
    REQUIRE(to.append_chunk(copy.handle, fm::view<const std::byte, 1>(bytes.data(), bytes.size()),
                            std::min<std::int64_t>(16, s.tokens - 16 * c)) == status::ok);
  }
  check_chunks(to, copy);
  grow_v4(to, copy, 30, random);
  check_chunks(to, copy);

  temporary_path path;
  fm::save_session(from, s.handle, path.string());
  remembered again = s;
  again.handle = fm::load_session(loaded, path.string());
  check_chunks(loaded, again);

  fm::store_options plain = v4_options(4);
  plain.geometry.format = fm::kv_format::separate;
  fm::tiered_chunk_store other(plain);
  CHECK_THROWS_AS(fm::load_session(other, path.string()), fm::format_error);
  CHECK_THROWS_WITH(fm::load_session(other, path.string()),
                    Catch::Matchers::Contains("format is deepseek_v4, the store's is separate"));
}
