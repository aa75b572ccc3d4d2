// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/dtype.hpp>
#include <type_traits>

namespace flashmemory {
inline namespace v0 {

/// Non-owning view of `Rank` strided dimensions; strides count elements, not bytes. Trivially copyable.
/// The memory must outlive the call it is passed to and, unless a call says otherwise, nothing longer.
template <class T, int Rank>
struct view {
  T* data = nullptr;
  std::int64_t shape[static_cast<std::size_t>(Rank)] = {};
  std::int64_t stride[static_cast<std::size_t>(Rank)] = {};

  constexpr view() noexcept = default;

  /// Row-major, contiguous.
  template <class... Extent, class = std::enable_if_t<sizeof...(Extent) == Rank>>
  constexpr explicit view(T* pointer, Extent... extents) noexcept
      : data(pointer), shape{static_cast<std::int64_t>(extents)...} {
    std::int64_t step = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      stride[d] = step;
      step *= shape[d];
    }
  }

  /// view<T> converts to view<const T>.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>>>
  constexpr view(const view<U, Rank>& other) noexcept : data(other.data) {
    for (int d = 0; d < Rank; ++d) {
      shape[d] = other.shape[d];
      stride[d] = other.stride[d];
    }
  }

  /// Number of elements.
  constexpr std::int64_t size() const noexcept {
    std::int64_t n = 1;
    for (int d = 0; d < Rank; ++d) n *= shape[d];
    return n;
  }

  /// The element at one index per dimension, unchecked.
  template <class... Index, class = std::enable_if_t<sizeof...(Index) == Rank>>
  constexpr T& operator()(Index... index) const noexcept {
    const std::int64_t at[] = {static_cast<std::int64_t>(index)...};
    std::int64_t offset = 0;
    for (int d = 0; d < Rank; ++d) offset += at[d] * stride[d];
    return data[offset];
  }
};

/// A view whose element type is known at run time: what an engine hands over as keys, values, queries and
/// hidden states. Strides count elements. `const_tensor` is read, `tensor` is written.
template <class Void, int Rank>
struct basic_tensor {
  Void* data = nullptr;
  dtype type = dtype::f32;
  std::int64_t shape[static_cast<std::size_t>(Rank)] = {};
  std::int64_t stride[static_cast<std::size_t>(Rank)] = {};

  constexpr basic_tensor() noexcept = default;

  /// Row-major, contiguous.
  template <class... Extent, class = std::enable_if_t<sizeof...(Extent) == Rank>>
  constexpr basic_tensor(Void* pointer, dtype element, Extent... extents) noexcept
      : data(pointer), type(element), shape{static_cast<std::int64_t>(extents)...} {
    std::int64_t step = 1;
    for (int d = Rank - 1; d >= 0; --d) {
      stride[d] = step;
      step *= shape[d];
    }
  }

  /// From a typed view.
  template <class T, class = std::enable_if_t<std::is_convertible_v<T*, Void*>>>
  constexpr basic_tensor(const view<T, Rank>& v) noexcept
      : data(v.data), type(detail::dtype_of<std::remove_const_t<T>>::value) {
    for (int d = 0; d < Rank; ++d) {
      shape[d] = v.shape[d];
      stride[d] = v.stride[d];
    }
  }

  /// `tensor` converts to `const_tensor`.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, Void> && !std::is_same_v<U, Void>>,
            class = void>
  constexpr basic_tensor(const basic_tensor<U, Rank>& other) noexcept : data(other.data), type(other.type) {
    for (int d = 0; d < Rank; ++d) {
      shape[d] = other.shape[d];
      stride[d] = other.stride[d];
    }
  }
};

/// A tensor that is written.
template <int Rank>
using tensor = basic_tensor<void, Rank>;
/// A tensor that is read.
template <int Rank>
using const_tensor = basic_tensor<const void, Rank>;

/// Scratch memory owned by the caller, aligned at least as operator new aligns. Its contents mean nothing between calls,
/// in every call of the library and on every backend: calls of different kinds and shapes may use one in turn, and what
/// has to last from one call to the next has a field of its own (`counters`).
struct workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

}  // namespace v0
}  // namespace flashmemory
