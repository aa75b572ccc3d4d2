// SPDX-License-Identifier: MIT
#include "src/io/safetensors_header.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

/// Types that the format has and this library does not read.
struct unread_type {
  const char* name;
  std::uint64_t bits;
};
constexpr unread_type unread_types[] = {{"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
                                        {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"F4", 4},
                                        {"C64", 64}};

/// Whether a later version of the format may call a type so.
bool may_be_a_type(std::string_view name) noexcept {
  constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                             all = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
  return !name.empty() && name.size() <= 32 && letters.find(name[0]) != std::string_view::npos &&
         name.find_first_not_of(all) == std::string_view::npos;
}

/// Bits of an element; 0 = nobody knows.
std::uint64_t bits_of(const tensor_entry& tensor) noexcept {
  if (tensor.type != tensor_type::other) return 8 * size_of(tensor.type);
  for (const unread_type& t : unread_types)
    if (tensor.type_name == t.name) return t.bits;
  return 0;
}

struct raw_tensor {
  tensor_entry entry;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

// What the header may be, spelled out as the states of a SAX handler: nothing nests deeper than an offset
// list, so hostile input costs neither stack nor a document tree.
class header_reader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<raw_tensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() override { return misplaced("null"); }
  bool boolean(bool) override { return misplaced("a boolean"); }
  bool number_float(number_float_t, const string_t&) override { return misplaced("a number"); }
  bool binary(binary_t&) override { return misplaced("binary data"); }
  bool number_integer(number_integer_t) override { return misplaced("a negative number"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == place::shape) {
      if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
        return fail(where() + ": extent is too large");
      }
      tensors.back().entry.shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (place_ == place::offsets && offsets_ < 2) {
      (offsets_ == 0 ? tensors.back().begin : tensors.back().end) = value;
      ++offsets_;
      return true;
    }
    if (place_ == place::offsets) return fail(where() + ": more than two data_offsets");
    return misplaced("a number");
  }

  bool string(string_t& value) override {
    if (place_ == place::metadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (place_ == place::tensor && field_ == field::type) {
      const auto type = tensor_type_of(value);
      if (!type && !may_be_a_type(value))
        return fail(formatted("{}: unknown dtype '{}'", where(), printable(value)));
      tensors.back().entry.type = type.value_or(tensor_type::other);
      tensors.back().entry.type_name = std::move(value);
      return true;
    }
    return misplaced("a string");
  }

  bool start_object(std::size_t) override {
    if (place_ == place::start) {
      place_ = place::top;
      return true;
    }
    if (place_ == place::top && key_ == "__metadata__") {
      place_ = place::metadata;
      return true;
    }
    if (place_ == place::top) {
      place_ = place::tensor;
      seen_type_ = seen_shape_ = seen_offsets_ = false;
      tensors.emplace_back();
      tensors.back().entry.name = key_;
      return true;
    }
    return misplaced("an object");
  }

  bool end_object() override {
    if (place_ == place::tensor) {
      if (!seen_type_) return fail(where() + ": no dtype");
      if (!seen_shape_) return fail(where() + ": no shape");
      if (!seen_offsets_) return fail(where() + ": no data_offsets");
    }
    place_ = place_ == place::top ? place::end : place::top;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == place::tensor && field_ == field::shape) {
      place_ = place::shape;
      return true;
    }
    if (place_ == place::tensor && field_ == field::offsets) {
      place_ = place::offsets;
      offsets_ = 0;
      return true;
    }
    return misplaced("an array");
  }

  bool end_array() override {
    if (place_ == place::offsets && offsets_ != 2)
      return fail(where() + ": data_offsets are not two numbers");
    place_ = place::tensor;
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == place::tensor) {
      field_ = name == "dtype"          ? field::type
               : name == "shape"        ? field::shape
               : name == "data_offsets" ? field::offsets
                                        : field::none;
      if (field_ == field::none) {
        return fail(formatted("{}: unknown field '{}'", where(), printable(name)));
      }
      bool& seen = field_ == field::type ? seen_type_ : field_ == field::shape ? seen_shape_ : seen_offsets_;
      if (std::exchange(seen, true)) return fail(formatted("{}: '{}' stands twice", where(), name));
      return true;
    }
    auto& names = place_ == place::metadata ? metadata_names_ : names_;
    if (!names.insert(name).second) {
      return fail(formatted("{}'{}' stands twice", place_ == place::metadata ? "__metadata__ " : "tensor ",
                            printable(name)));
    }
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    return fail(formatted("header is not JSON, at its byte {}", position));
  }

 private:
  enum class place { start, top, metadata, tensor, shape, offsets, end };
  enum class field { none, type, shape, offsets };

  bool fail(std::string what) {
    if (problem.empty()) problem = std::move(what);
    return false;
  }

  bool misplaced(const char* what) { return fail(formatted("{}: {} does not belong here", where(), what)); }

  std::string where() const {
    switch (place_) {
      case place::start:
      case place::end:
        return "header";
      case place::top:
        return formatted("header field '{}'", printable(key_));
      case place::metadata:
        return formatted("__metadata__ '{}'", printable(key_));
      default:
        return formatted("tensor '{}'", printable(tensors.back().entry.name));
    }
  }

  place place_ = place::start;
  field field_ = field::none;
  std::string key_;
  std::set<std::string> names_, metadata_names_;
  int offsets_ = 0;
  bool seen_type_ = false, seen_shape_ = false, seen_offsets_ = false;
};

}  // namespace

std::optional<std::int64_t> element_count(const std::vector<std::int64_t>& shape) noexcept {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0 || (extent != 0 && count > std::numeric_limits<std::int64_t>::max() / extent)) return {};
    count *= extent;
  }
  return count;
}

safetensors_header parse_safetensors(const std::byte* data, std::size_t bytes, const std::string& file) {
  const auto refuse = [&](const std::string& what) {
    throw format_error(status::bad_argument, formatted("{}: {}", file, what));
  };
  std::uint64_t length = 0;
  if (bytes < sizeof length) refuse(formatted("not a safetensors file: only {} bytes", bytes));
  std::memcpy(&length, data, sizeof length);
  if (length > max_header_bytes) {
    refuse(formatted("not a safetensors file: header of {} bytes, at most {} are read", length,
                     max_header_bytes));
  }
  if (length > bytes - sizeof length) {
    refuse(formatted("truncated: header of {} bytes, but only {} follow", length, bytes - sizeof length));
  }
  const char* text = reinterpret_cast<const char*>(data) + sizeof length;
  if (length == 0 || *text != '{') refuse("not a safetensors file: the header does not start with '{'");

  header_reader reader;
  if (!nlohmann::json::sax_parse(text, text + length, &reader)) refuse(reader.problem);

  // Ordered like this, every byte must belong to exactly one tensor, and empty tensors come where they fit.
  std::sort(reader.tensors.begin(), reader.tensors.end(), [](const raw_tensor& a, const raw_tensor& b) {
    return std::tie(a.begin, a.end, a.entry.name) < std::tie(b.begin, b.end, b.entry.name);
  });
  const std::uint64_t payload = bytes - sizeof length - length;
  safetensors_header header;
  header.metadata = std::move(reader.metadata);
  header.tensors.reserve(reader.tensors.size());
  std::uint64_t reached = 0;
  for (raw_tensor& raw : reader.tensors) {
    tensor_entry& entry = raw.entry;
    const auto bad = [&](const std::string& what) {
      refuse(formatted("tensor '{}': {}", printable(entry.name), what));
    };
    if (raw.end < raw.begin) bad(formatted("data_offsets [{}, {}] run backwards", raw.begin, raw.end));
    if (raw.end > payload) {
      bad(formatted("data_offsets [{}, {}] end beyond the {} bytes of data", raw.begin, raw.end, payload));
    }
    if (raw.begin != reached) {
      bad(formatted("data_offsets begin at {}, where {} bytes are taken: {}", raw.begin, reached,
                    raw.begin < reached ? "tensors overlap" : "there is a hole"));
    }
    const auto count = element_count(entry.shape);
    const std::uint64_t bytes_there = raw.end - raw.begin, bits = bits_of(entry);
    if (!count ||
        (bits > 0 && static_cast<std::uint64_t>(*count) > std::numeric_limits<std::uint64_t>::max() / bits))
      bad(formatted("shape [{}] is too large", fmt::join(entry.shape, ", ")));
    if (const std::uint64_t all = static_cast<std::uint64_t>(*count) * bits;
        bits > 0 && (all % 8 != 0 || all / 8 != bytes_there)) {
      bad(formatted("{} [{}] takes {} {}, but data_offsets give {} bytes", entry.type_text(),
                    fmt::join(entry.shape, ", "), all % 8 == 0 ? all / 8 : all,
                    all % 8 == 0 ? "bytes" : "bits", bytes_there));
    }
    entry.data = data + sizeof length + length + raw.begin;
    entry.bytes = static_cast<std::size_t>(bytes_there);
    reached = raw.end;
    header.tensors.push_back(std::move(entry));
  }
  if (reached != payload) refuse(formatted("{} bytes follow the last tensor", payload - reached));
  return header;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
