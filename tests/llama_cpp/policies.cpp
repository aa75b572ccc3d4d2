// SPDX-License-Identifier: MIT
#include <cstring>

#include "one_model.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace llama_test;

TEST_CASE("a prompt attends to everything under every policy, bit for bit, with few chunks resident",
          "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, seed);
  auto settings = small_settings(model, 2048);
  const auto prompt = some_tokens(model, 64 * 14 + 9, seed);
  const auto full = make_adapted(model, settings);
  full->prompt(prompt);
  const auto expected = logits_of(*full, model);
  const flashmemory_test::temporary_folder folder;
  for (const char* policy : {"lsa", "quest", "recency"}) {
    CAPTURE(policy);
    settings.adapted.policy = policy;
    settings.adapted.selection.budget_fraction = 0.3;
    settings.adapted.backing_path = folder.file(policy);
    const auto some = make_adapted(model, settings);
    some->prompt(prompt);
    const auto got = logits_of(*some, model);
    CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    const auto f = some->footprint();
    CHECK(f.chunks == 15);
    CHECK(f.resident_chunks <= 7);
    CHECK(f.refreshes == 1);
    some->step(greedy(got.data(), model.vocabulary()));
    CHECK(some->tokens() == 64 * 14 + 10);
    some->prompt(some_tokens(model, 130, seed + 1));  // a later prompt: due at its end
    CHECK(some->footprint().refreshes == 2);
  }
}

TEST_CASE("decoding under a budget refreshes at the interval", "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "smollm2");
  auto settings = small_settings(model, 1024);
  settings.adapted.policy = "quest";
  settings.adapted.selection.budget_fraction = 0.5;
  settings.adapted.selection.interval = 4;
  const auto engine = make_adapted(model, settings);
  engine->prompt(some_tokens(model, 64 * 8, flashmemory_test::fresh_seed()));
  for (int i = 0; i < 12; ++i) engine->step(greedy(engine->logits(), model.vocabulary()));
  CHECK(engine->footprint().refreshes == 4);
}
