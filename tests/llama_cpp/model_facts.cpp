// SPDX-License-Identifier: MIT
#include "model_facts.hpp"

#include <flashmemory/error.hpp>
#include <map>

#include "tests/catch.hpp"

using namespace llama_flashmemory;

namespace {

model_facts facts(const std::map<std::string, std::string>& values, model_counts counts = {12, 64, 4096, 0}) {
  return facts_from(
      [&](const std::string& key) -> std::optional<std::string> {
        const auto at = values.find(key);
        return at == values.end() ? std::nullopt : std::optional<std::string>(at->second);
      },
      counts);
}

std::string refusal(const std::map<std::string, std::string>& values,
                    const model_counts& counts = {12, 64, 4096, 0}) {
  try {
    static_cast<void>(facts(values, counts));
  } catch (const flashmemory::error& e) {
    CHECK(e.code() == flashmemory::status::unsupported);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("all layers of a model without windows go into the store", "[llama_cpp]") {
  const auto f = facts({{"general.architecture", "llama"}});
  CHECK(f.architecture == "llama");
  CHECK(f.full.size() == 12);
  CHECK(f.windowed.empty());
  CHECK(f.window == 0);
}

TEST_CASE("window layers are those that the file, or else the architecture, says", "[llama_cpp]") {
  const model_counts counts{12, 64, 4096, 512};
  CHECK(facts({{"general.architecture", "gemma3"}}, counts).full == std::vector<int>{5, 11});
  CHECK(facts({{"general.architecture", "gemma2"}}, counts).full == std::vector<int>{1, 3, 5, 7, 9, 11});
  CHECK(facts({{"general.architecture", "smallthinker"}}, counts).full == std::vector<int>{0, 4, 8});
  CHECK(facts({{"general.architecture", "gemma3"}, {"gemma3.attention.sliding_window_pattern", "4"}}, counts)
            .full == std::vector<int>{3, 7, 11});
  const std::string flags = "[true, false, true, true, true, true, true, true, true, true, true, false]";
  const auto f =
      facts({{"general.architecture", "new"}, {"new.attention.sliding_window_pattern", flags}}, counts);
  CHECK(f.full == std::vector<int>{1, 11});
  CHECK(f.windowed.size() == 10);
  CHECK(f.window == 512);
}

TEST_CASE("what the adapter does not serve is refused by architecture and reason", "[llama_cpp]") {
  using Catch::Contains;
  model_counts recurrent{12, 64, 4096, 0};
  recurrent.recurrent = true;
  CHECK_THAT(refusal({{"general.architecture", "mamba"}}, recurrent),
             Contains("mamba") && Contains("recurrent"));
  CHECK_THAT(refusal({{"general.architecture", "deepseek2"}, {"deepseek2.attention.kv_lora_rank", "512"}}),
             Contains("deepseek2") && Contains("MLA"));
  CHECK_THAT(refusal({{"general.architecture", "bloom"}}), Contains("bloom") && Contains("ALiBi"));
  CHECK_THAT(refusal({{"general.architecture", "falcon"}, {"falcon.attention.max_alibi_bias", "8.0"}}),
             Contains("falcon") && Contains("ALiBi"));
  model_counts encoder{12, 64, 4096, 0};
  encoder.decoder_only = false;
  CHECK_THAT(refusal({{"general.architecture", "t5"}}, encoder), Contains("t5") && Contains("encoder"));
  CHECK_THAT(refusal({{"general.architecture", "bert"}, {"bert.attention.causal", "false"}}),
             Contains("bert") && Contains("causal"));
  CHECK_THAT(refusal({{"general.architecture", "phi3"}, {"phi3.rope.scaling.type", "longrope"}}),
             Contains("phi3") && Contains("longrope"));
  CHECK_THAT(refusal({{"general.architecture", "gemma3n"}, {"gemma3n.attention.shared_kv_layers", "10"}}),
             Contains("gemma3n") && Contains("share K and V"));
  const model_counts windows{12, 64, 4096, 512};
  CHECK_THAT(refusal({{"general.architecture", "new"}}, windows), Contains("new") && Contains("not known"));
  CHECK_THAT(
      refusal({{"general.architecture", "new"}, {"new.attention.sliding_window_pattern", "[true]"}}, windows),
      Contains("1 of 12 layers"));
  CHECK_THAT(
      refusal({{"general.architecture", "new"}, {"new.attention.sliding_window_pattern", "13"}}, windows),
      Contains("all of its layers"));
  CHECK_THAT(refusal({}), Contains("general.architecture"));
}

TEST_CASE("development builds of the tested llama.cpp are the tested one, others are not", "[llama_cpp]") {
  CHECK(is_tested_version(tested_llama_version));
  CHECK(is_tested_version(std::string(tested_llama_version) + "-dev"));
  CHECK_FALSE(is_tested_version("0.6.0"));
  CHECK_FALSE(is_tested_version(std::string(tested_llama_version) + "1"));
  CHECK_FALSE(is_tested_version(""));
}
