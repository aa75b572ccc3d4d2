// SPDX-License-Identifier: MIT
// Any bytes are either a file whose tensors all lie inside it, or a format_error; never anything else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>

#include "src/indexer/dual_encoder_file.hpp"
#include "src/io/safetensors_header.hpp"

namespace fm = flashmemory;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const fm::safetensors_file& file, const std::byte* data, std::size_t bytes) {
  const std::byte* reached = nullptr;
  for (const fm::tensor_entry& tensor : file.tensors()) {
    require(reached == nullptr || tensor.data == reached);
    require(tensor.data >= data && tensor.bytes <= bytes && tensor.data + tensor.bytes <= data + bytes);
    require(tensor.elements() >= 0);
    require(tensor.type == fm::tensor_type::other ||
            static_cast<std::size_t>(tensor.elements()) * fm::size_of(tensor.type) == tensor.bytes);
    require((tensor.type == fm::tensor_type::other) == (fm::size_of(tensor.type) == 0));
    require(fm::detail::printable(tensor.name).size() <= 123);
    require(file.find(tensor.name) == &tensor);
    reached = tensor.data + tensor.bytes;
    try {
      require(fm::to_floats(file, tensor).size() == static_cast<std::size_t>(tensor.elements()));
    } catch (const fm::format_error&) {
    }
  }
  require(reached == nullptr || reached == data + bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t bytes) {
  const auto* data = reinterpret_cast<const std::byte*>(input);
  try {
    const fm::safetensors_file file(data, bytes, "input");
    check(file, data, bytes);
    const fm::dual_encoder_config config = fm::detail::read_dual_encoder(file, {});
    const fm::dual_encoder_indexer index(config);
    require(index.taps().reads.lanes > 0);
  } catch (const fm::format_error&) {
  }
  return 0;
}
