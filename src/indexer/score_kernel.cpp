// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "indexer/kernels.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "indexer/score_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "indexer/block_dot-inl.hpp"

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

// Where key n lies; moves on one key at a time.
class key_cursor {
 public:
  key_cursor(const key_source& source, std::int64_t first)
      : source_(source), page_(first / source.page_keys), at_(first % source.page_keys) {}

  const std::uint8_t* values() const {
    return page() + static_cast<std::size_t>(at_) * (planar() ? index_key_dim : index_key_bytes);
  }

  float scale() const {
    float value;
    const std::uint8_t* from = planar()
                                   ? page() + static_cast<std::size_t>(source_.page_keys) * index_key_dim +
                                         static_cast<std::size_t>(at_) * sizeof value
                                   : values() + index_key_dim;
    std::memcpy(&value, from, sizeof value);
    return value;
  }

  void next() {
    if (++at_ == source_.page_keys) {
      at_ = 0;
      ++page_;
    }
  }

 private:
  bool planar() const { return source_.layout == key_layout::planar; }
  const std::uint8_t* page() const {
    return reinterpret_cast<const std::uint8_t*>(source_.data) +
           static_cast<std::size_t>(page_) * static_cast<std::size_t>(source_.page_keys) * index_key_bytes;
  }

  const key_source& source_;
  std::int64_t page_;
  std::int64_t at_;
};

HWY_ALIGN constexpr std::uint8_t zero_row[index_key_dim] = {};

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void transpose_16(const std::uint8_t* const* rows, key_tile& tile, std::size_t first) {
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < index_key_dim; ++j) {
      tile.values[j][first + i] = from_e4m3(rows[i][j]) * 0x1p-8f;
    }
  }
}
#else
// 16 keys: bytes [16][128] -> floats [128][tile_keys], columns first .. first + 16. Bytes are transposed in
// 16x16 blocks; a sign-extended e4m3 byte shifted left by 7 is the binary16 number 2^-8 times as large, zeros
// and subnormals included, once the copy of the sign in bit 14 is cleared.
HWY_INLINE void transpose_16(const std::uint8_t* const* rows, key_tile& tile, std::size_t first) {
  const hn::CappedTag<std::uint8_t, 64> d8;
  const hn::Repartition<std::uint16_t, decltype(d8)> d16;
  const hn::Repartition<std::uint32_t, decltype(d8)> d32;
  const hn::Repartition<std::uint64_t, decltype(d8)> d64;
  using vec = hn::Vec<decltype(d8)>;
  constexpr std::size_t width = hn::MaxLanes(d8);
  HWY_ALIGN std::uint8_t turned[16][width];

  const float_tag df;
  const hn::Rebind<std::int8_t, float_tag> di8;
  const hn::Rebind<std::int16_t, float_tag> di16;
  const hn::Rebind<hwy::float16_t, float_tag> dh;

  for (std::size_t offset = 0; offset < index_key_dim; offset += width) {
    vec a[16], b[16];
    HWY_UNROLL(16)
    for (int i = 0; i < 16; ++i) a[i] = hn::LoadU(d8, rows[i] + offset);
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
}

#endif

HWY_INLINE bool has_nan(const std::uint8_t* row) {
  const hn::CappedTag<std::uint8_t, 64> d8;
  const auto magnitude = hn::Set(d8, std::uint8_t{0x7f});
  auto found = hn::MaskFromVec(hn::Zero(d8));
  for (std::size_t i = 0; i < index_key_dim; i += hn::MaxLanes(d8)) {
    found = hn::Or(found, hn::Eq(hn::And(hn::LoadU(d8, row + i), magnitude), magnitude));
  }
  return !hn::AllFalse(d8, found);
}

HWY_INLINE void decode_tile(key_cursor& cursor, std::size_t count, key_tile& tile) {
  const std::uint8_t* rows[tile_keys];
  for (std::size_t i = 0; i < tile_keys; ++i) {
    rows[i] = zero_row;
    tile.scales[i] = 0;
    if (i >= count) continue;
    rows[i] = cursor.values();
    const float scale = cursor.scale();
    tile.scales[i] =
        std::isfinite(scale) && !has_nan(rows[i]) ? scale : std::numeric_limits<float>::quiet_NaN();
    cursor.next();
  }
  for (std::size_t i = 0; i < tile_keys; i += 16) transpose_16(rows + i, tile, i);
}

void ScoreRange(const float* queries, const float* gates, std::int32_t heads, const key_source& keys,
                std::int64_t first, std::int64_t count, float offset, float* logits) {
  const float_tag d;
  key_tile tile;
  HWY_ALIGN float out[tile_keys];
  key_cursor cursor(keys, first);
  for (std::int64_t done = 0; done < count; done += static_cast<std::int64_t>(tile_keys)) {
    const std::size_t here = static_cast<std::size_t>(std::min<std::int64_t>(tile_keys, count - done));
    decode_tile(cursor, here, tile);
    for (std::size_t column = 0; column < here; column += column_block) {
      float_vec sum[vector_block], scale[vector_block], sign[vector_block];
      for (int v = 0; v < vector_block; ++v) {
        scale[v] = hn::Load(d, tile.scales + column + static_cast<std::size_t>(v) * float_lanes);
        sign[v] = hn::And(scale[v], hn::Set(d, -0.0f));
        sum[v] = hn::Zero(d);
      }
      for_row_blocks(heads, [&](std::int32_t head, auto rows) {
        constexpr int n = decltype(rows)::value;
        float_vec acc[n][vector_block];
        HWY_UNROLL(8)
        for (int r = 0; r < n; ++r) acc[r][0] = acc[r][1] = hn::Zero(d);
        block_dot<n>(queries + std::ptrdiff_t{head} * index_key_dim, index_key_dim, &tile.values[0][column],
                     tile_keys, index_key_dim, acc);
        HWY_UNROLL(8)
        for (int r = 0; r < n; ++r) {
          const auto gate = hn::Set(d, gates[head + r]);
          HWY_UNROLL(2)
          for (int v = 0; v < vector_block; ++v) {
            // relu(q . (s k)) = |s| relu(sign(s) q . k), so |s| waits until the heads are summed up. Not
            // Max(): what that makes of NaN differs among targets.
            const auto dot = hn::Xor(acc[r][v], sign[v]);
            sum[v] = hn::MulAdd(gate, hn::IfThenZeroElse(hn::Lt(dot, hn::Zero(d)), dot), sum[v]);
          }
        }
      });
      for (int v = 0; v < vector_block; ++v) {
        const auto magnitude = hn::Mul(hn::Mul(sum[v], hn::Set(d, 256.0f)), hn::Abs(scale[v]));
        hn::Store(hn::Add(magnitude, hn::Set(d, offset)), d,
                  out + column + static_cast<std::size_t>(v) * float_lanes);
      }
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

void score_keys_range(const float* queries, const float* gates, std::int32_t heads, const key_source& keys,
                      std::int64_t first, std::int64_t count, float offset, float* logits) noexcept {
  HWY_DYNAMIC_DISPATCH(ScoreRange)(queries, gates, heads, keys, first, count, offset, logits);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif
