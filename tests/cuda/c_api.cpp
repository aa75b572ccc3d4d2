// SPDX-License-Identifier: MIT
// The C interface over a store on the device, beside the same calls over one in host memory.
#include <flashmemory/c/flashmemory.h>

#include <cmath>
#include <random>

#include "tests/cuda/gpu.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace flashmemory_test;

namespace {

constexpr std::int64_t heads = 4, kv_heads = 2, dim = 64, prompt = 1000, steps = 60;
constexpr std::int32_t layers = 2;

std::string text() {
  fm_fault f;
  fm_last_fault(&f);
  return f.text;
}

/// A tensor of f32 in host or device memory.
struct rows {
  std::int64_t shape[3];
  fm_tensor t{};
  rows(void* data, bool device, std::int64_t tokens, std::int64_t of, std::int32_t rank = 3)
      : shape{tokens, rank == 3 ? of : of * dim, dim} {
    t.data = data;
    t.device.device_type = device ? FM_CUDA : FM_CPU;
    t.ndim = rank;
    t.dtype.code = FM_FLOAT;
    t.dtype.bits = 32;
    t.dtype.lanes = 1;
    t.shape = shape;
  }
};

/// An engine on one backend, with pooled keys.
struct engine {
  bool device;
  void* stream;
  fm_store* store = nullptr;
  fm_indexer* index = nullptr;
  fm_selector* select = nullptr;
  fm_attention* attention = nullptr;
  fm_batch_item item{};

  engine(bool on_device, void* s) : device(on_device), stream(s) {
    fm_pooled_keys_options po;
    REQUIRE(fm_init_pooled_keys_options(&po, sizeof(po)) == FM_OK);
    fm_pooled_keys_lane lane{};
    lane.layer = 1;
    po.query_heads = heads;
    po.kv_heads = kv_heads;
    po.key_dim = dim;
    po.lanes = &lane;
    po.num_lanes = 1;
    REQUIRE(fm_indexer_pooled_keys(&po, &index) == FM_OK);
    fm_store_options so;
    REQUIRE(fm_init_store_options(&so, sizeof(so)) == FM_OK);
    so.layers = layers;
    so.kv_heads = kv_heads;
    so.key_dim = so.value_dim = dim;
    so.type = FM_F32;
    so.entries_per_chunk = 16;
    REQUIRE(fm_indexer_reads(index, &so.index_keys) == FM_OK);
    so.fast_bytes = 64 << 20;
    so.backing_bytes = 64 << 20;
    so.max_sequences = 2;
    so.cuda = device;
    const fm_status opened = fm_store_open(&so, &store);
    CAPTURE(text());
    REQUIRE(opened == FM_OK);
    fm_policy policy;
    REQUIRE(fm_init_policy(&policy, sizeof(policy)) == FM_OK);
    policy.interval = 16;
    policy.budget_fraction = 0.2;
    REQUIRE(fm_selector_open(store, index, &policy, nullptr, &select) == FM_OK);
    fm_attention_options ao;
    REQUIRE(fm_init_attention_options(&ao, sizeof(ao)) == FM_OK);
    ao.query_heads = heads;
    ao.max_tokens = 256;
    ao.max_chunks = 80;
    REQUIRE(fm_attention_open(store, &ao, &attention) == FM_OK);
    fm_sequence_options each;
    REQUIRE(fm_init_sequence_options(&each, sizeof(each)) == FM_OK);
    REQUIRE(fm_sequence_options_for(store, &policy, prompt + steps, 0, &each) == FM_OK);
    REQUIRE(fm_sequence_open(store, &each, &item.sequence) == FM_OK);
    REQUIRE(fm_attach(select, item.sequence, nullptr) == FM_OK);
  }
  ~engine() {
    fm_attention_close(attention);
    fm_selector_close(select);
    fm_store_close(store);
    fm_indexer_close(index);
  }

  /// One layer, of tensors that lie where the store does.
  void layer(std::int32_t l, float* q, float* k, float* v, float* out) {
    const std::int64_t n = item.num_tokens;
    rows query(q, device, n, heads), key(k, device, n, kv_heads), value(v, device, n, kv_heads),
        result(out, device, n, heads), flat(q, device, n, heads, 2);
    fm_attend_options how;
    REQUIRE(fm_init_attend_options(&how, sizeof(how)) == FM_OK);
    how.everything = item.phase != FM_DECODE;
    REQUIRE(fm_observe_queries(select, &item, 1, l, &flat.t, stream) == FM_OK);
    REQUIRE(fm_append(store, &item, 1, l, &key.t, &value.t, stream) == FM_OK);
    REQUIRE(fm_observe_keys(select, &item, 1, l, &key.t, stream) == FM_OK);
    const fm_status code = fm_sparse_attend(attention, &item, 1, l, &query.t, &result.t, &how, stream);
    CAPTURE(text());
    REQUIRE(code == FM_OK);
  }
  std::vector<std::int32_t> resident() {
    std::vector<std::int32_t> ids(100);
    std::int64_t count = 0;
    REQUIRE(fm_sequence_resident(store, item.sequence, ids.data(), 100, &count) == FM_OK);
    ids.resize(std::size_t(count));
    return ids;
  }
};

}  // namespace

TEST_CASE("an engine in C on the device attends to what the one in host memory does", "[c]") {
  REQUIRE_GPU();
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const device_stream own;
  const cudaStream_t stream = own.get();
  {
    engine host(false, nullptr), device(true, stream);
    const std::size_t most = 256 * heads * dim;
    device_array<float> q(most), k(most), v(most), out(most);
    std::int64_t same = 0, sets = 0;
    for (std::int64_t at = 0; at < prompt + steps;) {
      const std::int64_t n = at < prompt ? std::min<std::int64_t>(256, prompt - at) : 1;
      for (engine* e : {&host, &device}) {
        e->item.position = at;
        e->item.num_tokens = std::int32_t(n);
        e->item.phase = at >= prompt ? FM_DECODE : at + n < prompt ? FM_PROMPT : FM_PROMPT_END;
      }
      const bool agree = host.resident() == device.resident();
      for (std::int32_t l = 0; l < layers; ++l) {
        std::vector<float> hq(most), hk(most), hv(most), mine(most), theirs(most);
        for (auto* all : {&hq, &hk, &hv})
          for (float& x : *all) x = normal(random);
        q.put(hq);
        k.put(hk);
        v.put(hv);
        must(cudaDeviceSynchronize());
        host.layer(l, hq.data(), hk.data(), hv.data(), mine.data());
        device.layer(l, q.data(), k.data(), v.data(), out.data());
        must(cudaStreamSynchronize(stream));
        theirs = out.get();
        // Scores of the two differ in their last digits, so that a set may now and then.
        if (!agree) continue;
        for (std::size_t i = 0; i < std::size_t(n * heads * dim); ++i)
          REQUIRE(std::abs(mine[i] - theirs[i]) <= 1e-4f);
      }
      REQUIRE(fm_select_chunks(host.select, &host.item, 1, nullptr) == FM_OK);
      REQUIRE(fm_select_chunks(device.select, &device.item, 1, stream) == FM_OK);
      at += n;
      ++sets;
      same += agree;
    }
    CHECK(same * 2 > sets);
    fm_managed_tensor *a = nullptr, *b = nullptr;
    REQUIRE(fm_sequence_read_chunk(host.store, host.item.sequence, 3, &a) == FM_OK);
    REQUIRE(fm_sequence_read_chunk(device.store, device.item.sequence, 3, &b) == FM_OK);
    CHECK(std::equal(static_cast<char*>(a->dl_tensor.data),
                     static_cast<char*>(a->dl_tensor.data) + a->dl_tensor.shape[0],
                     static_cast<char*>(b->dl_tensor.data)));
    a->deleter(a);
    b->deleter(b);
  }
}

TEST_CASE("tensors and streams of the other side are refused by name", "[c]") {
  REQUIRE_GPU();
  const device_stream own;
  const cudaStream_t stream = own.get();
  {
    engine device(true, stream);
    device.item.num_tokens = 1;
    std::vector<float> host(dim * heads);
    device_array<float> there(dim * heads);
    rows wrong(host.data(), false, 1, kv_heads), right(there.data(), true, 1, kv_heads);
    CHECK(fm_append(device.store, &device.item, 1, 0, &wrong.t, &right.t, stream) == FM_BAD_ARGUMENT);
    CHECK_THAT(text(), Catch::Matchers::Contains("k: lies on DLPack device 1"));
    CHECK(fm_append(device.store, &device.item, 1, 0, &right.t, &right.t, nullptr) == FM_BAD_ARGUMENT);
    CHECK_THAT(text(), Catch::Matchers::Contains("stream"));
    CHECK(fm_append(device.store, &device.item, 1, 0, &right.t, &right.t, stream) == FM_OK);
    must(cudaStreamSynchronize(stream));
  }
}
