// SPDX-License-Identifier: MIT
#include "tests/conformance/shadow.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;

namespace {

fm::store_options small_store(fm::dtype type, std::int64_t sequences) {
  fm::store_options options;
  auto& g = options.geometry;
  g.layers = 2;
  g.kv_heads = 2;
  g.key_dim = 32;
  g.value_dim = 16;
  g.type = type;
  g.entries_per_chunk = 8;
  g.index_keys.lanes = 1;
  g.index_keys.tokens_per_key = 4;
  options.fast_bytes = std::size_t(sequences) << 20;
  options.backing_bytes = std::size_t(sequences) << 20;
  options.max_sequences = std::int32_t(sequences) + 1;
  return options;
}

fm::selection_policy small_policy(double fraction) {
  fm::selection_policy policy;
  policy.interval = 16;
  policy.budget_fraction = fraction;
  if (fraction >= 1) policy.mode = fm::selection_mode::everything;
  return policy;
}

/// A dual encoder with random weights: selection is arbitrary but reproducible, and goes through keys and
/// queries.
fm::dual_encoder_indexer random_indexer_of(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto noise = [&](int count) {
    std::vector<float> values(std::size_t(count), 0.0f);
    for (float& x : values) x = normal(random);
    return values;
  };
  const int hidden = shadow_engine::hidden_size;
  fm::dual_encoder_config config;
  config.hidden = hidden;
  config.rank = 8;
  config.heads = 4;
  config.key_window = 8;
  config.bf16_rounding = false;
  fm::retriever_weights r;
  r.name = "l1";
  r.query_layer = 1;
  r.key_layer = 0;
  r.wq_a = noise(8 * hidden);
  r.q_norm = noise(8);
  r.wq_b = noise(4 * 128 * 8);
  r.weights_proj = noise(4 * hidden);
  r.wk = noise(128 * hidden);
  config.retrievers.push_back(r);
  return fm::dual_encoder_indexer(config);
}

template <class F>
void on_every_backend(const F& test) {
  for (const auto& backend : conformance_backends()) {
    const auto seed = flashmemory_test::fresh_seed();
    CAPTURE(backend->name(), seed);
    if (!backend->make_store(small_store(fm::dtype::f32, 1))) {
      WARN("skipped: " << backend->name());
      continue;
    }
    test(*backend, seed);
  }
}

}  // namespace

TEST_CASE("decoding attends to the resident entries exactly as the double-precision reference does",
          "[conformance]") {
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  const auto prompt = GENERATE(1, 7, 8, 9, 64, 131);
  CAPTURE(fm::to_string(type), prompt);
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(type, 1), index, small_policy(0.3), 4, seed);
    auto sequence = engine.open(prompt + 60);
    engine.forward({&sequence}, {prompt}, true);
    for (int step = 0; step < 60; ++step) engine.forward({&sequence}, {1}, true);
    engine.check_contents(sequence);
  });
}

TEST_CASE("one store is the only cache: prompts in pieces, decoding and follow-up prompts over everything",
          "[conformance]") {
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16);
  const auto reach = GENERATE(fm::attend_reach::resident, fm::attend_reach::everything);
  CAPTURE(fm::to_string(type), int(reach));
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(type, 2), index, small_policy(0.2), 4, seed);
    auto a = engine.open(900), b = engine.open(900);
    engine.set_reach(reach);
    for (const std::int32_t piece : {64, 64, 28, 1}) engine.forward({&a}, {piece}, true);
    engine.set_reach(fm::attend_reach::resident);
    for (int step = 0; step < 20; ++step) engine.forward({&a}, {1}, true);
    // A second turn, beside another sequence that decodes or has a prompt of its own.
    engine.set_reach(reach);
    for (const std::int32_t piece : {100, 63, 9}) engine.forward({&b, &a}, {1 + piece / 2, piece}, true);
    engine.set_reach(fm::attend_reach::resident);
    for (int step = 0; step < 20; ++step) engine.forward({&a, &b}, {1, 2}, true);
    engine.check_contents(a);
    engine.check_contents(b);
    REQUIRE(engine.store().counters().faults == 0);
  });
}

TEST_CASE("empty items of a batch are skipped by every call of a step, with their rows", "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(fm::dtype::bf16, 2), index, small_policy(0.3), 4, seed);
    auto a = engine.open(300), b = engine.open(300);
    engine.forward({nullptr, &a, nullptr, &b}, {5, 60, 1, 47}, true);
    for (int step = 0; step < 60; ++step) {
      CAPTURE(step);
      // Sequences come and go between rows, as in an engine whose batch has fixed places.
      if (step % 3 == 0) engine.forward({&a, nullptr, &b}, {1, 3, 2}, true);
      if (step % 3 == 1) engine.forward({nullptr, &b}, {1, 1}, true);
      if (step % 3 == 2) engine.forward({&a, nullptr}, {2, 8}, true);
    }
    engine.forward({nullptr}, {4}, true);
    engine.check_contents(a);
    engine.check_contents(b);
    REQUIRE(engine.store().counters().faults == 0);
  });
}

TEST_CASE("while refreshes are under way decoding attends to whatever set is in force", "[conformance]") {
  const auto late = GENERATE(fm::late_policy::keep, fm::late_policy::wait);
  CAPTURE(int(late));
  on_every_backend([&](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    fm::selector_options options;
    options.apply = fm::apply_mode::overlapped;
    options.max_staleness = 2;
    options.late = late;
    shadow_engine engine(backend, small_store(fm::dtype::bf16, 4), index, small_policy(0.3), 4, seed,
                         options);
    std::vector<std::unique_ptr<shadow_engine::sequence>> live;
    for (int i = 0; i < 4; ++i) live.push_back(std::make_unique<shadow_engine::sequence>(engine.open(400)));
    for (auto& s : live) engine.forward({s.get()}, {100}, false);
    std::vector<shadow_engine::sequence*> batch;
    for (auto& s : live) batch.push_back(s.get());
    for (int step = 0; step < 150; ++step) engine.forward(batch, {1, 1, 1, 1}, true);
    for (auto& s : live) {
      engine.check_contents(*s);
      fm::selection_report report;
      REQUIRE(engine.selector().report(s->handle, &report) == fm::status::ok);
      REQUIRE(report.refreshes >= 8);
    }
    const auto counters = engine.selector().counters();
    REQUIRE(counters.refreshes_failed == 0);
    REQUIRE(engine.store().counters().faults == 0);
  });
}

TEST_CASE("with a budget at or above the context every output bit is that of full residency",
          "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    auto covering = small_policy(0.3);
    covering.budget_fraction = 0;
    covering.max_chunks = 1000;
    shadow_engine full(backend, small_store(fm::dtype::bf16, 1), index, small_policy(1), 8, seed);
    shadow_engine selected(backend, small_store(fm::dtype::bf16, 1), index, covering, 8, seed);
    auto a = full.open(300);
    auto b = selected.open(300);
    full.forward({&a}, {200}, false);
    selected.forward({&b}, {200}, false);
    for (int step = 0; step < 100; ++step) {
      CAPTURE(step);
      REQUIRE(full.forward({&a}, {1}, false) == selected.forward({&b}, {1}, false));
    }
  });
}

TEST_CASE("the result depends on which chunks are resident, not on how they came to be", "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine straight(backend, small_store(fm::dtype::bf16, 2), index, small_policy(0.3), 4, seed);
    shadow_engine detour(backend, small_store(fm::dtype::bf16, 2), index, small_policy(0.3), 4, seed);
    auto other = detour.open(400);  // occupies slots, so that the other sequence's chunks lie elsewhere
    auto a = straight.open(320);
    auto b = detour.open(320);
    straight.random().seed(seed);
    detour.forward({&other}, {333}, false);
    detour.random().seed(seed);
    straight.forward({&a}, {256}, false);
    detour.forward({&b}, {256}, false);
    for (int step = 0; step < 60; ++step) {
      const auto wanted = straight.resident(a);
      std::vector<fm::chunk_id> sealed;
      fm::sequence_info info;
      REQUIRE(straight.store().info(a.handle, &info) == fm::status::ok);
      for (const auto id : wanted)
        if (id < info.complete_chunks) sealed.push_back(id);
      // Send the other store's chunks away and back before every step.
      REQUIRE(detour.store().recall(b.handle, {}, nullptr, backend.stream()) == fm::status::ok);
      fm::recall_report report;
      REQUIRE(detour.store().recall(b.handle, fm::view<const fm::chunk_id, 1>(sealed.data(), sealed.size()),
                                    &report, backend.stream()) == fm::status::ok);
      REQUIRE(report.refused == 0);
      REQUIRE(detour.resident(b) == wanted);
      CAPTURE(step);
      REQUIRE(straight.forward({&a}, {1}, false) == detour.forward({&b}, {1}, false));
    }
  });
}

TEST_CASE("the same inputs select the same chunks", "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    std::vector<std::vector<fm::chunk_id>> history[2];
    for (auto& run : history) {
      shadow_engine engine(backend, small_store(fm::dtype::f16, 1), index, small_policy(0.25), 4, seed);
      auto sequence = engine.open(400);
      engine.forward({&sequence}, {300}, false);
      for (int step = 0; step < 100; ++step) {
        engine.forward({&sequence}, {1}, false);
        run.push_back(engine.resident(sequence));
      }
    }
    REQUIRE(history[0] == history[1]);
  });
}

TEST_CASE("generated tokens are recalled like those of the prompt", "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(fm::dtype::bf16, 1), index, small_policy(0.2), 4, seed);
    auto sequence = engine.open(600);
    engine.forward({&sequence}, {3}, false);
    for (int step = 0; step < 590; ++step) engine.forward({&sequence}, {1}, step % 37 == 0);
    engine.check_contents(sequence);
    fm::sequence_info info;
    REQUIRE(engine.store().info(sequence.handle, &info) == fm::status::ok);
    REQUIRE(info.resident_chunks < info.complete_chunks / 2);
  });
}

TEST_CASE("speculative steps with rollback attend as plain steps do", "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(fm::dtype::bf16, 1), index, small_policy(0.3), 4, seed);
    auto sequence = engine.open(500);
    engine.forward({&sequence}, {150}, true);
    std::uniform_int_distribution<std::int32_t> drafts(1, fm::most_decode_tokens);
    for (int step = 0; step < 50; ++step) {
      const auto count = drafts(engine.random());
      engine.forward({&sequence}, {count}, true);
      const auto accepted = std::uniform_int_distribution<std::int32_t>(0, count)(engine.random());
      if (accepted < count) engine.truncate(sequence, sequence.tokens - count + accepted);
    }
    engine.check_contents(sequence);
  });
}

TEST_CASE("sixty-four sequences that join, fork, roll back and leave never see each other's data",
          "[conformance]") {
  on_every_backend([](const conformance_backend& backend, std::uint32_t seed) {
    auto index = random_indexer_of(seed);
    shadow_engine engine(backend, small_store(fm::dtype::bf16, 64), index, small_policy(0.25), 4, seed);
    std::vector<std::unique_ptr<shadow_engine::sequence>> live;
    auto& random = engine.random();
    const auto pick = [&](std::int64_t low, std::int64_t high) {
      return std::uniform_int_distribution<std::int64_t>(low, high)(random);
    };
    for (int step = 0; step < 120; ++step) {
      while (live.size() < 48 || (live.size() < 64 && pick(0, 3) == 0)) {
        if (!live.empty() && pick(0, 4) == 0) {
          const auto& parent = *live[std::size_t(pick(0, std::int64_t(live.size()) - 1))];
          live.push_back(std::make_unique<shadow_engine::sequence>(engine.fork(parent, parent.tokens + 150)));
        } else {
          auto s = std::make_unique<shadow_engine::sequence>(engine.open(300));
          engine.forward({s.get()}, {std::int32_t(pick(1, 120))}, false);
          live.push_back(std::move(s));
        }
      }
      std::vector<shadow_engine::sequence*> batch;
      std::vector<std::int32_t> counts;
      for (auto& s : live)
        if (pick(0, 9) > 0) {
          batch.push_back(s.get());
          counts.push_back(std::int32_t(pick(1, 2)));
        }
      std::shuffle(batch.begin(), batch.end(), random);
      engine.forward(batch, counts, step % 4 == 0);
      for (std::size_t i = live.size(); i-- > 0;) {
        if (live[i]->tokens > 20 && pick(0, 30) == 0)
          engine.truncate(*live[i], live[i]->tokens - pick(1, 12));
        if (live[i]->tokens > 140 || pick(0, 40) == 0) {
          engine.check_contents(*live[i]);
          engine.close(*live[i]);
          live.erase(live.begin() + std::ptrdiff_t(i));
        }
      }
      const auto usage = engine.store().usage();
      REQUIRE(usage.fast_bytes <= usage.fast_budget_bytes);
      REQUIRE(usage.backing_bytes <= usage.backing_budget_bytes);
      const auto total = engine.store().counters();
      REQUIRE(total.selected == total.hits + total.recalled + total.refused);
      REQUIRE(total.bytes_recalled ==
              total.recalled * std::int64_t(fm::chunk_layout(engine.store().geometry()).chunk_bytes()));
      REQUIRE(total.faults == 0);
    }
    for (auto& s : live) {
      engine.check_contents(*s);
      engine.close(*s);
    }
    REQUIRE(engine.store().usage().sequences == 0);
    REQUIRE(engine.store().usage().backing_bytes == 0);
  });
}
