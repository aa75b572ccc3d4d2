// SPDX-License-Identifier: MIT
#include "src/train/record/document_part.hpp"

#include <fmt/ranges.h>

#include <cstring>
#include <flashmemory/error.hpp>
#include <string>

#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {
namespace {

/// Reads the tensors of one part; one that is not there is empty.
class part_reader {
 public:
  part_reader(const safetensors_file& shard, std::int64_t number, std::int64_t part)
      : shard_(shard), prefix_(formatted("{}.{}.", number, part)) {}

  /// [rows] or, if `width` is not 0, [rows, width].
  const tensor_entry* find(const std::string& name, tensor_type type, std::int64_t width) const {
    const tensor_entry* t = shard_.find(prefix_ + name);
    if (t == nullptr) return nullptr;
    if (t->type != type)
      fail(*t, status::bad_dtype, formatted("is {}, expected {}", t->type_text(), to_string(type)));
    check_shape(*t, width);
    return t;
  }

  template <class T>
  std::vector<T> numbers(const std::string& name, tensor_type type) const {
    std::vector<T> out;
    if (const tensor_entry* t = find(name, type, 0)) copy(*t, out);
    return out;
  }

  void rows(const std::string& name, std::int64_t width, row_matrix& to) const {
    const tensor_entry* t = shard_.find(prefix_ + name);
    if (t == nullptr) return;
    if (t->type != tensor_type::bf16 && t->type != tensor_type::f32)
      fail(*t, status::bad_dtype, formatted("is {}, expected BF16 or F32", t->type_text()));
    check_shape(*t, width);
    const dtype type = t->type == tensor_type::f32 ? dtype::f32 : dtype::bf16;
    if (to.empty())
      to = row_matrix(type, width);
    else if (to.type() != type)
      fail(*t, status::bad_dtype, "is of another type than the part before it");
    to.append_stored(t->data, t->shape[0]);
  }

  [[noreturn]] void fail(const tensor_entry& t, status code, const std::string& what) const {
    throw format_error(code, formatted("{}: tensor '{}' {}", shard_.name(), t.name, what));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(status::bad_shape,
                       formatted("{}: document part '{}' {}", shard_.name(), prefix_, what));
  }

 private:
  void check_shape(const tensor_entry& t, std::int64_t width) const {
    const bool good = width == 0 ? t.shape.size() == 1 : t.shape.size() == 2 && t.shape[1] == width;
    if (!good)
      fail(t, status::bad_shape,
           formatted("has shape [{}], the width is {}", fmt::join(t.shape, ", "), width));
  }

  template <class T>
  static void copy(const tensor_entry& t, std::vector<T>& out) {
    out.resize(t.bytes / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), t.data, t.bytes);
  }

  const safetensors_file& shard_;
  std::string prefix_;
};

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void append_attention(const part_reader& part, attention_table& to) {
  const auto positions = part.numbers<std::int64_t>("attention.positions", tensor_type::i64);
  const auto items = part.numbers<std::int64_t>("attention.items", tensor_type::i64);
  const auto entry = part.numbers<std::uint32_t>("attention.entry", tensor_type::u32);
  if (items.size() != positions.size()) part.fail("has attention of tokens without a count of items");
  std::vector<std::int64_t> offsets;
  std::int64_t left = static_cast<std::int64_t>(entry.size()), reached = to.offsets.back();
  for (const std::int64_t count : items) {
    if (count < 0 || count > left) part.fail("counts other items of attention than it has");
    left -= count;
    offsets.push_back(reached += count);
  }
  if (left != 0) part.fail("counts other items of attention than it has");
  append(to.positions, positions);
  append(to.offsets, offsets);
  append(to.entry, entry);
  append(to.layer, part.numbers<std::uint16_t>("attention.layer", tensor_type::u16));
  append(to.head, part.numbers<std::uint16_t>("attention.head", tensor_type::u16));
  append(to.mass, part.numbers<float>("attention.mass", tensor_type::f32));
}

}  // namespace

void append_part(const safetensors_file& shard, std::int64_t number, std::int64_t part_number,
                 const recording_geometry& geometry, document& doc) {
  const part_reader part(shard, number, part_number);
  append(doc.positions, part.numbers<std::int64_t>("positions", tensor_type::i64));
  for (std::size_t i = 0; i < geometry.queries.size(); ++i)
    part.rows(formatted("queries.{}", i), geometry.queries[i].width, doc.queries[i]);
  for (std::size_t i = 0; i < geometry.keys.size(); ++i) {
    const recorded_key_stream& stream = geometry.keys[i];
    const std::string name = formatted("keys.{}", i);
    document_keys& keys = doc.keys[i];
    if (!stream.native()) {
      part.rows(name, stream.width, keys.inputs);
      keys.keys = keys.inputs.rows();
    } else if (const tensor_entry* t = part.find(name, tensor_type::u8, stream.key_bytes)) {
      keys.native.insert(keys.native.end(), t->data, t->data + t->bytes);
      keys.keys += t->shape[0];
    }
  }
  append_attention(part, doc.attention);
  if (const tensor_entry* t = part.find("evidence", tensor_type::i64, 4)) {
    const std::size_t before = doc.evidence.size();
    doc.evidence.resize(before + static_cast<std::size_t>(t->shape[0]));
    if (t->bytes > 0) std::memcpy(doc.evidence.data() + before, t->data, t->bytes);
  }
}

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
