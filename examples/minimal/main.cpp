// SPDX-License-Identifier: MIT
// The whole embedding on random tensors: what an engine does in prefill and on every decode step.
#include <cstdio>
#include <flashmemory/flashmemory.hpp>
#include <random>
#include <vector>

namespace fm = flashmemory;
constexpr int kLayers = 2, kHeads = 8, kKvHeads = 2, kDim = 64, kHidden = 128, kPrompt = 4096, kPiece = 512,
              kSteps = 200;

static std::vector<float> noise(std::int64_t count) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

static void check(fm::status s) {
  if (s != fm::status::ok) throw fm::error(s, fm::to_string(s));
}

int main() try {
  // Set-up: an indexer (a trained one comes from fm::load_dual_encoder(path)), a store, a policy, a selector.
  fm::dual_encoder_config config;
  config.hidden = kHidden, config.rank = 32, config.heads = 4, config.key_window = 16;
  config.retrievers = {{"l1", 1, 0, noise(32 * kHidden), std::vector<float>(32, 1.f), noise(4 * 128 * 32),
                        noise(4 * kHidden), noise(128 * kHidden), 0.f}};
  fm::dual_encoder_indexer indexer(config);

  fm::store_options options;
  options.geometry = {kLayers, kKvHeads, kDim, kDim, fm::dtype::bf16};
  options.geometry.index_keys.lanes = indexer.taps().reads.lanes;
  options.fast_bytes = 4 << 20,
  options.backing_bytes = 64 << 20;  // the tier that attention reads; the complete copy
  fm::tiered_chunk_store store(options);

  fm::selection_policy policy;  // 13.5% of the chunks, refreshed every 64 tokens
  fm::selector selector(store, indexer, policy);
  const auto sequence = store.open(fm::sequence_options_for(policy, options.geometry, kPrompt + kSteps));
  selector.attach(sequence);

  // Scratch for a step of one token, and for a piece of a prompt that attends to what is not resident too.
  const fm::prompt_extent piece{kPiece, 1, true};
  std::vector<std::byte> scratch(fm::attend_workspace_bytes(
      options.geometry, kHeads, 1, store.geometry().chunks_for(kPrompt + kSteps), piece));
  fm::attend_options attend;
  attend.scratch = {scratch.data(), scratch.size()};
  const auto stream = fm::stream_ref::host();
  // [embed]
  const auto forward = [&](std::int64_t position, std::int32_t tokens, fm::item_phase phase) {
    const fm::batch_item item{sequence, position, tokens, phase};
    const fm::batch batch(&item, 1);
    for (std::int32_t layer = 0; layer < kLayers; ++layer) {
      const auto hidden = noise(tokens * kHidden);  // the model's, in an engine
      const auto q = noise(tokens * kHeads * kDim);
      const auto k = noise(tokens * kKvHeads * kDim), v = noise(tokens * kKvHeads * kDim);
      std::vector<float> out(tokens * kHeads * kDim);
      check(selector.observe(batch, layer, {hidden.data(), fm::dtype::f32, tokens, kHidden}, stream));
      check(store.append(batch, layer, {k.data(), fm::dtype::f32, tokens, kKvHeads, kDim},
                         {v.data(), fm::dtype::f32, tokens, kKvHeads, kDim}, stream));
      // A prompt attends to everything, wherever it lies; decoding to what is resident.
      attend.reach =
          phase == fm::item_phase::decode ? fm::attend_reach::resident : fm::attend_reach::everything;
      check(fm::sparse_attend(store, batch, layer, {q.data(), fm::dtype::f32, tokens, kHeads, kDim},
                              {out.data(), fm::dtype::f32, tokens, kHeads, kDim}, attend, stream));
    }
    check(fm::select_chunks(selector, batch, stream));
  };
  for (int at = 0; at < kPrompt; at += kPiece)
    forward(at, kPiece, at + kPiece < kPrompt ? fm::item_phase::prompt : fm::item_phase::prompt_end);
  for (int step = 0; step < kSteps; ++step) forward(kPrompt + step, 1, fm::item_phase::decode);
  // [embed]
  fm::sequence_info info;
  fm::selection_report report;
  check(store.info(sequence, &info));
  check(selector.report(sequence, &report));
  std::printf("%lld tokens, %lld of %lld chunks resident after %lld refreshes, %.1f KiB of %.1f KiB\n",
              (long long)info.tokens, (long long)info.resident_chunks, (long long)info.complete_chunks + 1,
              (long long)report.refreshes, (info.slot_bytes + info.index_key_bytes) / 1024.0,
              info.backing_bytes / 1024.0);
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
