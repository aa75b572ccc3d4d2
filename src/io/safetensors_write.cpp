// SPDX-License-Identifier: MIT
#include <fmt/ranges.h>

#include <flashmemory/io/safetensors.hpp>
#include <set>

#include "src/core/format.hpp"
#include "src/core/json.hpp"
#include "src/io/atomic_file.hpp"
#include "src/io/safetensors_header.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw argument_error(status::bad_argument, formatted("{}: {}", path, what));
}

std::string quote(const std::string& path, const std::string& text) {
  try {
    return json_text(nlohmann::json(text));
  } catch (const nlohmann::json::exception&) {
    refuse(path, formatted("'{}' is not UTF-8", detail::printable(text)));
  }
}

}  // namespace

std::string detail::safetensors_preamble(const std::string& path, const std::vector<tensor_source>& tensors,
                                         const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header += ',';
      header += quote(path, key) + ':' + quote(path, value);
    }
    header += '}';
  }
  std::set<std::string> names;
  std::uint64_t offset = 0;
  for (const tensor_source& tensor : tensors) {
    const auto bad = [&](const std::string& what) {
      refuse(path, formatted("tensor '{}': {}", detail::printable(tensor.name), what));
    };
    if (tensor.name == "__metadata__") bad("the name is reserved");
    if (!names.insert(tensor.name).second) bad("the name stands twice");
    const std::int64_t count = tensor.elements();
    const std::size_t width = size_of(tensor.type);
    if (width == 0) bad("unknown type");
    if (count < 0 || static_cast<std::uint64_t>(count) > SIZE_MAX / width ||
        static_cast<std::uint64_t>(count) * width != tensor.bytes) {
      bad(formatted("{} [{}] does not take {} bytes", to_string(tensor.type), fmt::join(tensor.shape, ", "),
                    tensor.bytes));
    }
    if (header.back() != '{') header += ',';
    header +=
        formatted("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", quote(path, tensor.name),
                  to_string(tensor.type), fmt::join(tensor.shape, ","), offset, offset + tensor.bytes);
    offset += tensor.bytes;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');  // keeps the data 8-byte aligned in the file
  if (header.size() > detail::max_header_bytes) {
    refuse(path, formatted("header of {} bytes, at most {} can be read back", header.size(),
                           detail::max_header_bytes));
  }

  const std::uint64_t length = header.size();
  header.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
  return header;
}

void write_safetensors(const std::string& path, const std::vector<tensor_source>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string preamble = detail::safetensors_preamble(path, tensors, metadata);
  for (const tensor_source& tensor : tensors)
    if (tensor.bytes > 0 && tensor.data == nullptr)
      refuse(path, formatted("tensor '{}': no data", detail::printable(tensor.name)));
  detail::atomic_file file(path);
  file.write(preamble.data(), preamble.size());
  for (const tensor_source& tensor : tensors) file.write(tensor.data, tensor.bytes);
  file.commit();
}

}  // namespace v0
}  // namespace flashmemory
