// SPDX-License-Identifier: MIT
#include <unistd.h>

#include <atomic>
#include <filesystem>

#include "tests/conformance/backend.hpp"

namespace fm = flashmemory;

namespace {

class cpu_backend final : public conformance_backend {
 public:
  explicit cpu_backend(bool on_file) : on_file_(on_file) {}

  std::string name() const override { return on_file_ ? "cpu, file" : "cpu, memory"; }

  std::unique_ptr<fm::chunk_store> make_store(const fm::store_options& options) const override {
    fm::store_options mine = options;
    if (on_file_) {
      static std::atomic<int> serial{0};
      const auto file =
          "flashmemory_conformance_" + std::to_string(::getpid()) + "_" + std::to_string(serial++);
      mine.backing_path = (std::filesystem::temp_directory_path() / file).string();
    }
    return std::make_unique<fm::tiered_chunk_store>(mine);
  }

  std::unique_ptr<fm::selector> make_selector(fm::chunk_store& store, fm::dual_encoder_indexer& index,
                                              const fm::selection_policy& policy,
                                              const fm::selector_options& options) const override {
    return std::make_unique<fm::selector>(store, index, policy, options);
  }

  std::unique_ptr<fm::selector> make_selector(fm::chunk_store& store, fm::pooled_keys_indexer& index,
                                              const fm::selection_policy& policy,
                                              const fm::selector_options& options) const override {
    return std::make_unique<fm::selector>(store, index, policy, options);
  }

  fm::stream_ref stream() const override { return fm::stream_ref::host(); }

  fm::status append(fm::chunk_store& store, fm::batch items, std::int32_t layer, const std::vector<float>& k,
                    const std::vector<float>& v) const override {
    const auto& g = store.geometry();
    const auto entries = std::int64_t(k.size()) / (g.kv_heads * g.key_dim);
    return store.append(items, layer, fm::view<const float, 3>(k.data(), entries, g.kv_heads, g.key_dim),
                        fm::view<const float, 3>(v.data(), entries, g.kv_heads, g.value_dim), stream());
  }

  fm::status observe(fm::selector& select, fm::batch items, std::int32_t layer,
                     const std::vector<float>& hidden) const override {
    const std::int64_t tokens = tokens_of(items);
    return select.observe(
        items, layer, fm::view<const float, 2>(hidden.data(), tokens, std::int64_t(hidden.size()) / tokens),
        stream());
  }

  fm::status observe_queries(fm::selector& select, fm::batch items, std::int32_t layer,
                             const std::vector<float>& q) const override {
    const std::int64_t tokens = tokens_of(items);
    return select.observe_queries(
        items, layer, fm::view<const float, 2>(q.data(), tokens, std::int64_t(q.size()) / tokens), stream());
  }

  fm::status observe_keys(fm::selector& select, fm::batch items, std::int32_t layer,
                          const std::vector<float>& k) const override {
    const auto& g = select.store().geometry();
    return select.observe_keys(
        items, layer, fm::view<const float, 3>(k.data(), tokens_of(items), g.kv_heads, g.key_dim), stream());
  }

  std::vector<std::byte> index_keys(const fm::chunk_store& store, fm::sequence_handle sequence,
                                    std::int32_t lane) const override {
    fm::index_key_pages pages;
    if (store.index_keys(sequence, lane, &pages) != fm::status::ok) return {};
    return {pages.data, pages.data + page_bytes_of(store.geometry(), pages)};
  }

  fm::status attend(const fm::chunk_store& store, fm::batch items, std::int32_t layer,
                    std::int32_t query_heads, const std::vector<float>& q, std::vector<float>& out,
                    std::vector<float>& lse, const fm::attend_options& options) const override {
    const auto& g = store.geometry();
    std::int64_t rows = 0, most = 0;
    fm::prompt_extent prompts;
    prompts.streamed = true;
    prompts.items = items.shape[0];
    for (std::int64_t i = 0; i < items.shape[0]; ++i) {
      rows += items(i).num_tokens;
      most = std::max(most, g.chunks_for(items(i).position + items(i).num_tokens));
    }
    prompts.rows = rows;
    out.assign(std::size_t(rows * query_heads * g.value_dim), -7.0f);
    lse.assign(std::size_t(rows * query_heads), -7.0f);
    std::vector<std::byte> scratch(fm::attend_workspace_bytes(g, query_heads, rows, most, prompts));
    fm::attend_options mine = options;
    mine.scratch = {scratch.data(), scratch.size()};
    mine.lse = fm::view<float, 2>(lse.data(), rows, query_heads);
    return fm::sparse_attend(store, items, layer,
                             fm::view<const float, 3>(q.data(), rows, query_heads, g.key_dim),
                             fm::view<float, 3>(out.data(), rows, query_heads, g.value_dim), mine, stream());
  }

 private:
  static std::int64_t tokens_of(fm::batch items) {
    std::int64_t tokens = 0;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) tokens += items(i).num_tokens;
    return tokens;
  }

  bool on_file_;
};

}  // namespace

const std::vector<std::unique_ptr<conformance_backend>>& conformance_backends() {
  static const auto all = [] {
    std::vector<std::unique_ptr<conformance_backend>> list;
    list.push_back(std::make_unique<cpu_backend>(false));
    list.push_back(std::make_unique<cpu_backend>(true));
    return list;
  }();
  return all;
}
