// SPDX-License-Identifier: MIT
// A copy of a model in which rounding does not hide differences.
#include <fmt/format.h>

#include <filesystem>

#include "program_options.hpp"

namespace llama_flashmemory {

void add_widen_command(CLI::App& app) {
  struct widen_options {
    std::string model, out;
  };
  auto o = std::make_shared<widen_options>();
  auto* command = app.add_subcommand("widen",
                                     "writes a model's weights as f32: quantised ones round activations, "
                                     "which makes much of little in a comparison");
  command->add_option("--model", o->model, "GGUF file")->required();
  command->add_option("--out", o->out, "GGUF file that is written")->required();
  command->callback([o] {
    const text_model readable(o->model);  // says what is wrong with it
    auto params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_ALL_F32;
    params.allow_requantize = true;
    const std::string partial = o->out + ".partial";
    if (llama_model_quantize(o->model.c_str(), partial.c_str(), &params) != 0) {
      std::error_code ignored;
      std::filesystem::remove(partial, ignored);
      throw std::runtime_error(fmt::format("{}: could not be written", o->out));
    }
    std::filesystem::rename(partial, o->out);
  });
}

}  // namespace llama_flashmemory
