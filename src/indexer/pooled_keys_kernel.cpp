// SPDX-License-Identifier: MIT
#include "src/indexer/pooled_keys_kernel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/indexer/index_key.hpp>
#include <limits>

#include "src/indexer/e2m1.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/indexer/pooled_keys_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using float_tag = hn::CappedTag<float, 16>;
using float_vec = hn::Vec<float_tag>;
constexpr std::int64_t lanes = static_cast<std::int64_t>(hn::MaxLanes(float_tag()));

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();
constexpr float nothing = -std::numeric_limits<float>::infinity();

// Keys decoded at a time, [tile_keys][stride] floats, and the block of queries and keys whose products are in registers.
constexpr std::int64_t tile_keys = 16, row_group = 64;
constexpr int block_rows = 4;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
constexpr int block_keys = 2;
#else
constexpr int block_keys = 4;
#endif

struct key_place {
  const std::uint8_t* values;
  const std::uint8_t* scales;
};

HWY_INLINE key_place place_of(const pooled_key_pages& keys, std::int64_t key) {
  const auto* const base = reinterpret_cast<const std::uint8_t*>(keys.data);
  const std::int64_t value_bytes = keys.shape.value_bytes(), scale_bytes = keys.shape.scale_bytes();
  if (keys.shape.layout == index_key_layout::interleaved) {
    const std::uint8_t* const at = base + key * keys.shape.bytes();
    return {at, at + value_bytes};
  }
  const std::int64_t in_page = key % keys.page_keys;
  const std::uint8_t* const page = base + (key - in_page) * keys.shape.bytes();
  return {page + in_page * value_bytes, page + keys.page_keys * value_bytes + in_page * scale_bytes};
}

HWY_INLINE float scale_at(const std::uint8_t* scales) {
  float scale;
  std::memcpy(&scale, scales, sizeof scale);
  return std::isfinite(scale) ? scale : nan_value;
}

/// Whole vectors of values through `decode(at)`, which reads elements [at, at + lanes); the rest by the plain decoder.
template <class Decode>
HWY_INLINE std::int64_t decode_vectors(std::int64_t dim, float* out, const Decode& decode) {
  const float_tag d;
  std::int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) hn::Store(decode(i), d, out + i);
  return i;
}

// One key as floats. What vectors leave over is the plain decoder's.
HWY_INLINE void decode_key(const pooled_key_pages& keys, std::int64_t key, float* HWY_RESTRICT out) {
  const float_tag d HWY_MAYBE_UNUSED;
  const std::int64_t dim = keys.shape.dim;
  const key_place at = place_of(keys, key);
#if HWY_TARGET != HWY_SCALAR
  const hn::Rebind<std::int8_t, float_tag> d8;
  const hn::Rebind<std::int32_t, float_tag> d32;
  const auto* const bytes = reinterpret_cast<const std::int8_t*>(at.values);
#endif
  switch (keys.shape.type) {
    case index_key_type::int8: {
      const float scale = scale_at(at.scales);
      std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
      i = decode_vectors(dim, out, [&](std::int64_t k) {
        const auto whole = hn::PromoteTo(d32, hn::LoadU(d8, bytes + k));
        return hn::Mul(hn::ConvertTo(d, whole), hn::Set(d, scale));
      });
#endif
      for (; i < dim; ++i) out[i] = scale * static_cast<float>(static_cast<std::int8_t>(at.values[i]));
      return;
    }
    case index_key_type::e4m3: {
      const float scale = scale_at(at.scales);
      std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
      // Shifted left by 7, with the copy of the sign in bit 14 cleared, a byte is the binary16 number 2^-8 times as large.
      const hn::Rebind<std::int16_t, float_tag> d16;
      const hn::Rebind<hwy::float16_t, float_tag> dh;
      const auto most = hn::Set(d32, 0x7f);
      i = decode_vectors(dim, out, [&](std::int64_t k) {
        const auto codes = hn::LoadU(d8, bytes + k);
        const auto half = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(d16, codes)), hn::Set(d16, -0x4001));
        const auto value =
            hn::Mul(hn::Mul(hn::PromoteTo(d, hn::BitCast(dh, half)), hn::Set(d, 256.0f)), hn::Set(d, scale));
        const auto nan = hn::Eq(hn::And(hn::PromoteTo(d32, codes), most), most);
        return hn::IfThenElse(hn::RebindMask(d, nan), hn::Set(d, nan_value), value);
      });
#endif
      for (; i < dim; ++i) out[i] = scale * from_e4m3(at.values[i]);
      return;
    }
    case index_key_type::bf16: {
      for (std::int64_t i = 0; i < dim; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, at.values + 2 * i, sizeof bits);
        out[i] = to_float(bfloat16{bits});
      }
      return;
    }
    case index_key_type::f16: {
      for (std::int64_t i = 0; i < dim; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, at.values + 2 * i, sizeof bits);
        out[i] = to_float(float16{bits});
      }
      return;
    }
    case index_key_type::mxfp4: {
      for (std::int64_t from = 0; from < dim; from += 32) {
        const float unit = 0.5f * mx_scale(at.scales[from / 32]);
        const std::uint8_t* const pairs = at.values + from / 2;
        HWY_ALIGN std::int8_t whole[32];  // twice the values
#if HWY_TARGET == HWY_SCALAR
        for (int i = 0; i < 32; ++i) {
          const int code = i % 2 == 0 ? pairs[i / 2] & 0xf : pairs[i / 2] >> 4;
          whole[i] = static_cast<std::int8_t>((code & 8) != 0 ? -e2m1_doubled[code & 7] : e2m1_doubled[code]);
        }
        for (int i = 0; i < 32; ++i) out[from + i] = unit * static_cast<float>(whole[i]);
#else
        const hn::FixedTag<std::uint8_t, 16> du8;
        const hn::FixedTag<std::int8_t, 16> di8;
        HWY_ALIGN static constexpr std::int8_t table[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                            0, -1, -2, -3, -4, -6, -8, -12};
        const auto codes = hn::LoadU(du8, pairs);
        const auto values = hn::Load(di8, table);
        const auto low = hn::BitCast(di8, hn::And(codes, hn::Set(du8, 0xf)));
        const auto high = hn::BitCast(
            di8,
            hn::And(hn::BitCast(du8, hn::ShiftRight<4>(hn::BitCast(hn::FixedTag<std::uint16_t, 8>(), codes))),
                    hn::Set(du8, 0xf)));
        const auto even = hn::TableLookupBytes(values, low), odd = hn::TableLookupBytes(values, high);
        hn::Store(hn::InterleaveLower(di8, even, odd), di8, whole);
        hn::Store(hn::InterleaveUpper(di8, even, odd), di8, whole + 16);
        for (std::int64_t i = 0; i < 32; i += lanes) {
          const auto wide = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, whole + i)));
          hn::Store(hn::Mul(wide, hn::Set(d, unit)), d, out + from + i);
        }
#endif
      }
      return;
    }
  }
}

// Products of kRows queries and kKeys keys. Each runs over the dim in order and is summed up alone, so that none depends on
// the others of its block.
template <int kRows, int kKeys>
HWY_INLINE void block_products(const float* HWY_RESTRICT q, const float* HWY_RESTRICT keys,
                               std::int64_t stride, float* HWY_RESTRICT out) {
  const float_tag d;
  float_vec sums[kRows][kKeys];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int k = 0; k < kKeys; ++k) sums[r][k] = hn::Zero(d);
  }
  for (std::int64_t i = 0; i < stride; i += lanes) {
    float_vec key[kKeys];
    HWY_UNROLL(4)
    for (int k = 0; k < kKeys; ++k) key[k] = hn::Load(d, keys + k * stride + i);
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const auto query = hn::Load(d, q + r * stride + i);
      HWY_UNROLL(4)
      for (int k = 0; k < kKeys; ++k) sums[r][k] = hn::MulAdd(query, key[k], sums[r][k]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kKeys; ++k) out[r * tile_keys + k] = hn::GetLane(hn::SumOfLanes(d, sums[r][k]));
}

template <int kRows>
HWY_INLINE void row_products(const float* q, const float* keys, std::int64_t count, std::int64_t stride,
                             float* out) {
  std::int64_t k = 0;
  for (; k + block_keys <= count; k += block_keys)
    block_products<kRows, block_keys>(q, keys + k * stride, stride, out + k);
  for (; k < count; ++k) block_products<kRows, 1>(q, keys + k * stride, stride, out + k);
}

/// A sum of exponentials as largest exponent and sum relative to it.
struct log_sum {
  float largest = nothing, sum = 0;

  // `x` has room for whole vectors beyond `count`.
  HWY_INLINE void add(float* x, std::int64_t count) {
    const float_tag d;
    for (std::int64_t i = count; i % lanes != 0; ++i) x[i] = nothing;
    auto best = hn::Set(d, largest);
    auto bad = hn::Lt(hn::Zero(d), hn::Zero(d));
    for (std::int64_t i = 0; i < count; i += lanes) {
      const auto v = hn::LoadU(d, x + i);
      bad = hn::Or(bad, hn::Not(hn::Le(v, hn::Set(d, std::numeric_limits<float>::max()))));
      best = hn::Max(best, v);
    }
    if (HWY_UNLIKELY(!hn::AllFalse(d, bad))) sum = nan_value;
    const float most = hn::GetLane(hn::MaxOfLanes(d, best));
    if (std::isnan(sum) || most == nothing) return;
    auto total = hn::Zero(d);
    for (std::int64_t i = 0; i < count; i += lanes)
      total = hn::Add(total, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, most))));
    if (sum > 0) sum *= std::exp(largest - most);
    sum += hn::GetLane(hn::SumOfLanes(d, total));
    largest = most;
  }
  HWY_INLINE float value() const {
    return sum > 0 ? largest + std::log(sum) : std::isnan(sum) ? sum : nothing;
  }
};

void ChunkLogits(const float* queries, std::int64_t rows, const pooled_key_pages& keys, std::int64_t first,
                 std::int64_t count, float* out, std::int64_t out_stride) {
  const std::int64_t stride = pooled_stride(keys.shape.dim), page = keys.page_keys;
  HWY_ALIGN float tile[tile_keys * max_pooled_dim];
  HWY_ALIGN float products[row_group * tile_keys];
  HWY_ALIGN float chunk_products[tile_keys];
  log_sum sums[row_group];
  // A tile has keys of one chunk, or all keys of several.
  const std::int64_t tile_chunks = std::max<std::int64_t>(1, tile_keys / page);
  for (std::int64_t i = 0; i < tile_keys; ++i)
    for (std::int64_t pad = keys.shape.dim; pad < stride; ++pad) tile[i * stride + pad] = 0;
  for (std::int64_t row = 0; row < rows; row += row_group) {
    const std::int64_t group = std::min(row_group, rows - row);
    for (std::int64_t c = 0; c < count; c += tile_chunks) {
      const std::int64_t chunks = std::min(tile_chunks, count - c), wanted = chunks * page;
      for (std::int64_t r = 0; r < group; ++r) sums[r] = log_sum();
      for (std::int64_t from = 0; from < wanted; from += tile_keys) {
        const std::int64_t here = std::min(tile_keys, wanted - from);
        for (std::int64_t k = 0; k < here; ++k)
          decode_key(keys, (first + c) * page + from + k, tile + k * stride);
        const float* const q = queries + row * stride;
        std::int64_t r = 0;
        for (; r + block_rows <= group; r += block_rows)
          row_products<block_rows>(q + r * stride, tile, here, stride, products + r * tile_keys);
        for (; r < group; ++r) row_products<1>(q + r * stride, tile, here, stride, products + r * tile_keys);
        if (chunks == 1) {
          for (r = 0; r < group; ++r) sums[r].add(products + r * tile_keys, here);
          continue;
        }
        for (r = 0; r < group; ++r)
          for (std::int64_t i = 0; i < chunks; ++i) {
            log_sum sum;
            std::memcpy(chunk_products, products + r * tile_keys + i * page,
                        std::size_t(page) * sizeof(float));
            sum.add(chunk_products, page);
            out[(row + r) * out_stride + c + i] = sum.value();
          }
      }
      if (chunks == 1)
        for (std::int64_t r = 0; r < group; ++r) out[(row + r) * out_stride + c] = sums[r].value();
    }
  }
}

float RowMasses(float* row, std::int64_t count, std::int64_t begin, std::int64_t end) {
  const float_tag d;
  float largest = nothing;
  for (std::int64_t c = begin; c < end; ++c)
    if (row[c] > largest) largest = row[c];
  if (largest == nothing) {
    std::fill_n(row, count, nan_value);
    return nan_value;
  }
  const auto exponential = [&](auto x) {
    const auto e = hn::Exp(d, hn::Min(hn::Sub(x, hn::Set(d, largest)), hn::Set(d, 80.0f)));
    return hn::IfThenElse(hn::IsNaN(x), x, e);
  };
  std::int64_t c = 0;
  for (; c + lanes <= count; c += lanes) hn::StoreU(exponential(hn::LoadU(d, row + c)), d, row + c);
  if (c < count) {
    HWY_ALIGN float rest[static_cast<std::size_t>(lanes)] = {};
    std::copy_n(row + c, count - c, rest);
    hn::Store(exponential(hn::Load(d, rest)), d, rest);
    std::copy_n(rest, count - c, row + c);
  }
  double total = 0;
  for (c = begin; c < end; ++c)
    if (!std::isnan(row[c])) total += static_cast<double>(row[c]);
  return static_cast<float>(total);
}

void FoldRow(const float* row, float total, std::int64_t count, float* best) {
  const float_tag d;
  const auto by = hn::Set(d, total);
  std::int64_t c = 0;
  for (; c + lanes <= count; c += lanes) {
    const auto mass = hn::Div(hn::LoadU(d, row + c), by), old = hn::LoadU(d, best + c);
    // The new one where it is larger or NaN, unless the old one is NaN.
    const auto keep = hn::Or(hn::Le(mass, old), hn::IsNaN(old));
    hn::StoreU(hn::IfThenElse(keep, old, mass), d, best + c);
  }
  for (; c < count; ++c) {
    const float mass = row[c] / total;
    if (!(mass <= best[c]) && !std::isnan(best[c])) best[c] = mass;
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

HWY_EXPORT(ChunkLogits);
HWY_EXPORT(RowMasses);
HWY_EXPORT(FoldRow);

void pooled_chunk_logits(const float* queries, std::int64_t rows, const pooled_key_pages& keys,
                         std::int64_t first, std::int64_t count, float* out, std::int64_t stride) noexcept {
  HWY_DYNAMIC_DISPATCH(ChunkLogits)(queries, rows, keys, first, count, out, stride);
}

float pooled_row_masses(float* row, std::int64_t count, std::int64_t begin, std::int64_t end) noexcept {
  return HWY_DYNAMIC_DISPATCH(RowMasses)(row, count, begin, end);
}

void pooled_fold_row(const float* row, float total, std::int64_t count, float* best) noexcept {
  HWY_DYNAMIC_DISPATCH(FoldRow)(row, total, count, best);
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
#endif
