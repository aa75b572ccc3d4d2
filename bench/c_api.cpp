// SPDX-License-Identifier: MIT
// What the C interface costs on top of C++: the cheapest calls of a step, in pairs.
#include <benchmark/benchmark.h>
#include <flashmemory/c/flashmemory.h>

#include <flashmemory/flashmemory.hpp>
#include <stdexcept>
#include <vector>

namespace flashmemory_bench {
namespace {

namespace fm = flashmemory;

constexpr std::int64_t most = 1 << 15;

void must(fm_status code) {
  if (code == FM_OK) return;
  fm_fault f;
  fm_last_fault(&f);
  throw std::runtime_error(f.text);
}
void must(fm::status code) {
  if (code != fm::status::ok) throw std::runtime_error(fm::to_string(code));
}

struct row {
  std::vector<float> values = std::vector<float>(64, 0.5f);
  std::int64_t shape[3] = {1, 1, 16};
  fm_tensor t{};

  row() {
    t.data = values.data();
    t.device.device_type = FM_CPU;
    t.ndim = 3;
    t.dtype.code = FM_FLOAT;
    t.dtype.bits = 32;
    t.dtype.lanes = 1;
    t.shape = shape;
  }
};

/// One layer and one head of 16: what is left is the calls themselves.
struct through_c {
  fm_store* store = nullptr;
  fm_indexer* index = nullptr;
  fm_selector* select = nullptr;
  fm_attention* attention = nullptr;
  fm_batch_item item{};
  row k, out;

  through_c() {
    fm_store_options so;
    must(fm_init_store_options(&so, sizeof(so)));
    so.layers = so.kv_heads = 1;
    so.key_dim = so.value_dim = 16;
    so.fast_bytes = so.backing_bytes = 64 << 20;
    must(fm_store_open(&so, &store));
    must(fm_indexer_recency(&index));
    fm_policy policy;
    must(fm_init_policy(&policy, sizeof(policy)));
    policy.mode = 0;  // no refresh ever costs anything
    must(fm_selector_open(store, index, &policy, nullptr, &select));
    fm_attention_options ao;
    must(fm_init_attention_options(&ao, sizeof(ao)));
    ao.query_heads = 1;
    ao.max_chunks = most / 64 + 1;
    ao.threads.concurrency = 1;
    must(fm_attention_open(store, &ao, &attention));
    fm_sequence_options each;
    must(fm_init_sequence_options(&each, sizeof(each)));
    each.max_tokens = most;
    must(fm_sequence_open(store, &each, &item.sequence));
    must(fm_attach(select, item.sequence, nullptr));
    item.num_tokens = 1;
  }
  ~through_c() {
    fm_attention_close(attention);
    fm_selector_close(select);
    fm_store_close(store);
    fm_indexer_close(index);
  }
  void append() {
    if (item.position == most) {
      must(fm_sequence_truncate(store, item.sequence, 0));
      item.position = 0;
    }
    must(fm_append(store, &item, 1, 0, &k.t, &k.t, nullptr));
    ++item.position;
  }
};

struct in_cpp {
  fm::tiered_chunk_store store{[] {
    fm::store_options o;
    o.geometry.layers = o.geometry.kv_heads = 1;
    o.geometry.key_dim = o.geometry.value_dim = 16;
    o.fast_bytes = o.backing_bytes = 64 << 20;
    return o;
  }()};
  fm::recency_indexer index;
  fm::selection_policy policy = [] {
    fm::selection_policy p;
    p.mode = fm::selection_mode::everything;
    return p;
  }();
  fm::selector select{store, index, policy};
  fm::batch_item item;
  std::vector<float> k = std::vector<float>(64, 0.5f), out = std::vector<float>(64);
  std::vector<std::byte> scratch;

  in_cpp() {
    fm::sequence_options each;
    each.max_tokens = most;
    item.sequence = store.open(each);
    select.attach(item.sequence);
    item.num_tokens = 1;
    scratch.resize(fm::attend_workspace_bytes(store.geometry(), 1, 1, most / 64 + 1));
  }
  fm::batch items() const { return fm::batch(&item, 1); }
  fm::const_tensor<3> rows() const { return {k.data(), fm::dtype::f32, 1, 1, 16}; }
  void append() {
    if (item.position == most) {
      must(store.truncate(item.sequence, 0));
      item.position = 0;
    }
    must(store.append(items(), 0, rows(), rows(), fm::stream_ref::host()));
    ++item.position;
  }
};

void append_c(benchmark::State& state) {
  through_c w;
  for (auto _ : state) w.append();
}
void append_cpp(benchmark::State& state) {
  in_cpp w;
  for (auto _ : state) w.append();
}

void select_c(benchmark::State& state) {
  through_c w;
  w.append();
  w.item.position = 0;
  must(fm_select_chunks(w.select, &w.item, 1, nullptr));
  for (auto _ : state) must(fm_select_chunks(w.select, &w.item, 1, nullptr));
}
void select_cpp(benchmark::State& state) {
  in_cpp w;
  w.append();
  w.item.position = 0;
  must(fm::select_chunks(w.select, w.items(), fm::stream_ref::host()));
  for (auto _ : state) must(fm::select_chunks(w.select, w.items(), fm::stream_ref::host()));
}

void attend_c(benchmark::State& state) {
  through_c w;
  w.append();
  w.item.position = 0;
  for (auto _ : state) must(fm_sparse_attend(w.attention, &w.item, 1, 0, &w.k.t, &w.out.t, nullptr, nullptr));
}
void attend_cpp(benchmark::State& state) {
  in_cpp w;
  w.append();
  w.item.position = 0;
  fm::attend_options how;
  how.scratch = {w.scratch.data(), w.scratch.size()};
  how.threads = fm::serial_threads();
  for (auto _ : state)
    must(fm::sparse_attend(w.store, w.items(), 0, w.rows(), {w.out.data(), fm::dtype::f32, 1, 1, 16}, how,
                           fm::stream_ref::host()));
}

BENCHMARK(append_cpp)->Name("c_api/append/cpp");
BENCHMARK(append_c)->Name("c_api/append/c");
BENCHMARK(select_cpp)->Name("c_api/select_chunks_idle/cpp");
BENCHMARK(select_c)->Name("c_api/select_chunks_idle/c");
BENCHMARK(attend_cpp)->Name("c_api/sparse_attend/cpp");
BENCHMARK(attend_c)->Name("c_api/sparse_attend/c");

}  // namespace
}  // namespace flashmemory_bench
