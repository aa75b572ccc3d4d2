// SPDX-License-Identifier: MIT
#include <charconv>

#include "src/train/program/commands.hpp"

#if FLASHMEMORY_TRAIN_INDEXER_HAS_CUDA
#include <flashmemory/cuda/train.hpp>
#endif

namespace indexer_program {

flashmemory::train::backend_factory parse_device(const std::string& text) {
  if (text == "cpu") return {};
  std::int32_t ordinal = 0;
  const std::string kind = text.substr(0, text.find(':'));
  if (kind.size() < text.size()) {
    const char* const end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + kind.size() + 1, end, ordinal);
    if (parsed.ec != std::errc() || parsed.ptr != end || ordinal < 0) ordinal = -1;
  }
  if (kind != "cuda" || ordinal < 0) {
    throw CLI::ValidationError("--device", "'" + text + "' is neither cpu nor cuda nor cuda:ORDINAL");
  }
#if FLASHMEMORY_TRAIN_INDEXER_HAS_CUDA
  flashmemory::cuda::training_options options;
  options.device = ordinal;
  return flashmemory::cuda::training_on_device(options);
#else
  throw CLI::ValidationError("--device",
                             "this program was built with FLASHMEMORY_CUDA=OFF and runs on the CPU");
#endif
}

}  // namespace indexer_program
