// SPDX-License-Identifier: MIT
// How K and V are read.
#if defined(FLASHMEMORY_CPU_ATTEND_ELEMENTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHMEMORY_CPU_ATTEND_ELEMENTS_INL
#undef FLASHMEMORY_CPU_ATTEND_ELEMENTS_INL
#else
#define FLASHMEMORY_CPU_ATTEND_ELEMENTS_INL
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/cpu/attend/blocks.hpp>
#include <flashmemory/detail/convert.hpp>
#include <flashmemory/dtype.hpp>
#include <limits>
#include <type_traits>

#if HWY_HAVE_SCALABLE
#error \
    "The kernels keep arrays of vectors, which vectors of unknown length cannot form. Before Highway is included, \
define HWY_DISABLED_TARGETS as (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV); such machines use NEON."
#endif

HWY_BEFORE_NAMESPACE();
namespace flashmemory {
inline namespace v0 {
namespace cpu {
namespace attend {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using detail::to_float;

// How K, or V, is read. Such a policy is a plain struct with
//
//   interleaved       static constexpr bool: load() gives even and odd elements apart, not one half after the other
//   scaled            static constexpr bool: an entry's elements have a common factor, scale(kv_head, slot)
//   static bytes(dim) of one entry
//   static load(d, entry, i, a, b)   elements [i, i + 2 N) as floats, N being the lanes of d; i is a multiple of 2 N

template <class D>
inline constexpr int lanes = static_cast<int>(hn::MaxLanes(D()));

/// Loads 2 N elements as floats. The two vectors together hold them in an order of the kernel's own (bf16:
/// even ones, odd ones), which queries and sums share, so that widening needs no shuffle.
template <class D>
HWY_INLINE void load_pair(D d, const float* from, hn::Vec<D>& a, hn::Vec<D>& b) {
  a = hn::LoadU(d, from);
  b = hn::LoadU(d, from + lanes<D>);
}

template <class D>
HWY_INLINE void load_pair(D d, const float16* from, hn::Vec<D>& a, hn::Vec<D>& b) {
#if HWY_TARGET == HWY_SCALAR
  a = hn::Set(d, to_float(from[0]));
  b = hn::Set(d, to_float(from[1]));
#else
  const hn::Rebind<hwy::float16_t, D> half;
  const auto* bits = reinterpret_cast<const hwy::float16_t*>(from);
  a = hn::PromoteTo(d, hn::LoadU(half, bits));
  b = hn::PromoteTo(d, hn::LoadU(half, bits + lanes<D>));
#endif
}

template <class D>
HWY_INLINE void load_pair(D d, const bfloat16* from, hn::Vec<D>& a, hn::Vec<D>& b) {
#if HWY_TARGET == HWY_SCALAR
  a = hn::Set(d, to_float(from[0]));
  b = hn::Set(d, to_float(from[1]));
#else
  const hn::RebindToUnsigned<D> words;
  const hn::Repartition<std::uint16_t, D> halves;
  const auto bits = hn::BitCast(words, hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from)));
  a = hn::BitCast(d, hn::ShiftLeft<16>(bits));
  b = hn::BitCast(d, hn::And(bits, hn::Set(words, 0xffff0000u)));
#endif
}

/// Signed bytes.
template <class D>
HWY_INLINE void load_pair(D d, const std::int8_t* from, hn::Vec<D>& a, hn::Vec<D>& b) {
  const hn::Rebind<std::int8_t, D> bytes;
  const hn::RebindToSigned<D> words;
  a = hn::ConvertTo(d, hn::PromoteTo(words, hn::LoadU(bytes, from)));
  b = hn::ConvertTo(d, hn::PromoteTo(words, hn::LoadU(bytes, from + lanes<D>)));
}

/// Storage of one e4m3 number: sign, 4 bits of exponent, 3 of mantissa, no infinities, 0x7f and 0xff are NaN.
struct float8_e4m3 {
  std::uint8_t bits = 0;
};

template <class D>
HWY_INLINE hn::Vec<D> load_e4m3(D d, const std::uint8_t* from) {
  const hn::Rebind<std::uint8_t, D> bytes;
  const hn::RebindToUnsigned<D> words;
  const auto code = hn::PromoteTo(words, hn::LoadU(bytes, from));
  const auto magnitude = hn::And(code, hn::Set(words, 0x7fu));
  // The exponents' biases differ by 120; a multiplication brings subnormal numbers right too.
  const auto x = hn::Mul(hn::BitCast(d, hn::ShiftLeft<20>(magnitude)), hn::Set(d, 0x1p120f));
  const auto sign = hn::BitCast(d, hn::ShiftLeft<24>(hn::And(code, hn::Set(words, 0x80u))));
  const auto nan = hn::RebindMask(d, hn::Eq(magnitude, hn::Set(words, 0x7fu)));
  return hn::IfThenElse(nan, hn::Set(d, std::numeric_limits<float>::quiet_NaN()), hn::Or(x, sign));
}

/// Bytes of e4m3.
template <class D>
HWY_INLINE void load_pair(D d, const float8_e4m3* from, hn::Vec<D>& a, hn::Vec<D>& b) {
  a = load_e4m3(d, &from->bits);
  b = load_e4m3(d, &from->bits + lanes<D>);
}

/// Elements as they are: float, bfloat16 or float16.
template <class T>
struct plain {
  static constexpr bool interleaved = std::is_same_v<T, bfloat16>, scaled = false;
  static constexpr std::size_t bytes(int dim) { return std::size_t(dim) * sizeof(T); }
  template <class D>
  static HWY_INLINE void load(D d, const std::byte* entry, int i, hn::Vec<D>& a, hn::Vec<D>& b) {
    load_pair(d, reinterpret_cast<const T*>(entry) + i, a, b);
  }
};

/// One scale for all entries of a KV head.
struct head_scale {
  const float* scales = nullptr;  ///< [kv_heads]
  float operator()(std::int64_t head, std::int64_t) const { return scales[head]; }
};

/// A scale for each entry and KV head.
struct entry_scale {
  const float* scales = nullptr;
  std::int64_t head_stride = 0, slot_stride = 0;  ///< elements; slots as entry_block counts them
  float operator()(std::int64_t head, std::int64_t slot) const {
    return scales[head * head_stride + slot * slot_stride];
  }
};

/// Elements times a scale: T is float8_e4m3 or std::int8_t, Scale head_scale, entry_scale or an engine's own.
template <class T, class Scale>
struct scaled_elements {
  static constexpr bool interleaved = false, scaled = true;
  static constexpr std::size_t bytes(int dim) { return std::size_t(dim) * sizeof(T); }

  Scale factor;

  float scale(std::int64_t head, std::int64_t slot) const { return factor(head, slot); }
  template <class D>
  static HWY_INLINE void load(D d, const std::byte* entry, int i, hn::Vec<D>& a, hn::Vec<D>& b) {
    load_pair(d, reinterpret_cast<const T*>(entry) + i, a, b);
  }
};

/// Blocks of an f16 scale and 32 signed bytes, as GGML's q8_0; dims are multiples of 32.
struct q8_0 {
  static constexpr bool interleaved = false, scaled = false;
  static constexpr int block = 32, block_bytes = 34;
  static constexpr std::size_t bytes(int dim) { return std::size_t(dim / block * block_bytes); }
  template <class D>
  static HWY_INLINE void load(D d, const std::byte* entry, int i, hn::Vec<D>& a, hn::Vec<D>& b) {
    static_assert(block % (2 * lanes<D>) == 0, "two vectors are in one block");
    const std::byte* const at = entry + i / block * block_bytes;
    float16 scale;
    std::memcpy(&scale, at, sizeof scale);
    load_pair(d, reinterpret_cast<const std::int8_t*>(at + 2) + i % block, a, b);
    const auto factor = hn::Set(d, to_float(scale));
    a = hn::Mul(a, factor);
    b = hn::Mul(b, factor);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
}  // namespace cpu
}  // namespace v0
}  // namespace flashmemory
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
