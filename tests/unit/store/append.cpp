// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE("what was appended is read back byte for byte, whether one token at a time or at once") {
  fm::kv_geometry g = small_geometry();
  g.type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  g.tokens_per_entry = GENERATE(1, 4);
  const int step = GENERATE(1, 3, 4, 7, 16, 61);
  CAPTURE(int(g.type), g.tokens_per_entry, step);
  g.index_keys.tokens_per_key = 4;
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(61));
  while (s.tokens < 61) {
    REQUIRE(grow(store, s, std::min<std::int64_t>(step, 61 - s.tokens), 5 + std::uint64_t(s.tokens)) ==
            status::ok);
    REQUIRE(info(store, s).tokens == s.tokens);
  }
  CHECK(all_chunks_right(store, s));
  CHECK(info(store, s).complete_chunks == 61 / g.tokens_per_chunk());
  CHECK(store.counters().chunks_sealed == 61 / g.tokens_per_chunk());
}

namespace {

/// The nearest value with `fraction` fraction bits in a format whose least exponent is `least`, ties to even.
double rounded(double x, int fraction, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), least);
  const double unit = std::ldexp(1.0, exponent - fraction);
  return std::nearbyint(x / unit) * unit;
}

double value_of(std::uint16_t bits, int fraction, int bias) {
  const int exponent = (bits & 0x7fff) >> fraction;
  const double mantissa = bits & ((1 << fraction) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (0x7fff >> fraction)) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - fraction);
  return sign * std::ldexp(mantissa + (1 << fraction), exponent - bias - fraction);
}

}  // namespace

TEST_CASE("f32 rows are rounded to the nearest bf16 or f16, ties to even") {
  fm::kv_geometry g = small_geometry();
  g.layers = 1;
  g.kv_heads = 1;
  g.key_dim = g.value_dim = 16;
  g.type = GENERATE(fm::dtype::bf16, fm::dtype::f16);
  const bool half = g.type == fm::dtype::f16;
  const int fraction = half ? 10 : 7, bias = half ? 15 : 127;
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(half, seed);
  std::mt19937 random(seed);
  std::vector<float> k(16 * 64), v(16 * 64);
  for (auto* values : {&k, &v})
    for (float& x : *values) {
      std::uint32_t bits = std::uint32_t(random());
      if (random() % 4 == 0) bits &= 0xffff8000u;  // ties
      std::memcpy(&x, &bits, 4);
      if (half) x = std::ldexp(std::fmod(std::isfinite(x) ? x : 0.0f, 16.0f), int(random() % 40) - 26);
    }
  const float edge[] = {0.0f,     -0.0f, INFINITY, -INFINITY,     65504.0f,
                        65520.0f, 1e-8f, 1e-40f,   3.4028235e38f, NAN};
  std::copy(std::begin(edge), std::end(edge), k.begin());
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(64));
  const fm::batch_item item{s.handle, 0, 64};
  REQUIRE(store.append(fm::batch(&item, 1), 0, fm::const_tensor<3>(k.data(), fm::dtype::f32, 64, 1, 16),
                       fm::const_tensor<3>(v.data(), fm::dtype::f32, 64, 1, 16), host) == status::ok);
  const fm::chunk_layout layout(g);
  for (int c = 0; c < 16; ++c) {
    const auto bytes = read_chunk(store, s, c);
    for (int i = 0; i < 4 * 16; ++i)
      for (const bool value : {false, true}) {
        std::uint16_t bits;
        std::memcpy(&bits, bytes.data() + (value ? layout.value_offset(0, 0) : 0) + i * 2, 2);
        const double x = double((value ? v : k)[std::size_t(c * 64 + i)]);
        const double stored = value_of(bits, fraction, bias);
        double expected = rounded(x, fraction, 1 - bias);
        if (std::fabs(expected) >= std::ldexp(1.0, bias + 1)) expected = std::copysign(INFINITY, x);
        CAPTURE(x, stored, expected);
        if (std::isnan(x))
          REQUIRE(std::isnan(stored));
        else
          REQUIRE((stored == expected && std::signbit(stored) == std::signbit(x)));
      }
  }
}

TEST_CASE("rows may have any strides as long as the last one is 1") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(20));
  const auto tags = new_tags(g, s, 11, 9);
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const made_rows packed = make_rows(g, tags, layer);
    // [heads][entries + 3][dim + 5], last entry first in memory
    std::vector<std::uint16_t> k(2 * 14 * 13), v(2 * 14 * 13);
    for (std::size_t e = 0; e < 11; ++e)
      for (std::size_t h = 0; h < 2; ++h) {
        std::memcpy(&k[(h * 14 + 10 - e) * 13], packed.k.data() + (e * 2 + h) * 16, 16);
        std::memcpy(&v[(h * 14 + 10 - e) * 13], packed.v.data() + (e * 2 + h) * 12, 12);
      }
    fm::const_tensor<3> k_view(k.data() + 10 * 13, g.type, 11, 2, 8),
        v_view(v.data() + 10 * 13, g.type, 11, 2, 6);
    k_view.stride[0] = v_view.stride[0] = -13;
    k_view.stride[1] = v_view.stride[1] = 14 * 13;
    const fm::batch_item item{s.handle, 0, 11};
    REQUIRE(store.append(fm::batch(&item, 1), layer, k_view, v_view, host) == status::ok);
  }
  s.tags = tags;
  s.tokens = 11;
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("a batch appends sequences of different lengths in one call, rows packed in its order") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  std::vector<engine_sequence> s;
  for (int i = 0; i < 4; ++i) s.push_back(open(store, tokens(60, i == 2 ? 5 : 0)));
  REQUIRE(grow(store, s[1], 7, 1) == status::ok);
  for (const std::vector<int>& counts : {std::vector<int>{1, 3, 20, 2}, {4, 1, 1, 9}, {1, 1, 2, 1}}) {
    const std::size_t order[] = {2, 0, 3, 1};
    std::vector<fm::batch_item> items;
    std::vector<std::uint64_t> all;
    for (const std::size_t i : order) {
      items.push_back({s[i].handle, s[i].tokens, counts[i]});
      const auto tags = new_tags(g, s[i], counts[i], 77 + i);
      all.insert(all.end(), tags.begin(), tags.end());
      s[i].tags.insert(s[i].tags.end(), tags.begin(), tags.end());
      s[i].tokens += counts[i];
    }
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const made_rows rows = make_rows(g, all, layer);
      REQUIRE(store.append(fm::batch(items.data(), 4), layer, rows.k_view, rows.v_view, host) == status::ok);
    }
    for (const engine_sequence& one : s) CHECK(all_chunks_right(store, one));
  }
  CHECK(store.append({}, 0, make_rows(g, {}, 0).k_view, make_rows(g, {}, 0).v_view, host) == status::ok);
}

TEST_CASE("each layer shows its own length while a forward pass is under way") {
  fm::kv_geometry g = small_geometry();
  g.layers = 3;
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(40));
  REQUIRE(grow(store, s, 6, 1) == status::ok);
  const auto tags = new_tags(g, s, 5, 2);
  const fm::batch_item item{s.handle, 6, 5};
  for (std::int32_t done = 0; done < 3; ++done) {
    const made_rows rows = make_rows(g, tags, done);
    REQUIRE(store.append(fm::batch(&item, 1), done, rows.k_view, rows.v_view, host) == status::ok);
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      const fm::resident_set set = resident(store, s, layer);
      const bool has = layer <= done;
      CAPTURE(done, layer);
      CHECK(set.tokens == (has ? 11 : 6));
      REQUIRE(set.count == (has ? 3 : 2));
      CHECK(set.chunks[0].entries == 4);
      CHECK(set.chunks[1].entries == (has ? 4 : 2));
      if (has) CHECK(set.chunks[2].entries == 3);
    }
    CHECK(info(store, s).tokens == (done == 2 ? 11 : 6));
    CHECK(info(store, s).complete_chunks == (done == 2 ? 2 : 1));
  }
}

TEST_CASE("append keeps to the order of layers and positions and says what it expected") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(40));
  REQUIRE(grow(store, s, 6, 1) == status::ok);
  const auto attempt = [&](std::int32_t layer, std::int64_t position, std::int32_t count) {
    const fm::batch_item alone{s.handle, position, count};
    const made_rows fitting = make_rows(g, std::vector<std::uint64_t>(std::size_t(std::max(count, 0)), 1), 0);
    const snapshot before(store, s);
    const status code = store.append(fm::batch(&alone, 1), layer, fitting.k_view, fitting.v_view, host);
    if (code != status::ok) CHECK(snapshot(store, s) == before);
    return code;
  };
  const auto expected = [&](std::int64_t wanted, std::int64_t got) {
    const fm::fault f = store.last_fault();
    CHECK(f.sequence == s.handle.index);
    CHECK(f.expected == wanted);
    CHECK(f.actual == got);
  };
  CHECK(attempt(1, 6, 3) == status::out_of_order);
  expected(0, 1);
  CHECK(attempt(0, 5, 3) == status::out_of_order);
  expected(6, 5);
  CHECK(attempt(0, 7, 3) == status::out_of_order);
  expected(6, 7);
  CHECK(attempt(0, -1, 3) == status::out_of_order);
  expected(6, -1);
  CHECK(attempt(0, 6, 3) == status::ok);
  CHECK(attempt(0, 9, 3) == status::out_of_order);
  expected(1, 0);
  CHECK(attempt(1, 6, 2) == status::out_of_order);
  expected(3, 2);
  CHECK(attempt(1, 9, 3) == status::out_of_order);
  expected(6, 9);
  CHECK(attempt(1, 6, 3) == status::ok);
  CHECK(info(store, s).tokens == 9);
  CHECK(attempt(0, 9, 32) == status::sequence_full);
  expected(40, 41);
  CHECK(attempt(0, 9, 0) == status::bad_argument);
  CHECK(attempt(0, 9, -1) == status::bad_argument);
  CHECK(attempt(2, 9, 1) == status::out_of_range);
  CHECK(attempt(-1, 9, 1) == status::out_of_range);
}

TEST_CASE("one bad item leaves every sequence of the batch as it was") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence a = open(store, tokens(40)), b = open(store, tokens(40, 5));
  REQUIRE(grow(store, a, 5, 1) == status::ok);
  REQUIRE(grow(store, b, 24, 2) == status::ok);
  REQUIRE(recall(store, b, {1, 2}) == status::ok);  // sink, two recent and two chosen: the quota is full
  const made_rows rows = make_rows(g, std::vector<std::uint64_t>(8, 3), 0);
  const auto attempt = [&](std::vector<fm::batch_item> items, std::int64_t num_rows) {
    const snapshot before_a(store, a), before_b(store, b);
    fm::const_tensor<3> k = rows.k_view, v = rows.v_view;
    k.shape[0] = v.shape[0] = num_rows;
    const status code = store.append(fm::batch(items.data(), items.size()), 0, k, v, host);
    CHECK(snapshot(store, a) == before_a);
    CHECK(snapshot(store, b) == before_b);
    return code;
  };
  CHECK(attempt({{a.handle, 5, 2}, {b.handle, 23, 1}}, 3) == status::out_of_order);
  CHECK(attempt({{a.handle, 5, 2}, {a.handle, 5, 2}}, 4) == status::bad_argument);
  CHECK(attempt({{a.handle, 5, 2}, {b.handle, 24, 1}}, 3) == status::budget_exceeded);
  CHECK(store.last_fault().expected == 5);
  CHECK(store.last_fault().actual == 6);
  CHECK(store.last_fault().sequence == b.handle.index);
  CHECK(attempt({{a.handle, 5, 2}, {{77, 1}, 24, 1}}, 3) == status::unknown_sequence);
  CHECK(attempt({{a.handle, 5, 2}}, 3) == status::bad_shape);
  CHECK(store.last_fault().expected == 2);
  CHECK(store.last_fault().actual == 3);
  CHECK(all_chunks_right(store, a));
  CHECK(all_chunks_right(store, b));
}

TEST_CASE("append refuses tensors of wrong shape, stride, type or without data") {
  fm::kv_geometry g = small_geometry();
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(40));
  const made_rows rows = make_rows(g, {1, 2}, 0);
  const snapshot before(store, s);
  const auto attempt = [&](auto&& change) {
    fm::const_tensor<3> k = rows.k_view, v = rows.v_view;
    fm::batch_item item{s.handle, 0, 2};
    fm::batch items(&item, 1);
    change(k, v, items);
    const status code = store.append(items, 0, k, v, host);
    CHECK(snapshot(store, s) == before);
    CHECK(store.last_fault().code == code);
    return code;
  };
  CHECK(attempt([](auto& k, auto&, auto&) { k.shape[1] = 1; }) == status::bad_shape);
  CHECK(attempt([](auto&, auto& v, auto&) { v.shape[1] = 3; }) == status::bad_shape);
  CHECK(attempt([](auto& k, auto&, auto&) { k.shape[2] = 6; }) == status::bad_shape);
  CHECK(attempt([](auto&, auto& v, auto&) { v.shape[2] = 8; }) == status::bad_shape);
  CHECK(attempt([](auto& k, auto&, auto&) { k.shape[0] = 1; }) == status::bad_shape);
  CHECK(attempt([](auto&, auto& v, auto&) { v.shape[0] = 3; }) == status::bad_shape);
  CHECK(attempt([](auto& k, auto&, auto&) { k.shape[0] = -1; }) == status::bad_shape);
  CHECK(attempt([](auto& k, auto&, auto&) { k.stride[2] = 2; }) == status::bad_shape);
  CHECK(attempt([](auto&, auto& v, auto&) { v.stride[2] = -1; }) == status::bad_shape);
  CHECK(attempt([](auto& k, auto&, auto&) { k.type = fm::dtype::f16; }) == status::bad_dtype);
  CHECK(attempt([](auto&, auto& v, auto&) { v.type = static_cast<fm::dtype>(9); }) == status::bad_dtype);
  CHECK(attempt([](auto& k, auto&, auto&) { k.data = nullptr; }) == status::null_data);
  CHECK(attempt([](auto&, auto& v, auto&) { v.data = nullptr; }) == status::null_data);
  CHECK(attempt([](auto&, auto&, auto& items) { items.data = nullptr; }) == status::null_data);
  CHECK(attempt([](auto&, auto&, auto& items) { items.shape[0] = -1; }) == status::bad_shape);
  const fm::batch_item item{s.handle, 0, 2};
  int not_a_stream = 0;
  CHECK(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view,
                     fm::stream_ref(reinterpret_cast<CUstream_st*>(&not_a_stream))) == status::unsupported);
  CHECK(snapshot(store, s) == before);
  CHECK(store.counters().faults == 16);
}

TEST_CASE(
    "of a long prompt only sink, recent and open chunks take slots; the rest goes to the backing store") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 6));
  REQUIRE(grow(store, s, 151, 1) == status::ok);  // 37 chunks and 3 tokens
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 35, 36, 37});
  CHECK(store.counters().chunks_written == 37);
  CHECK(store.usage().backing_bytes == 37 * fm::chunk_layout(store.geometry()).chunk_bytes());
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("a prompt may come in pieces: chunks that nobody selected make room for the next piece") {
  const std::int64_t piece = GENERATE(8, 12, 40);
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(400, 8));
  std::uint64_t tag = 1;
  while (s.tokens < 120) REQUIRE(grow(store, s, piece, ++tag) == status::ok);
  REQUIRE(recall(store, s, {3}) == status::ok);
  while (s.tokens < 250) REQUIRE(grow(store, s, piece, ++tag) == status::ok);
  const auto ids = resident_ids(store, s);
  CHECK(ids.size() <= 8);
  CHECK(std::count(ids.begin(), ids.end(), 0) == 1);
  CHECK(std::count(ids.begin(), ids.end(), 3) == 1);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE(
    "chunks that decoding completes stay resident until the quota is full, and then the oldest makes room") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 6));
  for (int i = 0; i < 24; ++i) REQUIRE(grow(store, s, 1, std::uint64_t(i)) == status::ok);
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 1, 2, 3, 4, 5});
  REQUIRE(grow(store, s, 1, 24) == status::ok);
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 2, 3, 4, 5, 6});
  REQUIRE(grow(store, s, 4, 25) == status::ok);
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 3, 4, 5, 6, 7});
  REQUIRE(recall(store, s, {3, 5, 6}) == status::ok);  // all six, by name but for the sink and the open one
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 3, 5, 6, 7});
  REQUIRE(recall(store, s, {3, 4, 5, 6}) == status::ok);
  REQUIRE(grow(store, s, 3, 29) == status::ok);
  const snapshot before(store, s);
  CHECK(grow(store, s, 1, 32) == status::budget_exceeded);
  CHECK(store.last_fault().expected == 6);
  CHECK(store.last_fault().actual == 7);
  CHECK(snapshot(store, s) == before);
  REQUIRE(recall(store, s, {}) == status::ok);
  CHECK(resident_ids(store, s) == std::vector<fm::chunk_id>{0, 6, 7});
  REQUIRE(grow(store, s, 1, 99) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("generated tokens far beyond the quota are recalled byte for byte") {
  fm::store_options o = small_options();
  temporary_path path;
  if (GENERATE(false, true)) o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(400, 8));
  while (s.tokens < 400) {
    REQUIRE(grow(store, s, 1, std::uint64_t(s.tokens) + 1) == status::ok);
    if (s.tokens % 8 == 0) REQUIRE(recall(store, s, {}) == status::ok);
  }
  for (fm::chunk_id first = 1; first + 3 < 98; first += 3) {
    REQUIRE(recall(store, s, {first + 2, first, first + 1}) == status::ok);
    REQUIRE(resident_ids(store, s) == std::vector<fm::chunk_id>{0, first, first + 1, first + 2, 98, 99});
    REQUIRE(resident_bytes_right(store, s));
  }
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("tokens that do not make an entry yet are counted and add nothing") {
  fm::kv_geometry g = small_geometry();
  g.tokens_per_entry = 4;
  fm::tiered_chunk_store store(small_options(g));
  engine_sequence s = open(store, tokens(64));
  for (std::int64_t n = 1; n <= 35; ++n) {
    REQUIRE(grow(store, s, 1, 7 + std::uint64_t(n)) == status::ok);
    const fm::resident_set set = resident(store, s);
    std::int64_t entries = 0;
    for (std::int64_t i = 0; i < set.count; ++i) entries += set.chunks[i].entries;
    REQUIRE(entries == n / 4);
    REQUIRE(set.tokens == n);
  }
  CHECK(all_chunks_right(store, s));
  CHECK(read_chunk(store, s, 2) == std::vector<std::byte>(fm::chunk_layout(g).chunk_bytes()));
}
