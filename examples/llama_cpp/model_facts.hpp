// SPDX-License-Identifier: MIT
#pragma once

#include <llama.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace llama_flashmemory {

/// The llama.cpp that the adapter was tested with, as llama_version() says it, without a suffix: the names of a graph's
/// tensors, which the adapter goes by, are no promise of llama.cpp's.
inline constexpr const char* tested_llama_version = "0.5.0";

/// Whether `version` is that one, a development build ("-dev") of it included.
bool is_tested_version(const std::string& version);

/// What the adapter must know of a model before it sees a graph.
struct model_facts {
  std::string architecture;  ///< GGUF's general.architecture
  std::int32_t layers = 0;
  std::int32_t hidden = 0;
  std::int32_t trained_context = 0;
  std::int32_t window = 0;         ///< tokens that a window layer sees, its own included; 0 = there are none
  std::vector<std::int32_t> full;  ///< layers that see everything, ascending: these go into the store
  std::vector<std::int32_t> windowed;  ///< layers that stay llama.cpp's
};

/// One value of a model's metadata by its full key.
using metadata = std::function<std::optional<std::string>(const std::string& key)>;

/// The metadata of `model`; it must outlive what is returned.
metadata metadata_of(const llama_model* model);

/// What of a model is not in its metadata.
struct model_counts {
  std::int32_t layers = 0;
  std::int32_t hidden = 0;
  std::int32_t trained_context = 0;
  std::int32_t window = 0;
  bool recurrent = false;  ///< or partly so
  bool decoder_only = true;
};

/// \throws flashmemory::error of code unsupported, naming architecture and reason: recurrent state, multi-head latent
///     attention, ALiBi, an encoder, attention that is not causal, positions that depend on the context's size, windows
///     whose layers are not known or that are all layers
model_facts facts_from(const metadata& values, const model_counts& counts);

/// The same of a loaded model.
model_facts facts_of(const llama_model* model);

}  // namespace llama_flashmemory
