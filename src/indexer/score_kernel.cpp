// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "src/indexer/kernels.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/indexer/score_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "src/indexer/block_dot-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

// A tile is decoded once and then read by every block of heads: [128][tile] floats, 16 KB, stay in L1.
inline constexpr std::size_t tile_keys = 32;
static_assert(tile_keys % column_block == 0, "");

struct alignas(64) key_tile {
  float values[index_key_dim][tile_keys];  // 2^-8 of the e4m3 values, transposed
  float scales[tile_keys];                 // NaN for a key that holds NaN
};

// Keys that lie at even distances.
struct key_run {
  const std::uint8_t* values;
  const std::uint8_t* scales;
  std::size_t value_stride;
  std::size_t scale_stride;
  std::size_t count;
};

// The keys from `first` on, up to `most` of them or the end of a planar page.
HWY_INLINE key_run run_at(const stored_keys& source, std::int64_t first, std::size_t most) {
  const auto* base = reinterpret_cast<const std::uint8_t*>(source.data);
  if (source.layout == index_key_layout::interleaved) {  // pages follow each other without a seam
    const std::uint8_t* at = base + static_cast<std::size_t>(first) * index_key_bytes;
    return {at, at + index_key_dim, index_key_bytes, index_key_bytes, most};
  }
  const auto page_keys = static_cast<std::size_t>(source.page_keys);
  const auto page = static_cast<std::size_t>(first) / page_keys;
  const auto at = static_cast<std::size_t>(first) % page_keys;
  const std::uint8_t* values = base + page * page_keys * index_key_bytes;
  return {values + at * index_key_dim, values + page_keys * index_key_dim + at * sizeof(float), index_key_dim,
          sizeof(float), std::min(most, page_keys - at)};
}

HWY_ALIGN constexpr std::uint8_t zero_row[index_key_dim] = {};

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE bool transpose_16(const std::uint8_t* const* rows, key_tile& tile, std::size_t first) {
  bool nan = false;
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < index_key_dim; ++j) {
      nan |= (rows[i][j] & 0x7f) == 0x7f;
      tile.values[j][first + i] = from_e4m3(rows[i][j]) * 0x1p-8f;
    }
  }
  return nan;
}
#else
// 16 keys: bytes [16][128] -> floats [128][tile_keys], columns first .. first + 16. Bytes are transposed in
// 16x16 blocks; a sign-extended e4m3 byte shifted left by 7 is the binary16 number 2^-8 times as large, zeros
// and subnormals included, once the copy of the sign in bit 14 is cleared.
// Returns whether there is a NaN among them.
HWY_INLINE bool transpose_16(const std::uint8_t* const* rows, key_tile& tile, std::size_t first) {
  const hn::CappedTag<std::uint8_t, 64> d8;
  using vec = hn::Vec<decltype(d8)>;
  constexpr std::size_t width = hn::MaxLanes(d8);
  HWY_ALIGN std::uint8_t turned[16][width];

  const float_tag df;
  const hn::Rebind<std::int8_t, float_tag> di8;
  const hn::Rebind<std::int16_t, float_tag> di16;
  const hn::Rebind<hwy::float16_t, float_tag> dh;

  const auto nan = hn::Set(d8, std::uint8_t{0x7f});
  auto largest = hn::Zero(d8);  // magnitude
  for (std::size_t offset = 0; offset < index_key_dim; offset += width) {
    vec a[16], b[16];
    HWY_UNROLL(16)
    for (int i = 0; i < 16; ++i) {
      a[i] = hn::LoadU(d8, rows[i] + offset);
      largest = hn::Max(largest, hn::And(a[i], nan));
    }
    // Each round pairs row i with row i + 8, which doubles the length of the runs that belong to one column.
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = hn::InterleaveLower(d8, a[i], a[i + 8]);
      b[2 * i + 1] = hn::InterleaveUpper(d8, a[i], a[i + 8]);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = hn::InterleaveLower(d8, b[i], b[i + 8]);
      a[2 * i + 1] = hn::InterleaveUpper(d8, b[i], b[i + 8]);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = hn::InterleaveLower(d8, a[i], a[i + 8]);
      b[2 * i + 1] = hn::InterleaveUpper(d8, a[i], a[i + 8]);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      hn::Store(hn::InterleaveLower(d8, b[i], b[i + 8]), d8, turned[2 * i]);
      hn::Store(hn::InterleaveUpper(d8, b[i], b[i + 8]), d8, turned[2 * i + 1]);
    }
    for (std::size_t block = 0; block < width; block += 16) {
      for (std::size_t i = 0; i < 16; ++i) {
        float* out = tile.values[offset + block + i] + first;
        for (std::size_t lane = 0; lane < 16; lane += float_lanes) {
          const auto bytes = hn::Load(di8, reinterpret_cast<const std::int8_t*>(turned[i] + block + lane));
          const auto half = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(di16, bytes)), hn::Set(di16, -0x4001));
          hn::Store(hn::PromoteTo(df, hn::BitCast(dh, half)), df, out + lane);
        }
      }
    }
  }
  return !hn::AllFalse(d8, hn::Eq(largest, nan));
}

#endif

HWY_INLINE bool has_nan(const std::uint8_t* row) {
  return std::any_of(row, row + index_key_dim, [](std::uint8_t bits) { return (bits & 0x7f) == 0x7f; });
}

HWY_INLINE void decode_tile(const stored_keys& source, std::int64_t first, std::size_t count,
                            key_tile& tile) {
  const std::uint8_t* rows[tile_keys];
  for (std::size_t done = 0; done < count;) {
    const key_run run = run_at(source, first + static_cast<std::int64_t>(done), count - done);
    for (std::size_t i = 0; i < run.count; ++i) {
      rows[done + i] = run.values + i * run.value_stride;
      std::memcpy(tile.scales + done + i, run.scales + i * run.scale_stride, sizeof(float));
    }
    done += run.count;
  }
  for (std::size_t i = count; i < tile_keys; ++i) {
    rows[i] = zero_row;
    tile.scales[i] = 0;
  }
  bool nan = false;
  for (std::size_t i = 0; i < tile_keys; i += 16) nan |= transpose_16(rows + i, tile, i);
  // Inf - Inf and NaN - NaN are NaN.
  const float_tag d;
  for (std::size_t i = 0; i < tile_keys; i += float_lanes) {
    const auto scale = hn::Load(d, tile.scales + i);
    hn::Store(hn::Add(scale, hn::Sub(scale, scale)), d, tile.scales + i);
  }
  if (HWY_UNLIKELY(nan)) {
    for (std::size_t i = 0; i < count; ++i) {
      if (has_nan(rows[i])) tile.scales[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

// Not Max(): what that makes of NaN differs among targets.
HWY_INLINE float_vec relu(float_vec x) { return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(float_tag())), x); }

void ScoreRange(const float* queries, const float* gates, std::int32_t heads, const stored_keys& keys,
                std::int64_t first, std::int64_t count, float offset, float* logits) {
  const float_tag d;
  key_tile tile;
  HWY_ALIGN float out[tile_keys];
  HWY_ALIGN float dots[row_block * column_block];
  for (std::int64_t done = 0; done < count; done += static_cast<std::int64_t>(tile_keys)) {
    const std::size_t here = static_cast<std::size_t>(std::min<std::int64_t>(tile_keys, count - done));
    decode_tile(keys, first + done, here, tile);
    for (std::size_t column = 0; column < here; column += column_block) {
      const auto scale0 = hn::Load(d, tile.scales + column);
      const auto scale1 = hn::Load(d, tile.scales + column + float_lanes);
      const auto sign0 = hn::And(scale0, hn::Set(d, -0.0f));
      const auto sign1 = hn::And(scale1, hn::Set(d, -0.0f));
      auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
      for_row_blocks(heads, [&](std::int32_t head, auto rows) {
        constexpr int n = decltype(rows)::value;
        block_dot<n, false>(queries + std::ptrdiff_t{head} * index_key_dim, index_key_dim,
                            &tile.values[0][column], tile_keys, index_key_dim, dots, column_block);
        for (int r = 0; r < n; ++r) {
          const auto gate = hn::Set(d, gates[head + r]);
          const float* row = dots + static_cast<std::size_t>(r) * column_block;
          // relu(q . (s k)) = |s| relu(sign(s) q . k), so |s| waits until the heads are summed up.
          sum0 = hn::MulAdd(gate, relu(hn::Xor(hn::Load(d, row), sign0)), sum0);
          sum1 = hn::MulAdd(gate, relu(hn::Xor(hn::Load(d, row + float_lanes), sign1)), sum1);
        }
      });
      // 2^8 undoes what transpose_16() left in the values; on its own, as 2^8 |s| may not be finite.
      const auto shift = hn::Set(d, 256.0f);
      const auto start = hn::Set(d, offset);
      hn::Store(hn::MulAdd(hn::Mul(sum0, shift), hn::Abs(scale0), start), d, out + column);
      hn::Store(hn::MulAdd(hn::Mul(sum1, shift), hn::Abs(scale1), start), d, out + column + float_lanes);
    }
    std::memcpy(logits + done, out, here * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashmemory {
inline namespace v0 {
namespace detail {

HWY_EXPORT(ScoreRange);

void score_keys_range(const float* queries, const float* gates, std::int32_t heads, const stored_keys& keys,
                      std::int64_t first, std::int64_t count, float offset, float* logits) noexcept {
  HWY_DYNAMIC_DISPATCH(ScoreRange)(queries, gates, heads, keys, first, count, offset, logits);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif
