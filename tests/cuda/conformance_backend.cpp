// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/attend.hpp>
#include <flashmemory/cuda/chunk_tables.hpp>
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <map>

#include "src/core/convert.hpp"
#include "tests/conformance/backend.hpp"
#include "tests/cuda/gpu.hpp"

namespace fm = flashmemory;

namespace {

using flashmemory_test::device_array;
using flashmemory_test::must;

constexpr std::int64_t max_chunks = 128;

/// Tensors travel there and back with every call, which is done when the stream is.
class cuda_backend final : public conformance_backend {
 public:
  std::string name() const override { return flashmemory_test::has_gpu() ? "cuda" : "no CUDA device"; }

  std::unique_ptr<fm::chunk_store> make_store(const fm::store_options& options) const override {
    if (!flashmemory_test::has_gpu()) return nullptr;
    if (!stream_) stream_ = std::make_unique<flashmemory_test::device_stream>();
    fm::store_options mine = options;
    mine.geometry.index_keys.layout = fm::index_key_layout::planar;
    return fm::cuda::make_store(mine);
  }

  std::unique_ptr<fm::selector> make_selector(fm::chunk_store& store, fm::dual_encoder_indexer& index,
                                              const fm::selection_policy& policy,
                                              const fm::selector_options& options) const override {
    fm::cuda::device_selector_options device;
    device.weights = fm::dtype::f32;
    return fm::cuda::make_selector(dynamic_cast<fm::tiered_chunk_store&>(store), index.config(), policy,
                                   options, device);
  }

  std::unique_ptr<fm::selector> make_selector(fm::chunk_store& store, fm::pooled_keys_indexer& index,
                                              const fm::selection_policy& policy,
                                              const fm::selector_options& options) const override {
    return fm::cuda::make_selector(dynamic_cast<fm::tiered_chunk_store&>(store), index.config(), policy,
                                   options);
  }

  fm::stream_ref stream() const override { return stream_->ref(); }

  fm::status append(fm::chunk_store& store, fm::batch items, std::int32_t layer, const std::vector<float>& k,
                    const std::vector<float>& v) const override {
    const auto& g = store.geometry();
    const auto entries = std::int64_t(k.size()) / (g.kv_heads * g.key_dim);
    const device_array<float> keys(k), values(v);
    const fm::status code =
        store.append(items, layer, fm::view<const float, 3>(keys.data(), entries, g.kv_heads, g.key_dim),
                     fm::view<const float, 3>(values.data(), entries, g.kv_heads, g.value_dim), stream());
    stream_->wait();
    return code;
  }

  fm::status observe(fm::selector& select, fm::batch items, std::int32_t layer,
                     const std::vector<float>& hidden) const override {
    const std::int64_t tokens = tokens_of(items);
    const device_array<float> rows(hidden);
    const fm::status code = select.observe(
        items, layer, fm::view<const float, 2>(rows.data(), tokens, std::int64_t(hidden.size()) / tokens),
        stream());
    stream_->wait();
    return code;
  }

  fm::status observe_queries(fm::selector& select, fm::batch items, std::int32_t layer,
                             const std::vector<float>& q) const override {
    const std::int64_t tokens = tokens_of(items);
    const device_array<float> rows(q);
    const fm::status code = select.observe_queries(
        items, layer, fm::view<const float, 2>(rows.data(), tokens, std::int64_t(q.size()) / tokens),
        stream());
    stream_->wait();
    return code;
  }

  /// With a gap behind each head, as of K in a fused tensor.
  fm::status observe_keys(fm::selector& select, fm::batch items, std::int32_t layer,
                          const std::vector<float>& k) const override {
    const auto& g = select.store().geometry();
    constexpr std::int64_t gap = 3;
    const std::int64_t tokens = tokens_of(items), dim = g.key_dim;
    std::vector<float> wide(std::size_t(tokens * g.kv_heads * (dim + gap)), -1e30f);
    for (std::int64_t h = 0; h < tokens * g.kv_heads; ++h)
      std::copy_n(k.data() + h * dim, dim, wide.data() + h * (dim + gap));
    const device_array<float> rows(wide);
    fm::const_tensor<3> heads(rows.data(), fm::dtype::f32, tokens, g.kv_heads, dim);
    heads.stride[0] = g.kv_heads * (dim + gap);
    heads.stride[1] = dim + gap;
    const fm::status code = select.observe_keys(items, layer, heads, stream());
    stream_->wait();
    return code;
  }

  std::vector<std::byte> index_keys(const fm::chunk_store& store, fm::sequence_handle sequence,
                                    std::int32_t lane) const override {
    fm::index_key_pages pages;
    if (store.index_keys(sequence, lane, &pages) != fm::status::ok) return {};
    std::vector<std::byte> bytes(page_bytes_of(store.geometry(), pages));
    stream_->wait();
    if (!bytes.empty()) must(cudaMemcpy(bytes.data(), pages.data, bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }

  /// Item by item, since a plan's rows all have the same number of query tokens; always by the same plan, so that
  /// results of different stores can be compared bit by bit.
  fm::status attend(const fm::chunk_store& store, fm::batch items, std::int32_t layer,
                    std::int32_t query_heads, const std::vector<float>& q, std::vector<float>& out,
                    std::vector<float>& lse, const fm::attend_options& options) const override {
    const auto& g = store.geometry();
    fm::cuda::chunk_tables& tables = tables_for();
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) rows += items(i).num_tokens;
    std::vector<std::byte> narrow(q.size() * fm::size_of(g.type));
    for (std::size_t i = 0; i < q.size(); ++i)
      fm::detail::store_float(narrow.data(), g.type, std::int64_t(i), q[i]);
    const device_array<std::byte> queries(narrow);
    const device_array<float> outputs(std::size_t(rows * query_heads * g.value_dim)),
        sums(std::size_t(rows * query_heads));
    bool prompts = options.reach == fm::attend_reach::everything;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) prompts |= items(i).num_tokens > fm::most_decode_tokens;
    if (prompts) {
      fm::cuda::prompt_attention_options o;
      o.geometry = g;
      o.query_heads = query_heads;
      o.max_tokens = rows;
      o.max_items = items.shape[0];
      o.max_chunks = max_chunks;
      o.wave_bytes = 5 * fm::chunk_layout(g).layer_bytes();  // several waves
      fm::cuda::prompt_attention attention(fm::cuda::context{}, o);
      fm::attend_options mine;
      mine.softmax_scale = options.softmax_scale;
      mine.reach = options.reach;
      mine.lse = fm::view<float, 2>(sums.data(), rows, query_heads);
      const auto code = attention.attend(
          store, items, layer, fm::const_tensor<3>(queries.data(), g.type, rows, query_heads, g.key_dim),
          fm::tensor<3>(outputs.data(), fm::dtype::f32, rows, query_heads, g.value_dim), mine, stream());
      stream_->wait();
      out = outputs.get();
      lse = sums.get();
      return code;
    }
    std::int64_t row = 0;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) {
      const std::int64_t n = items(i).num_tokens;
      fm::cuda::attend_shape shape;
      shape.geometry = g;
      shape.query_heads = query_heads;
      shape.query_tokens = std::int32_t(n);
      shape.rows = 1;
      shape.max_chunks = max_chunks;
      const auto plan = fm::cuda::plan_attend(shape);
      fm::fault error;
      if (const auto code = tables.update(store, fm::batch(&items.data[i], 1), layer, stream(), &error);
          code != fm::status::ok)
        return code;
      const device_array<std::byte> scratch(fm::cuda::attend_workspace_bytes(plan));
      const device_array<std::uint32_t> counters(std::vector<std::uint32_t>(fm::cuda::attend_counters, 0));
      fm::attend_options mine;
      mine.softmax_scale = options.softmax_scale;
      mine.scratch = {scratch.data(), scratch.size()};
      mine.counters = counters.data();
      mine.lse = fm::view<float, 2>(sums.data() + row * query_heads, n, query_heads);
      const auto code = fm::cuda::sparse_attend(
          plan, tables.rows(), layer,
          fm::const_tensor<3>(
              queries.data() + std::size_t(row * query_heads * g.key_dim) * fm::size_of(g.type), g.type, n,
              query_heads, g.key_dim),
          fm::tensor<3>(outputs.data() + row * query_heads * g.value_dim, fm::dtype::f32, n, query_heads,
                        g.value_dim),
          mine, stream());
      if (code != fm::status::ok) return code;
      stream_->wait();
      row += n;
    }
    out = outputs.get();
    lse = sums.get();
    return fm::status::ok;
  }

 private:
  static std::int64_t tokens_of(fm::batch items) {
    std::int64_t tokens = 0;
    for (std::int64_t i = 0; i < items.shape[0]; ++i) tokens += items(i).num_tokens;
    return tokens;
  }

  fm::cuda::chunk_tables& tables_for() const {
    if (!tables_) {
      fm::cuda::chunk_tables_options o;
      o.rows = 1;
      o.max_chunks = max_chunks;
      tables_ = std::make_unique<fm::cuda::chunk_tables>(fm::cuda::context{}, o);
    }
    return *tables_;
  }

  mutable std::unique_ptr<flashmemory_test::device_stream> stream_;
  mutable std::unique_ptr<fm::cuda::chunk_tables> tables_;
};

}  // namespace

const std::vector<std::unique_ptr<conformance_backend>>& conformance_backends() {
  static const auto all = [] {
    std::vector<std::unique_ptr<conformance_backend>> list;
    list.push_back(std::make_unique<cuda_backend>());
    return list;
  }();
  return all;
}
