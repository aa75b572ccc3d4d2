// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/document.hpp>
#include <tuple>

#include "src/core/convert.hpp"
#include "src/core/format.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

auto fields_of(const query_tap& tap) { return std::make_tuple(tap.layer, tap.kind, tap.width); }

auto fields_of(const recorded_key_stream& s) {
  return std::make_tuple(s.layer, s.width, s.tokens_per_key, s.window, s.key_bytes);
}

auto fields_of(const recording_geometry& g) {
  return std::tie(g.layers, g.heads, g.tokens_per_entry, g.entries_per_chunk, g.model_fingerprint);
}

template <class T>
bool same_lists(const std::vector<T>& a, const std::vector<T>& b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const T& x, const T& y) { return fields_of(x) == fields_of(y); });
}

}  // namespace

const char* to_string(dataset_split split) noexcept {
  return split == dataset_split::train ? "train" : split == dataset_split::validation ? "validation" : "?";
}

bool operator==(const recording_geometry& a, const recording_geometry& b) noexcept {
  return fields_of(a) == fields_of(b) && same_lists(a.queries, b.queries) && same_lists(a.keys, b.keys);
}

bool operator!=(const recording_geometry& a, const recording_geometry& b) noexcept { return !(a == b); }

row_matrix::row_matrix(dtype type, std::int64_t width) : type_(type), width_(width) {
  if (type != dtype::bf16 && type != dtype::f32)
    throw argument_error(status::bad_dtype,
                         formatted("row_matrix: rows are bf16 or f32, not {}", to_string(type)));
  if (width < 0) throw argument_error(status::bad_argument, formatted("row_matrix: the width is {}", width));
}

void row_matrix::append(const float* row) {
  if (type_ == dtype::f32) return append_stored(row, 1);
  const std::size_t end = data_.size();
  data_.resize(end + static_cast<std::size_t>(width_) * 2);
  for (std::int64_t i = 0; i < width_; ++i) {
    bfloat16 value;
    detail::from_float(row[i], value);
    std::memcpy(data_.data() + end + 2 * i, &value.bits, 2);
  }
  ++rows_;
}

void row_matrix::append_stored(const void* values, std::int64_t count) {
  const auto* from = static_cast<const std::byte*>(values);
  data_.insert(data_.end(), from, from + static_cast<std::size_t>(count * width_) * size_of(type_));
  rows_ += count;
}

void row_matrix::read(std::int64_t index, float* out) const noexcept {
  const std::byte* from = data_.data() + static_cast<std::size_t>(index * width_) * size_of(type_);
  if (type_ == dtype::f32) {
    std::memcpy(out, from, static_cast<std::size_t>(width_) * 4);
    return;
  }
  for (std::int64_t i = 0; i < width_; ++i) {
    bfloat16 value;
    std::memcpy(&value.bits, from + 2 * i, 2);
    out[i] = detail::to_float(value);
  }
}

std::vector<float> row_matrix::to_floats() const {
  std::vector<float> out(static_cast<std::size_t>(rows_ * width_));
  for (std::int64_t r = 0; r < rows_; ++r) read(r, out.data() + r * width_);
  return out;
}

void row_matrix::clear() noexcept {
  rows_ = 0;
  data_.clear();
}

std::size_t document::bytes() const noexcept {
  std::size_t total = positions.size() * 8 + evidence.size() * sizeof(evidence_range) +
                      attention.positions.size() * 16 + attention.entry.size() * 12;
  for (const auto& q : queries) total += q.bytes();
  for (const auto& k : keys) total += k.inputs.bytes() + k.native.size();
  return total;
}

document empty_document(const recording_geometry& geometry, dtype type) {
  document doc;
  for (const query_tap& tap : geometry.queries) doc.queries.emplace_back(type, tap.width);
  for (const recorded_key_stream& stream : geometry.keys) {
    document_keys keys;
    keys.inputs = row_matrix(type, stream.width);
    doc.keys.push_back(std::move(keys));
  }
  return doc;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
