// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/batch.hpp>
#include <flashmemory/stream.hpp>
#include <flashmemory/view.hpp>

#include "src/c/faults.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {

/// Where a call's tensors have to lie.
enum class place { host, device };

inline bool lies_on(const fm_tensor& t, place where) noexcept {
  const std::int32_t at = t.device.device_type;
  return where == place::host ? at == FM_CPU || at == FM_CUDA_HOST : at == FM_CUDA || at == FM_CUDA_MANAGED;
}

/// Element bytes of a tensor that some call takes; 0 of others.
inline std::uint64_t element_bytes(const fm_tensor& t) noexcept {
  return t.dtype.lanes == 1 && t.dtype.bits % 8 == 0 ? t.dtype.bits / 8u : 0;
}

/// Device, rank, extents, alignment: what holds for every element type.
inline fm_status check_tensor(const fm_tensor* t, std::int32_t rank, place where, const char* name) noexcept {
  if (!t) return refuse(status::null_data, name);
  if (!lies_on(*t, where)) {
    char text[200];
    std::snprintf(text, sizeof(text), "%s: lies on DLPack device %d, not in the memory of its store (%s)",
                  name, int(t->device.device_type), where == place::host ? "host" : "CUDA device");
    return note(FM_BAD_ARGUMENT, text);
  }
  if (t->ndim != rank || !t->shape) return refuse(status::bad_shape, name, rank, t->ndim);
  std::int64_t elements = 1;
  for (std::int32_t d = 0; d < rank; ++d) {
    if (t->shape[d] < 0 || t->shape[d] > (std::int64_t{1} << 40))
      return refuse(status::bad_shape, name, 0, t->shape[d]);
    if (__builtin_mul_overflow(elements, t->shape[d], &elements))
      return refuse(status::bad_shape, name, -1, t->shape[d]);
  }
  if (elements > 0 && !t->data) return refuse(status::null_data, name);
  const std::uint64_t bytes = element_bytes(*t);
  const auto at = reinterpret_cast<std::uintptr_t>(t->data) + t->byte_offset;
  if (bytes > 0 && at % bytes != 0) {
    char text[160];
    std::snprintf(text, sizeof(text), "%s: is not aligned to its %d-byte elements", name, int(bytes));
    return note(FM_BAD_ARGUMENT, text);
  }
  return FM_OK;
}

template <int Rank>
void copy_extents(const fm_tensor& t, std::int64_t (&shape)[Rank], std::int64_t (&stride)[Rank]) noexcept {
  std::int64_t step = 1;
  for (int d = Rank - 1; d >= 0; --d) {
    shape[d] = t.shape[d];
    stride[d] = t.strides ? t.strides[d] : step;
    step *= t.shape[d];
  }
}

/// As a tensor of f32, bf16 or f16.
template <int Rank>
fm_status floating(const fm_tensor* t, place where, const char* name, tensor<Rank>* out) noexcept {
  if (const fm_status code = check_tensor(t, Rank, where, name); code != FM_OK) return code;
  if (t->dtype.lanes == 1 && t->dtype.code == FM_FLOAT && t->dtype.bits == 32)
    out->type = dtype::f32;
  else if (t->dtype.lanes == 1 && t->dtype.code == FM_FLOAT && t->dtype.bits == 16)
    out->type = dtype::f16;
  else if (t->dtype.lanes == 1 && t->dtype.code == FM_BFLOAT && t->dtype.bits == 16)
    out->type = dtype::bf16;
  else
    return refuse(status::bad_dtype, name, -1, t->dtype.code * 1000 + t->dtype.bits);
  out->data = static_cast<char*>(t->data) + t->byte_offset;
  copy_extents(*t, out->shape, out->stride);
  return FM_OK;
}

/// As a view of f32.
template <int Rank>
fm_status floats(const fm_tensor* t, place where, const char* name, view<float, Rank>* out) noexcept {
  tensor<Rank> any;
  if (const fm_status code = floating(t, where, name, &any); code != FM_OK) return code;
  if (any.type != dtype::f32) return refuse(status::bad_dtype, name, int(dtype::f32), int(any.type));
  out->data = static_cast<float*>(any.data);
  for (int d = 0; d < Rank; ++d) out->shape[d] = any.shape[d], out->stride[d] = any.stride[d];
  return FM_OK;
}

/// As bytes: unsigned or signed ones, or e4m3.
template <int Rank>
fm_status bytes(const fm_tensor* t, place where, const char* name,
                view<const std::byte, Rank>* out) noexcept {
  if (const fm_status code = check_tensor(t, Rank, where, name); code != FM_OK) return code;
  const bool one_byte =
      t->dtype.lanes == 1 && t->dtype.bits == 8 &&
      (t->dtype.code == FM_UINT || t->dtype.code == FM_INT || t->dtype.code == FM_FLOAT8_E4M3FN);
  if (!one_byte) return refuse(status::bad_dtype, name, -1, t->dtype.code * 1000 + t->dtype.bits);
  out->data = static_cast<const std::byte*>(t->data) + t->byte_offset;
  copy_extents(*t, out->shape, out->stride);
  return FM_OK;
}

// A batch is read where it lies.
static_assert(sizeof(fm_sequence) == sizeof(sequence_handle) && sizeof(fm_batch_item) == sizeof(batch_item));
static_assert(offsetof(fm_batch_item, position) == offsetof(batch_item, position) &&
              offsetof(fm_batch_item, num_tokens) == offsetof(batch_item, num_tokens) &&
              offsetof(fm_batch_item, phase) == offsetof(batch_item, phase));
static_assert(int(item_phase::prompt_end) == FM_PROMPT_END);

inline fm_status items_of(const fm_batch_item* items, std::int64_t count, batch* out) noexcept {
  if (count < 0) return refuse(status::bad_shape, "num_items", 0, count);
  if (count > 0 && !items) return refuse(status::null_data, "items");
  *out = batch(reinterpret_cast<const batch_item*>(items), count);
  return FM_OK;
}

/// A stream by its value: none of a store in host memory, one of a store on a device.
inline fm_status stream_of(void* stream, place where, stream_ref* out) noexcept {
  if (where == place::host) {
    if (stream) return refuse(status::unsupported, "stream: the store lies in host memory, which has none");
    return FM_OK;
  }
  if (!stream)
    return refuse(status::bad_argument,
                  "stream: null; CUDA's default stream is asked for by name (0x1 or 0x2)");
  *out = stream_ref(static_cast<CUstream_st*>(stream));
  return FM_OK;
}

inline sequence_handle handle_of(fm_sequence s) noexcept { return {s.index, s.generation}; }

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
