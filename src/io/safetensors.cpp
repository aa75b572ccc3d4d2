// SPDX-License-Identifier: MIT
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <flashmemory/io/safetensors.hpp>
#include <utility>

#include "src/core/convert.hpp"
#include "src/core/format.hpp"
#include "src/io/file_image.hpp"
#include "src/io/safetensors_header.hpp"
#include "src/io/safetensors_part.hpp"

namespace flashmemory {
inline namespace v0 {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is used where it lies");

namespace {

struct type_name {
  const char* name;
  std::size_t bytes;
};

// In the order of tensor_type.
constexpr type_name types[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
                               {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
                               {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};

const type_name* lookup(tensor_type type) noexcept {
  const auto i = static_cast<std::size_t>(type);
  return i < std::size(types) ? &types[i] : nullptr;
}

}  // namespace

namespace detail {
std::optional<tensor_type> tensor_type_of(std::string_view name) noexcept {
  for (std::size_t i = 0; i < std::size(types); ++i) {
    if (name == types[i].name) return static_cast<tensor_type>(i);
  }
  return {};
}
}  // namespace detail

std::size_t size_of(tensor_type type) noexcept {
  const type_name* t = lookup(type);
  return t ? t->bytes : 0;
}

const char* to_string(tensor_type type) noexcept {
  const type_name* t = lookup(type);
  return t ? t->name : type == tensor_type::other ? "a type that is not read" : "?";
}

const char* tensor_entry::type_text() const noexcept {
  return type_name.empty() ? to_string(type) : type_name.c_str();
}

std::int64_t tensor_entry::elements() const noexcept { return detail::element_count(shape).value_or(-1); }

struct safetensors_file::impl {
  /// Reads the header and those tensors whose names begin with `prefix`.
  impl(const std::string& path, std::string_view prefix) : image(path), name(path) {
    std::uint64_t length = 0;
    const std::size_t bytes = image.bytes();
    image.read(0, std::min(sizeof length, bytes));
    if (bytes >= sizeof length) std::memcpy(&length, image.data(), sizeof length);
    const bool there = bytes >= sizeof length && length <= bytes - sizeof length;
    if (there && length <= detail::max_header_bytes) image.read(sizeof length, sizeof length + length);
    parse(image.data(), bytes);
    if (prefix.empty()) image.read(sizeof length + length, bytes);
    for (const tensor_entry& t : header.tensors) {
      if (prefix.empty() || t.name.compare(0, prefix.size(), prefix) != 0) continue;
      const auto from = static_cast<std::size_t>(t.data - image.data());
      image.read(from, from + t.bytes);
    }
    image.close();
  }
  impl(const std::byte* data, std::size_t bytes, std::string label) : name(std::move(label)) {
    parse(data, bytes);
  }

  void parse(const std::byte* data, std::size_t bytes) {
    header = detail::parse_safetensors(data, bytes, name);
    for (std::size_t i = 0; i < header.tensors.size(); ++i) by_name.emplace(header.tensors[i].name, i);
  }

  detail::file_image image;
  std::string name;
  detail::safetensors_header header;
  std::map<std::string_view, std::size_t> by_name;  // keys point into header.tensors
};

safetensors_file::safetensors_file(const std::string& path) : impl_(std::make_unique<impl>(path, "")) {}

safetensors_file::safetensors_file(const std::byte* data, std::size_t bytes, std::string name)
    : impl_(std::make_unique<impl>(data, bytes, std::move(name))) {}

safetensors_file::safetensors_file(std::unique_ptr<impl> read) noexcept : impl_(std::move(read)) {}

safetensors_file detail::read_safetensors_part(const std::string& path, std::string_view prefix) {
  return safetensors_access::open(path, prefix);
}

safetensors_file detail::safetensors_access::open(const std::string& path, std::string_view prefix) {
  return safetensors_file(std::make_unique<safetensors_file::impl>(path, prefix));
}

safetensors_file::~safetensors_file() = default;
safetensors_file::safetensors_file(safetensors_file&&) noexcept = default;
safetensors_file& safetensors_file::operator=(safetensors_file&&) noexcept = default;

const std::vector<tensor_entry>& safetensors_file::tensors() const noexcept { return impl_->header.tensors; }

const tensor_entry* safetensors_file::find(std::string_view name) const noexcept {
  const auto found = impl_->by_name.find(name);
  return found == impl_->by_name.end() ? nullptr : &impl_->header.tensors[found->second];
}

const tensor_entry& safetensors_file::require(std::string_view name,
                                              const std::vector<std::int64_t>& shape) const {
  const tensor_entry* entry = find(name);
  if (!entry) {
    throw format_error(status::bad_argument,
                       formatted("{}: no tensor '{}'", impl_->name, detail::printable(name)));
  }
  if (entry->shape != shape) {
    throw format_error(status::bad_shape, formatted("{}: tensor '{}' has shape [{}], expected [{}]",
                                                    impl_->name, detail::printable(name),
                                                    fmt::join(entry->shape, ", "), fmt::join(shape, ", ")));
  }
  return *entry;
}

const std::map<std::string, std::string>& safetensors_file::metadata() const noexcept {
  return impl_->header.metadata;
}

const std::string& safetensors_file::name() const noexcept { return impl_->name; }

std::vector<float> to_floats(const safetensors_file& file, const tensor_entry& tensor, bool finite) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  const auto convert_halves = [&](auto half) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&half.bits, tensor.data + 2 * i, 2);
      values[i] = detail::to_float(half);
    }
  };
  switch (tensor.type) {
    case tensor_type::f32:
      if (!values.empty()) std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
      break;
    case tensor_type::bf16:
      convert_halves(bfloat16{});
      break;
    case tensor_type::f16:
      convert_halves(float16{});
      break;
    default:
      throw format_error(status::bad_dtype,
                         formatted("{}: tensor '{}' is {}, expected F32, BF16 or F16", file.name(),
                                   detail::printable(tensor.name), tensor.type_text()));
  }
  if (finite) {
    const auto bad =
        std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    if (bad != values.end()) {
      throw format_error(status::not_finite,
                         formatted("{}: tensor '{}' has {} at element {}", file.name(),
                                   detail::printable(tensor.name), *bad, bad - values.begin()));
    }
  }
  return values;
}

}  // namespace v0
}  // namespace flashmemory
