// SPDX-License-Identifier: MIT
// An engine that keeps its own paged KV cache and uses this library for selection and attention alone: its cache becomes a
// chunk_reader by six functions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <flashmemory/flashmemory.hpp>
#include <memory>
#include <random>
#include <vector>

namespace fm = flashmemory;
constexpr int kLayers = 2, kHeads = 8, kKvHeads = 2, kDim = 64, kPage = 32, kTokens = 4096, kNeedle = 1234;

/// The engine's cache of one sequence: pages of all layers, in the layout of fm::chunk_layout, and which of them attention
/// may read. A real one would keep the others elsewhere.
class paged_cache final : public fm::chunk_reader {
 public:
  explicit paged_cache(const fm::kv_geometry& geometry) : layout_(geometry) {}

  const fm::kv_geometry& geometry() const noexcept override { return layout_.geometry; }
  fm::status resident(fm::sequence_handle, std::int32_t, fm::resident_set* out,
                      std::uint64_t) const noexcept override {
    *out = {listed_.data(), std::int64_t(listed_.size()), tokens_, version_};
    return fm::status::ok;
  }
  fm::status index_keys(fm::sequence_handle, std::int32_t, fm::index_key_pages*) const noexcept override {
    return fm::status::unsupported;  // this engine has none
  }
  fm::status info(fm::sequence_handle, fm::sequence_info* out) const noexcept override {
    *out = {};
    out->tokens = tokens_;
    out->complete_chunks = tokens_ / kPage;
    out->resident_chunks = std::int64_t(listed_.size());
    return fm::status::ok;
  }
  fm::status read_chunk(fm::sequence_handle, fm::chunk_id chunk,
                        fm::view<std::byte, 1> out) const noexcept override {
    if (chunk < 0 || std::size_t(chunk) >= pages_.size()) return fm::status::out_of_range;
    std::memcpy(out.data, pages_[std::size_t(chunk)].get(), layout_.chunk_bytes());
    return fm::status::ok;
  }
  fm::fault last_fault() const noexcept override { return fault_; }
  void note(const fm::fault& f) const noexcept override {
    fault_ = f;
  }  // optional: attention's faults in one place

  /// One token's K and V of a layer and head.
  void write(int layer, int head, std::int64_t token, const float* k, const float* v) {
    while (std::int64_t(pages_.size()) * kPage <= token)
      pages_.emplace_back(new std::byte[layout_.chunk_bytes()]());
    std::byte* const page = pages_[std::size_t(token / kPage)].get();
    const std::size_t row = std::size_t(token % kPage) * kDim * sizeof(float);
    std::memcpy(page + layout_.key_offset(layer, head) + row, k, kDim * sizeof(float));
    std::memcpy(page + layout_.value_offset(layer, head) + row, v, kDim * sizeof(float));
    tokens_ = token + 1;
  }
  /// What attention reads from now on; `ids` ascending.
  void show(const std::vector<fm::chunk_id>& ids) {
    listed_.clear();
    for (const fm::chunk_id id : ids)
      listed_.push_back({id, std::int32_t(std::min<std::int64_t>(kPage, tokens_ - std::int64_t{id} * kPage)),
                         pages_[std::size_t(id)].get()});
    ++version_;
  }

 private:
  fm::chunk_layout layout_;
  std::vector<std::unique_ptr<std::byte[]>> pages_;
  std::vector<fm::resident_chunk> listed_;
  std::int64_t tokens_ = 0;
  std::uint64_t version_ = 1;
  mutable fm::fault fault_;
};

static void check(fm::status s) {
  if (s != fm::status::ok) throw fm::error(s, fm::to_string(s));
}

int main() try {
  fm::kv_geometry geometry;
  geometry.layers = kLayers, geometry.kv_heads = kKvHeads, geometry.key_dim = geometry.value_dim = kDim;
  geometry.type = fm::dtype::f32, geometry.entries_per_chunk = kPage;
  paged_cache cache(geometry);
  const fm::sequence_handle sequence{0, 1};  // whatever the engine calls it

  // K is noise but for one token, whose K every query below is looking for and whose V is 1.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> wanted(kDim), k(kDim), v(kDim);
  for (float& x : wanted) x = normal(random);
  for (std::int64_t token = 0; token < kTokens; ++token)
    for (int layer = 0; layer < kLayers; ++layer)
      for (int head = 0; head < kKvHeads; ++head) {
        for (int d = 0; d < kDim; ++d) {
          k[std::size_t(d)] = token == kNeedle ? 3 * wanted[std::size_t(d)] : normal(random);
          v[std::size_t(d)] = token == kNeedle ? 1.0f : 0.0f;
        }
        cache.write(layer, head, token, k.data(), v.data());
      }

  // Selection: an indexer that reads queries and keys, and the same policy object that a selector would apply.
  fm::selection_policy policy;
  policy.budget_fraction = 0.1;
  const std::int64_t chunks = kTokens / kPage;
  fm::quest_indexer indexer(geometry, kHeads, 1, chunks);
  std::vector<float> queries(kHeads * kDim);
  for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = wanted[i % kDim];
  const std::vector<const float*> by_layer(kLayers, queries.data());
  std::vector<std::byte> work(indexer.workspace_bytes(geometry, chunks, 0));
  std::vector<float> scores(chunks);
  fm::score_request request;
  request.reader = &cache;
  request.sequence = sequence;
  request.position = kTokens - 1;
  request.chunks = chunks;
  request.queries = by_layer.data();
  request.scratch = {work.data(), work.size()};
  check(indexer.score(request, fm::view<float, 1>(scores.data(), chunks)));
  std::vector<fm::chunk_id> kept(chunks), order(chunks);
  const auto plan = fm::plan_selection(policy, fm::view<const float, 1>(scores.data(), chunks), {},
                                       fm::budget_chunks(policy, geometry, chunks),
                                       fm::view<fm::chunk_id, 1>(kept.data(), chunks),
                                       fm::view<fm::chunk_id, 1>(order.data(), chunks));
  kept.resize(std::size_t(plan.chunks));
  std::sort(kept.begin(), kept.end());
  cache.show(kept);

  // Attention of the newest token over what is shown.
  std::vector<std::byte> scratch(fm::attend_workspace_bytes(geometry, kHeads, 1, chunks));
  fm::attend_options attend;
  attend.scratch = {scratch.data(), scratch.size()};
  std::vector<float> out(kHeads * kDim);
  const fm::batch_item item{sequence, kTokens - 1, 1};
  check(fm::sparse_attend(cache, fm::batch(&item, 1), 0, {queries.data(), fm::dtype::f32, 1, kHeads, kDim},
                          {out.data(), fm::dtype::f32, 1, kHeads, kDim}, attend, fm::stream_ref::host()));
  std::printf("%lld of %lld pages attended to; the planted token gets %.4f of the attention\n",
              (long long)kept.size(), (long long)chunks, double(out[0]));
  if (!(std::abs(out[0] - 1) < 1e-3)) return std::fprintf(stderr, "the planted token was not found\n"), 1;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
