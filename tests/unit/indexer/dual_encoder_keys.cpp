// SPDX-License-Identifier: MIT
#include <hwy/targets.h>

#include <limits>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/indexer/dual_encoder_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;

namespace {

/// Runs `f` once per instruction set that this machine and the library have.
template <class F>
void on_every_target(const F& f) {
  for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets & -targets);
    CAPTURE(hwy::TargetName(targets & -targets));
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
}

std::vector<std::byte> encode(const dual_encoder_indexer& index, std::int32_t stream,
                              const std::vector<float>& rows, std::int64_t first, std::int64_t count,
                              thread_hook threads = serial_threads()) {
  const auto& c = index.config();
  std::vector<std::byte> keys(std::size_t(count) * 132);
  const view<const float, 2> all(rows.data() + first * c.tokens_per_key * c.hidden,
                                 (count - 1) * c.tokens_per_key + c.key_window, c.hidden);
  REQUIRE(index.encode_index_keys(stream, all, view<std::byte, 2>(keys.data(), count, 132), {}, threads) ==
          status::ok);
  return keys;
}

}  // namespace

TEST_CASE("encode_index_keys() follows the reference on every instruction set", "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  struct shape {
    std::int32_t hidden, stride, window;
    std::int64_t keys;
  };
  for (const shape s :
       {shape{1, 1, 1, 3}, {17, 4, 4, 9}, {96, 4, 16, 33}, {257, 3, 7, 70}, {600, 4, 16, 5}}) {
    CAPTURE(s.hidden, s.stride, s.window, s.keys);
    auto config = random_config(random, s.hidden, 3, 1, 2, true);
    config.tokens_per_key = s.stride;
    config.key_window = s.window;
    const dual_encoder_indexer index(config);
    const auto rows = normals(random, ((s.keys - 1) * s.stride + s.window) * s.hidden);
    on_every_target([&] {
      const auto keys = encode(index, 1, rows, 0, s.keys);
      for (std::int64_t k = 0; k < s.keys; ++k) {
        const auto want = reference::key_vector(config.retrievers[1].wk,
                                                rows.data() + k * s.stride * s.hidden, s.window, s.hidden);
        double amax = double(config.key_scale_floor);
        for (const double v : want) amax = std::max(amax, std::fabs(v));
        float scale;
        std::memcpy(&scale, &keys[std::size_t(k) * 132 + 128], 4);
        CHECK(double(scale) == Approx(amax / 448).epsilon(1e-5));
        for (std::size_t d = 0; d < 128; ++d) {
          const double got =
              reference::e4m3_value(std::uint8_t(keys[std::size_t(k) * 132 + d])) * double(scale);
          // Half a step of e4m3: 2^-4 of the value, or half a subnormal.
          REQUIRE(std::fabs(got - want[d]) <=
                  std::fabs(want[d]) / 16 * 1.001 + double(scale) / 1024 * 1.01 + amax * 1e-5);
        }
      }
    });
  }
}

TEST_CASE("A key's bytes do not depend on what else is encoded in the call, nor on threads",
          "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  auto config = random_config(random, 300, 3, 1, 1, true);
  config.key_window = 16;
  const dual_encoder_indexer index(config);
  constexpr std::int64_t count = 77;
  const auto rows = normals(random, ((count - 1) * 4 + 16) * 300);
  on_every_target([&] {
    const auto all = encode(index, 0, rows, 0, count);
    CHECK(all == encode(index, 0, rows, 0, count, default_threads()));
    CHECK(all == encode(index, 0, rows, 0, count, backwards()));
    for (const std::int64_t length : {1, 2, 3, 5, 8, 13, 31, 32, 33}) {
      const std::int64_t first = std::int64_t(random() % std::uint64_t(count - length + 1));
      CAPTURE(length, first);
      const auto some = encode(index, 0, rows, first, length);
      CHECK(std::equal(some.begin(), some.end(), all.begin() + first * 132));
    }
  });
}

TEST_CASE("encode_index_keys() reads strided rows and writes strided keys", "[dual_encoder]") {
  std::mt19937 random(4);
  const dual_encoder_indexer index(random_config(random, 20, 3, 1, 1, true));
  const auto rows = normals(random, 3 * 4 * 20);
  const auto dense = encode(index, 0, rows, 0, 3);
  std::vector<float> wide(12 * 23, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t r = 0; r < 12; ++r) std::copy_n(&rows[r * 20], 20, &wide[r * 23]);
  view<const float, 2> strided(wide.data(), 12, 20);
  strided.stride[0] = 23;
  std::vector<std::byte> out(3 * 140, std::byte{9});
  view<std::byte, 2> keys(out.data(), 3, 132);
  keys.stride[0] = 140;
  REQUIRE(index.encode_index_keys(0, strided, keys, {}, serial_threads()) == status::ok);
  for (std::size_t k = 0; k < 3; ++k) {
    CHECK(std::equal(dense.begin() + std::ptrdiff_t(k * 132), dense.begin() + std::ptrdiff_t(k * 132 + 132),
                     &out[k * 140]));
    CHECK(out[k * 140 + 132] == std::byte{9});
  }
}

TEST_CASE("encode_index_keys() refuses bad arguments", "[dual_encoder]") {
  std::mt19937 random(5);
  const auto config = random_config(random, 20, 3, 1, 2, true);
  const dual_encoder_indexer index(config);
  const auto rows = normals(random, 12 * 20);
  std::vector<std::byte> keys(3 * 132);
  const view<const float, 2> r(rows.data(), 12, 20);
  const view<std::byte, 2> k(keys.data(), 3, 132);
  const auto call = [&](std::int32_t stream, view<const float, 2> in, view<std::byte, 2> out) {
    return index.encode_index_keys(stream, in, out, {}, serial_threads());
  };
  CHECK(call(0, r, k) == status::ok);
  CHECK(call(-1, r, k) == status::out_of_range);
  CHECK(call(2, r, k) == status::out_of_range);
  CHECK(call(0, view<const float, 2>(rows.data(), 11, 20), k) == status::bad_shape);
  CHECK(call(0, view<const float, 2>(rows.data(), 12, 19), k) == status::bad_shape);
  CHECK(call(0, r, view<std::byte, 2>(keys.data(), 3, 131)) == status::bad_shape);
  CHECK(call(0, r, view<std::byte, 2>(keys.data(), 2, 132)) == status::bad_shape);
  CHECK(call(0, r, view<std::byte, 2>(keys.data(), -1, 132)) == status::bad_shape);
  auto turned = r;
  turned.stride[1] = 2;
  CHECK(call(0, turned, k) == status::bad_shape);
  CHECK(call(0, view<const float, 2>(nullptr, 12, 20), k) == status::null_data);
  CHECK(call(0, r, view<std::byte, 2>(nullptr, 3, 132)) == status::null_data);
  CHECK(call(0, view<const float, 2>(nullptr, 0, 20), view<std::byte, 2>(nullptr, 0, 132)) == status::ok);

  const dual_encoder_indexer without(random_config(random, 20, 3, 1, 2, false));
  CHECK(without.encode_index_keys(0, r, k, {}, serial_threads()) == status::unsupported);
}

TEST_CASE("A NaN in the hidden states gives keys that are marked NaN, and only those that see it",
          "[dual_encoder]") {
  std::mt19937 random(6);
  auto config = random_config(random, 20, 3, 2, 1, true);
  config.key_window = 8;
  const dual_encoder_indexer index(config);
  auto rows = normals(random, (4 * 4 + 8) * 20);
  rows[9 * 20 + 3] = std::numeric_limits<float>::quiet_NaN();  // seen by keys 1 (rows 4..11) and 2 (8..15)
  const auto keys = encode(index, 0, rows, 0, 5);
  for (std::size_t k = 0; k < 5; ++k) {
    CHECK(std::count(&keys[k * 132], &keys[k * 132] + 128, std::byte{0x7f}) == (k == 1 || k == 2 ? 128 : 0));
  }
}

TEST_CASE("score_keys() follows the reference on every instruction set, for any heads, counts and pages",
          "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const std::int32_t heads : {1, 2, 3, 7, 8, 9, 15, 64}) {
    const auto config = random_config(random, 4, 2, heads, 2, false);
    const dual_encoder_indexer index(config);
    const auto queries = normals(random, std::int64_t{heads} * 128);
    const auto gates = normals(random, heads, 0.05);
    reference::encoded_query query;
    for (std::size_t h = 0; h < std::size_t(heads); ++h) {
      query.heads.emplace_back(&queries[h * 128], &queries[h * 128] + 128);
      query.gates.push_back(double(gates[h]));
    }
    for (const std::int64_t count : {1, 15, 16, 17, 31, 32, 33, 100}) {
      auto keys = random_keys(random, count);
      for (std::size_t i = 0; i < keys.size(); ++i) {  // every byte but the NaNs, scales kept
        if (i % 132 < 128 && (random() & 1)) {
          const auto byte = std::uint8_t(random());
          if ((byte & 0x7f) != 0x7f) keys[i] = std::byte(byte);
        }
      }
      std::vector<double> want;
      double largest = 1;
      for (std::int64_t k = 0; k < count; ++k) {
        want.push_back(reference::key_logit(query, &keys[std::size_t(k) * 132],
                                            double(config.retrievers[1].logit_offset)));
        largest = std::max(largest, std::fabs(want.back()));
      }
      const std::int64_t page = std::int64_t(random() % 40) + 1;
      CAPTURE(heads, count, page);
      on_every_target([&] {
        std::vector<float> first;
        for (const auto layout : {index_key_layout::interleaved, index_key_layout::planar}) {
          kv_geometry geometry = reference::key_geometry(1, std::int32_t(page), layout);
          const reference::key_store store(geometry, {keys});
          index_key_pages pages;
          REQUIRE(store.index_keys({}, 0, &pages) == status::ok);
          std::vector<float> logits(std::size_t(count), 99.0f);
          REQUIRE(index.score_keys(1, queries.data(), gates.data(), pages.data, count, page, layout,
                                   logits.data(), serial_threads()) == status::ok);
          double error = 0;
          for (std::size_t k = 0; k < logits.size(); ++k) {
            const double e = std::fabs(double(logits[k]) - want[k]);
            error = e <= error ? error : e;
          }
          CHECK(error / largest < 1e-5);
          if (first.empty()) first = logits;
          CHECK(logits == first);
        }
      });
    }
  }
}

TEST_CASE("A key's logit has the same bits wherever it stands and whoever computes it", "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const dual_encoder_indexer index(random_config(random, 4, 2, 5, 1, false));
  const auto queries = normals(random, 5 * 128), gates = normals(random, 5);
  constexpr std::int64_t count = 5000;
  const auto keys = random_keys(random, count);
  const auto score = [&](std::int64_t first, std::int64_t n, thread_hook threads) {
    std::vector<float> logits(static_cast<std::size_t>(n));
    REQUIRE(index.score_keys(0, queries.data(), gates.data(), keys.data() + first * 132, n, 16,
                             index_key_layout::interleaved, logits.data(), threads) == status::ok);
    return logits;
  };
  const auto all = score(0, count, serial_threads());
  CHECK(all == score(0, count, default_threads()));
  CHECK(all == score(0, count, backwards()));
  for (int round = 0; round < 50; ++round) {
    const std::int64_t first = std::int64_t(random() % count);
    const std::int64_t n = std::int64_t(random() % std::uint64_t(count - first)) % 70 + 1;
    if (first + n > count) continue;
    CAPTURE(first, n);
    const auto some = score(first, n, serial_threads());
    CHECK(std::equal(some.begin(), some.end(), all.begin() + first));
  }
}

TEST_CASE("relu(q . (k s)) holds for negative, zero, tiny and huge scales", "[dual_encoder]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto config = random_config(random, 4, 2, 3, 1, false);
  const dual_encoder_indexer index(config);
  const auto queries = normals(random, 3 * 128), gates = normals(random, 3);
  reference::encoded_query query;
  for (std::size_t h = 0; h < 3; ++h) {
    query.heads.emplace_back(&queries[h * 128], &queries[h * 128] + 128);
    query.gates.push_back(double(gates[h]));
  }
  const float scales[] = {-0.01f, -3.0f, 0.0f, -0.0f, 1e-30f, -1e-30f, 1e30f, -1e30f, 1.5e36f};
  auto keys = random_keys(random, std::size(scales));
  for (std::size_t k = 0; k < std::size(scales); ++k) {
    set_scale(keys, std::int64_t(k), scales[k]);
    if (std::fabs(scales[k]) > 1) {  // keeps the logit below the largest float
      for (std::size_t d = 0; d < 128; ++d) keys[k * 132 + d] &= std::byte{0xb7};
    }
  }
  on_every_target([&] {
    float logits[std::size(scales)];
    REQUIRE(index.score_keys(0, queries.data(), gates.data(), keys.data(), std::int64_t(std::size(scales)), 4,
                             index_key_layout::interleaved, logits, serial_threads()) == status::ok);
    for (std::size_t k = 0; k < std::size(scales); ++k) {
      CAPTURE(scales[k]);
      const double want =
          reference::key_logit(query, &keys[k * 132], double(config.retrievers[0].logit_offset));
      CHECK(double(logits[k]) == Approx(want).epsilon(1e-4).margin(1e-4 * std::fabs(double(scales[k]))));
    }
  });
}

TEST_CASE("Keys with a NaN byte or a scale that is not finite score NaN, their neighbours do not",
          "[dual_encoder]") {
  std::mt19937 random(7);
  const dual_encoder_indexer index(random_config(random, 4, 2, 3, 1, false));
  const auto queries = normals(random, 3 * 128), gates = normals(random, 3);
  constexpr std::int64_t count = 70;
  const auto good = random_keys(random, count);
  const float inf = std::numeric_limits<float>::infinity();
  on_every_target([&] {
    for (const std::int64_t bad : {0, 1, 15, 16, 31, 32, 63, 64, 69}) {
      for (int how = 0; how < 5; ++how) {
        CAPTURE(bad, how);
        auto keys = good;
        const auto at = std::size_t(bad) * 132;
        if (how == 0) keys[at + random() % 128] = std::byte{0x7f};
        if (how == 1) keys[at + random() % 128] = std::byte{0xff};
        if (how == 2) set_scale(keys, bad, std::numeric_limits<float>::quiet_NaN());
        if (how == 3) set_scale(keys, bad, inf);
        if (how == 4) set_scale(keys, bad, -inf);
        std::vector<float> logits(count);
        REQUIRE(index.score_keys(0, queries.data(), gates.data(), keys.data(), count, 16,
                                 index_key_layout::interleaved, logits.data(),
                                 serial_threads()) == status::ok);
        for (std::int64_t k = 0; k < count; ++k) CHECK(std::isnan(logits[std::size_t(k)]) == (k == bad));
      }
    }
  });
}

TEST_CASE("A NaN in a query makes every logit NaN", "[dual_encoder]") {
  std::mt19937 random(8);
  const dual_encoder_indexer index(random_config(random, 4, 2, 3, 1, false));
  auto queries = normals(random, 3 * 128), gates = normals(random, 3);
  queries[130] = std::numeric_limits<float>::quiet_NaN();
  const auto keys = random_keys(random, 40);
  on_every_target([&] {
    std::vector<float> logits(40);
    REQUIRE(index.score_keys(0, queries.data(), gates.data(), keys.data(), 40, 16,
                             index_key_layout::interleaved, logits.data(), serial_threads()) == status::ok);
    for (const float z : logits) CHECK(std::isnan(z));
  });
}

TEST_CASE("score_keys() refuses bad arguments", "[dual_encoder]") {
  std::mt19937 random(9);
  const dual_encoder_indexer index(random_config(random, 4, 2, 3, 2, false));
  const auto queries = normals(random, 3 * 128), gates = normals(random, 3);
  const auto keys = random_keys(random, 2);
  float logits[2] = {5, 5};
  const auto call = [&](std::int32_t r, const float* q, const float* g, const std::byte* k, std::int64_t n,
                        std::int64_t page, index_key_layout layout, float* out) {
    return index.score_keys(r, q, g, k, n, page, layout, out, serial_threads());
  };
  const auto inter = index_key_layout::interleaved;
  CHECK(call(2, queries.data(), gates.data(), keys.data(), 2, 1, inter, logits) == status::out_of_range);
  CHECK(call(-1, queries.data(), gates.data(), keys.data(), 2, 1, inter, logits) == status::out_of_range);
  CHECK(call(0, nullptr, gates.data(), keys.data(), 2, 1, inter, logits) == status::null_data);
  CHECK(call(0, queries.data(), nullptr, keys.data(), 2, 1, inter, logits) == status::null_data);
  CHECK(call(0, queries.data(), gates.data(), nullptr, 2, 1, inter, logits) == status::null_data);
  CHECK(call(0, queries.data(), gates.data(), keys.data(), 2, 1, inter, nullptr) == status::null_data);
  CHECK(call(0, queries.data(), gates.data(), keys.data(), -1, 1, inter, logits) == status::bad_argument);
  CHECK(call(0, queries.data(), gates.data(), keys.data(), 2, 0, inter, logits) == status::bad_argument);
  CHECK(call(0, queries.data(), gates.data(), keys.data(), 2, 1, static_cast<index_key_layout>(7), logits) ==
        status::bad_argument);
  CHECK(logits[0] == 5);
  CHECK(call(0, nullptr, nullptr, nullptr, 0, 1, inter, nullptr) == status::ok);
}
