// SPDX-License-Identifier: MIT
#include <cstring>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <fstream>

#include "one_model.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace llama_test;
using Catch::Contains;

namespace {

std::string refusal(adapter& engine, const std::string& path) {
  try {
    engine.load(0, path);
  } catch (const flashmemory::error& e) {
    CHECK(engine.tokens(0) == 0);
    return e.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("a saved sequence goes on in another engine as if it had never left", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  const std::string policy = GENERATE(as<std::string>(), "full", "quest");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, policy, seed);
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("session");
  auto settings = small_settings(model, 1024);
  settings.adapted.policy = policy;
  settings.adapted.selection.budget_fraction = 0.5;
  settings.adapted.model_tag = "these weights";
  const auto first = make_adapted(model, settings), second = make_adapted(model, settings);
  first->prompt(some_tokens(model, 700, seed));
  for (int i = 0; i < 3; ++i) first->step(40 + i);
  first->save(path);
  second->load(path);
  CHECK(second->tokens() == 703);
  for (int i = 0; i < 3; ++i) {
    first->step(60 + i);
    second->step(60 + i);
    CHECK(apart(logits_of(*first, model), logits_of(*second, model)) < rounding_of(model));
  }
}

TEST_CASE("a session of other weights, cut or damaged is refused, and nothing stays", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  CAPTURE(name);
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("session");
  adapter_options options;
  options.max_tokens = 256;
  options.model_tag = "these weights";
  {
    adapter engine(model.get(), small_params(model), options);
    CHECK_THROWS_AS(engine.save(0, path), flashmemory::error);  // nothing to save
    engine.prompt(0, some_tokens(model, 100, 9));
    engine.save(0, path);
  }
  options.model_tag = "others";
  {
    adapter engine(model.get(), small_params(model), options);
    CHECK_THAT(refusal(engine, path), Contains("others") && Contains("these weights"));
  }
  options.model_tag = "these weights";
  adapter engine(model.get(), small_params(model), options);
  CHECK_THAT(refusal(engine, folder.file("nowhere")), Contains("nowhere"));
  const auto size = std::filesystem::file_size(path);
  for (const auto keep : {size - 1, size - 300, size / 2, std::uintmax_t{10}}) {
    CAPTURE(keep);
    const std::string cut = folder.file("cut");
    std::filesystem::copy_file(path, cut, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(cut, keep);
    CHECK(refusal(engine, cut) != "nothing was refused");
  }
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(size - 200));
  file.put('\x55').put('\x55').put('\x56');
  file.close();
  CHECK(refusal(engine, path) != "nothing was refused");
}
