// SPDX-License-Identifier: MIT
#include "one_model.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace llama_test;

namespace {

/// llama.cpp's two attention kernels differ by rounding, and so do ours from either.
void agree_like_its_own_kernels(const text_model& model, std::size_t length, unsigned seed) {
  CAPTURE(length, seed);
  const auto settings = small_settings(model, static_cast<std::int64_t>(length) + 8);
  auto other_kernel = settings;
  other_kernel.flash_attention = false;
  const auto flash = make_plain(model, settings), plain = make_plain(model, other_kernel);
  const auto ours = make_adapted(model, settings);
  const auto prompt = some_tokens(model, length, seed);
  for (runner* r : {flash.get(), plain.get(), ours.get()}) r->prompt(prompt);
  for (int step = 0; step < 3; ++step) {
    CAPTURE(step);
    const auto expected = logits_of(*flash, model);
    const double own = apart(expected, logits_of(*plain, model));
    CHECK(apart(expected, logits_of(*ours, model)) < 3 * own + 0.05);
    const llama_token next = greedy(expected.data(), model.vocabulary());
    for (runner* r : {flash.get(), plain.get(), ours.get()}) r->step(next);
  }
}

}  // namespace

TEST_CASE(
    "prompts whose last piece is 1, 28 or 63 tokens, and what follows, are llama.cpp's own: all layers full",
    "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "smollm2");
  const unsigned seed = flashmemory_test::fresh_seed();
  for (const std::size_t last : {1, 28, 63}) agree_like_its_own_kernels(model, 64 + last, seed);
}

TEST_CASE(
    "prompts whose last piece is 1, 28 or 63 tokens, and what follows, are llama.cpp's own: windows beside "
    "full layers",
    "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "gemma3");
  const unsigned seed = flashmemory_test::fresh_seed();
  for (const std::size_t last : {1, 28, 63})
    agree_like_its_own_kernels(model, 64 * 9 + last, seed);  // beyond a window
}

TEST_CASE("four sequences in one batch, prompts beside decoding, are each what they are alone",
          "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  const unsigned seed = flashmemory_test::fresh_seed();
  CAPTURE(name, seed);
  adapter_options options;
  options.max_tokens = 256;
  options.max_sequences = 4;
  adapter together(model.get(), small_params(model, 128), options);
  options.max_sequences = 1;
  const std::size_t lengths[] = {70, 33, 9, 40};
  std::vector<std::vector<llama_token>> prompts;
  for (std::size_t s = 0; s < 4; ++s) prompts.push_back(some_tokens(model, lengths[s], seed + unsigned(s)));

  rows first(128), second(128);  // 0 begins alone; then it decodes while the others' prompts come
  for (std::size_t i = 0; i < 70; ++i) first.add(prompts[0][i], int(i), 0, i == 69);
  together.decode(first.get());
  second.add(7, 70, 0, true);
  int at[4] = {0, 0, 0, 0};
  for (int s = 1; s < 4; ++s) {
    for (std::size_t i = 0; i < lengths[s]; ++i)
      second.add(prompts[std::size_t(s)][i], int(i), s, i + 1 == lengths[s]);
    at[s] = second.get().n_tokens - 1;
  }
  together.decode(second.get());
  for (int s = 0; s < 4; ++s) {
    CAPTURE(s);
    adapter alone(model.get(), small_params(model, 128), options);
    alone.prompt(0, prompts[std::size_t(s)]);
    if (s == 0) {
      rows step(1);
      alone.decode(step.add(7, 70, 0, true).get());
    }
    CHECK(apart(logits_of(together, model, at[s]), logits_of(alone, model)) < rounding_of(model));
    CHECK(together.tokens(s) == (s == 0 ? 71 : std::int64_t(lengths[s])));
  }
}
