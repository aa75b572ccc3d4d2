// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <functional>

#include "one_model.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace llama_test;
using Catch::Contains;

namespace {

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const flashmemory::error& e) {
    return e.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("what a store cannot do to a sequence is refused by its name, and changes nothing", "[llama_cpp]") {
  const std::string name = GENERATE(as<std::string>(), "smollm2", "gemma3");
  FLASHMEMORY_LLAMA_MODEL(model, name);
  CAPTURE(name);
  adapter_options options;
  options.max_tokens = 2048;
  options.max_sequences = 2;
  options.max_rollback_tokens = 16;
  adapter engine(model.get(), small_params(model, 512), options);
  engine.prompt(0, some_tokens(model, 900, 3));
  CHECK_THAT(refusal([&] { engine.seq_rm(0, 10, 20); }), Contains("sequence 0") && Contains("in the middle"));
  CHECK_THAT(refusal([&] { engine.seq_rm(0, 0, 20); }), Contains("in the middle"));
  CHECK_THAT(refusal([&] { engine.seq_add(0, 10, -1, -5); }), Contains("context shift"));
  CHECK_THAT(refusal([&] { engine.seq_cp(0, 1, 0, 100); }), Contains("only the whole sequence"));
  CHECK_THAT(refusal([&] { engine.seq_cp(0, 0, -1, -1); }), Contains("sequence 0 is not empty"));
  CHECK_THAT(refusal([&] { engine.seq_rm(2, 0, -1); }), Contains("sequence 2 is not one of 2"));
  if (name == "gemma3")
    CHECK_THAT(refusal([&] { engine.seq_rm(0, 850, -1); }), Contains("window") && Contains("850 of 900"));
  CHECK(engine.tokens(0) == 900);
  engine.seq_rm(0, 890, -1);
  CHECK(engine.tokens(0) == 890);
}

TEST_CASE("a batch that does not go on where its sequences end is refused, and changes nothing",
          "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "smollm2");
  adapter_options options;
  options.max_tokens = 128;
  options.max_sequences = 2;
  adapter engine(model.get(), small_params(model), options);
  engine.prompt(0, some_tokens(model, 10, 3));
  rows gap(8), twice(8), apart_rows(8), beyond(8), none(8), much(80);
  CHECK_THAT(refusal([&] { engine.decode(gap.add(1, 11, 0, true).get()); }), Contains("position 11, not 10"));
  CHECK_THAT(refusal([&] { engine.decode(twice.add(1, 10, 0, true).add(2, 10, 0, true).get()); }),
             Contains("position 10, not 11"));
  apart_rows.add(1, 10, 0, false).add(1, 0, 1, true).add(1, 11, 0, true);
  CHECK_THAT(refusal([&] { engine.decode(apart_rows.get()); }), Contains("sequence 0 lie apart"));
  CHECK_THAT(refusal([&] { engine.decode(beyond.add(1, 0, 2, true).get()); }),
             Contains("sequence 2 is not one of 2"));
  CHECK_THAT(refusal([&] { engine.decode(none.get()); }), Contains("0 tokens, not 1 to 64"));
  for (int i = 0; i < 65; ++i) much.add(1, 10 + i, 0, false);
  CHECK_THAT(refusal([&] { engine.decode(much.get()); }), Contains("65 tokens, not 1 to 64"));
  CHECK_THAT(refusal([&] { engine.prompt(0, some_tokens(model, 119, 3)); }),
             Contains("119 tokens does not fit"));
  CHECK(engine.tokens(0) == 10);
  CHECK(engine.tokens(1) == 0);
  engine.prompt(0, some_tokens(model, 118, 3));
  rows full(1);
  CHECK_THAT(refusal([&] { engine.decode(full.add(1, 128, 0, true).get()); }),
             Contains("context of 128 tokens"));
}

TEST_CASE("options and contexts that cannot work are refused by their names", "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "smollm2");
  const auto refused = [&](const std::function<void(llama_context_params&, adapter_options&)>& change) {
    auto params = small_params(model);
    adapter_options options;
    options.max_tokens = 512;
    change(params, options);
    return refusal([&] { adapter engine(model.get(), params, options); });
  };
  CHECK_THAT(refused([](auto& p, auto&) { p.type_k = p.type_v = GGML_TYPE_Q8_0; }),
             Contains("type_k") && Contains("q8_0"));
  CHECK_THAT(refused([](auto& p, auto&) { p.type_v = GGML_TYPE_BF16; }),
             Contains("type_k and type_v differ"));
  CHECK_THAT(refused([](auto& p, auto&) { p.n_threads = 0; }), Contains("n_threads is 0"));
  CHECK_THAT(refused([](auto& p, auto&) { p.n_ubatch = 0; }), Contains("n_ubatch is 0"));
  CHECK_THAT(refused([](auto& p, auto&) { p.cb_eval = [](ggml_tensor*, bool, void*) { return true; }; }),
             Contains("cb_eval is taken"));
  CHECK_THAT(refused([](auto&, auto& o) { o.policy = "best"; }),
             Contains("'best'") && Contains("full, lsa, quest, recency"));
  CHECK_THAT(refused([](auto&, auto& o) { o.max_tokens = 8193; }), Contains("8193") && Contains("8192"));
  CHECK_THAT(refused([](auto&, auto& o) { o.max_sequences = 0; }), Contains("max_sequences is 0"));
  CHECK_THAT(refused([](auto&, auto& o) { o.policy = "lsa", o.indexer = "/nowhere/indexer"; }),
             Contains("/nowhere/indexer"));
  CHECK_THAT(refused([](auto&, auto& o) { o.policy = "lsa", o.indexer = LLAMA_TINY_INDEXER; }),
             Contains("hidden states") && Contains("576"));
  const flashmemory_test::temporary_folder folder;
  CHECK_THAT(refused([&](auto&, auto& o) { o.policy = "quest", o.backing_path = folder.path(); }),
             Contains(folder.path()));
}

TEST_CASE("bf16 and f32 caches serve as f16 does", "[llama_cpp]") {
  FLASHMEMORY_LLAMA_MODEL(model, "smollm2");
  const auto prompt = some_tokens(model, 90, 5);
  auto settings = small_settings(model, 128);
  const auto plain = make_plain(model, settings);
  plain->prompt(prompt);
  for (const ggml_type type : {GGML_TYPE_BF16, GGML_TYPE_F32}) {
    settings.cache = type;
    const auto engine = make_adapted(model, settings);
    engine->prompt(prompt);
    CHECK(engine->adapted()->store().geometry().type ==
          (type == GGML_TYPE_BF16 ? flashmemory::dtype::bf16 : flashmemory::dtype::f32));
    CHECK(apart(logits_of(*plain, model), logits_of(*engine, model)) < (type == GGML_TYPE_BF16 ? 0.3 : 0.05));
  }
}
