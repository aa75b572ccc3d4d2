// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/error.hpp>

#include "one_model.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace llama_test;

namespace {

void step(adapter& engine, llama_token token, llama_seq_id sequence) {
  rows r(1);
  engine.decode(r.add(token, llama_pos(engine.tokens(sequence)), sequence, true).get());
}

}  // namespace

TEST_CASE("a fork goes its own way and leaves its parent as it was", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, seed);
  adapter_options options;
  options.max_tokens = 1024;
  options.max_sequences = 3;
  adapter engine(model.get(), small_params(model), options), other(model.get(), small_params(model), options);
  const auto prompt = some_tokens(model, 600, seed);
  engine.prompt(0, prompt);
  other.prompt(0, prompt);
  engine.seq_cp(0, 2, -1, -1);
  CHECK(engine.tokens(2) == 600);
  for (llama_token t : {11, 12, 13}) step(engine, t, 2);
  for (llama_token t : {21, 22}) {
    step(engine, t, 0);
    step(other, t, 0);
  }
  CHECK(apart(logits_of(engine, model), logits_of(other, model)) < rounding_of(model));
  for (llama_token t : {11, 12, 13}) {
    if (t == 11) other.seq_rm(0, 600, -1);
    step(other, t, 0);
  }
  step(engine, 14, 2);
  step(other, 14, 0);
  CHECK(apart(logits_of(engine, model), logits_of(other, model)) < rounding_of(model));
  engine.seq_rm(0, 0, -1);
  step(engine, 15, 2);
  step(other, 15, 0);
  CHECK(apart(logits_of(engine, model), logits_of(other, model)) < rounding_of(model));
  CHECK(engine.tokens(0) == 0);
}

TEST_CASE("rejected tokens leave nothing behind", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, seed);
  adapter_options options;
  options.max_tokens = 1024;
  adapter engine(model.get(), small_params(model), options), other(model.get(), small_params(model), options);
  const auto prompt = some_tokens(model, 700, seed);
  engine.prompt(0, prompt);
  other.prompt(0, prompt);
  rows drafts(8);
  for (int i = 0; i < 8; ++i) drafts.add(100 + i, 700 + i, 0, true);
  engine.decode(drafts.get());
  engine.seq_rm(0, 701, -1);  // the first is right
  step(other, 100, 0);
  CHECK(engine.tokens(0) == 701);
  step(engine, 50, 0);
  step(other, 50, 0);
  CHECK(apart(logits_of(engine, model), logits_of(other, model)) < rounding_of(model));
}

TEST_CASE("a pass that fails leaves everything as it was", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, seed);
  adapter_options options;
  options.max_tokens = 1024;
  options.max_sequences = 2;
  static int nodes_left;
  auto params = small_params(model);
  params.abort_callback = [](void*) { return nodes_left >= 0 && nodes_left-- == 0; };
  nodes_left = -1;
  adapter engine(model.get(), params, options), other(model.get(), small_params(model), options);
  const auto prompt = some_tokens(model, 200, seed);
  engine.prompt(0, prompt);
  other.prompt(0, prompt);
  for (const int after : {0, 40, 200}) {  // nodes: before the first layer's attention, and between layers
    CAPTURE(after);
    rows both(8);
    both.add(31, 200, 0, true).add(5, 0, 1, false).add(6, 1, 1, true);
    nodes_left = after;
    CHECK_THROWS_AS(engine.decode(both.get()), flashmemory::error);
    nodes_left = -1;
    CHECK(engine.tokens(0) == 200);
    CHECK(engine.tokens(1) == 0);
  }
  step(engine, 31, 0);
  step(other, 31, 0);
  const auto a = logits_of(engine, model), b = logits_of(other, model);
  CHECK(apart(a, b) < rounding_of(model));
}
