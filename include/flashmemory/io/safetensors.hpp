// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <flashmemory/config.hpp>
#include <flashmemory/error.hpp>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flashmemory {
inline namespace v0 {

namespace detail {
struct safetensors_access;
}

/// Element types that a safetensors file may name.
enum class tensor_type : std::int32_t {
  boolean,
  u8,
  i8,
  f8_e4m3,
  f8_e5m2,
  u16,
  i16,
  f16,
  bf16,
  u32,
  i32,
  f32,
  u64,
  i64,
  f64,
  other,  ///< one that this library does not read (F8_E8M0, F4, C64, ...): its tensors stand in the file, and that is all
};

/// Bytes of one element; 0 for `other`, whose elements need not be whole bytes.
FLASHMEMORY_API std::size_t size_of(tensor_type type) noexcept;

/// The name in the file, e.g. "BF16".
FLASHMEMORY_API const char* to_string(tensor_type type) noexcept;

/// One tensor of an open file; `data` points into its image.
struct tensor_entry {
  std::string name;
  tensor_type type = tensor_type::f32;
  std::vector<std::int64_t> shape;  ///< empty for a scalar
  const std::byte* data = nullptr;  ///< little-endian, row-major; may be unaligned
  std::size_t bytes = 0;
  std::string type_name;  ///< as an open file spells it; empty = to_string(type)

  /// Product of the extents; 1 for a scalar.
  FLASHMEMORY_API std::int64_t elements() const noexcept;

  /// type_name, or what stands for it, for messages.
  FLASHMEMORY_API const char* type_text() const noexcept;
};

/// A safetensors file, read into memory as a whole, so that nobody who shortens or changes it later can do harm.
/// Everything is checked when it is opened: header length and JSON, types, shapes that match byte counts without
/// overflow, offsets in range, ordered, without holes or overlaps. A type that is not read makes its tensors useless,
/// not the file.
class FLASHMEMORY_API safetensors_file {
 public:
  /// \throws io_failure if it cannot be opened or changes while it is read; format_error naming the file and the
  ///     tensor or field
  explicit safetensors_file(const std::string& path);

  /// Parses a file image in memory, which must outlive the object. `name` is used in messages.
  safetensors_file(const std::byte* data, std::size_t bytes, std::string name);

  ~safetensors_file();
  safetensors_file(safetensors_file&&) noexcept;
  safetensors_file& operator=(safetensors_file&&) noexcept;

  /// In order of their offsets.
  const std::vector<tensor_entry>& tensors() const noexcept;

  /// Null if there is none of that name.
  const tensor_entry* find(std::string_view name) const noexcept;

  /// \throws format_error if there is none of that name, or its shape is another
  const tensor_entry& require(std::string_view name, const std::vector<std::int64_t>& shape) const;

  /// The header's __metadata__ strings.
  const std::map<std::string, std::string>& metadata() const noexcept;

  /// The path, or what the constructor was told.
  const std::string& name() const noexcept;

 private:
  friend struct detail::safetensors_access;
  struct FLASHMEMORY_LOCAL impl;
  explicit safetensors_file(std::unique_ptr<impl> read) noexcept;
  std::unique_ptr<impl> impl_;
};

/// A tensor's values as floats (f32, bf16, f16).
/// \throws format_error naming the tensor if its type is another or, with `finite`, if it holds NaN or Inf
FLASHMEMORY_API std::vector<float> to_floats(const safetensors_file& file, const tensor_entry& tensor,
                                             bool finite = true);

/// What write_safetensors() writes: `data` must hold elements() x size_of(type) bytes.
using tensor_source = tensor_entry;

/// Writes a file that safetensors_file accepts, atomically (temporary file, sync, rename).
/// \throws io_failure; argument_error for a repeated name or a byte count that does not match the shape
FLASHMEMORY_API void write_safetensors(const std::string& path, const std::vector<tensor_source>& tensors,
                                       const std::map<std::string, std::string>& metadata);

}  // namespace v0
}  // namespace flashmemory
