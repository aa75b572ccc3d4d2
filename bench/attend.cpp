// SPDX-License-Identifier: MIT
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <flashmemory/attend/sparse_attend.hpp>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/ceilings.hpp"
#include "bench/naive.hpp"
#include "tests/reference/attention.hpp"
#include "tests/support/plain_store.hpp"

namespace flashmemory_bench {
namespace {

using namespace flashmemory;

/// Slots of one allocation, handed out in random order: how chunks lie in a store that has run for a while.
class shuffled_arena {
 public:
  shuffled_arena(std::size_t slot_bytes, std::size_t slots) : bytes_(slot_bytes * slots), order_(slots) {
    data_ = static_cast<std::byte*>(memory_.allocate(memory_.context, bytes_, 64));
    if (data_ == nullptr) throw std::bad_alloc();
    for (std::size_t i = 0; i < slots; ++i) order_[i] = data_ + i * slot_bytes;
    std::shuffle(order_.begin(), order_.end(), std::mt19937_64(7));
  }
  ~shuffled_arena() { memory_.deallocate(memory_.context, data_, bytes_, 64); }
  shuffled_arena(const shuffled_arena&) = delete;
  shuffled_arena& operator=(const shuffled_arena&) = delete;

  memory_resource resource() {
    memory_resource r;
    r.context = this;
    r.allocate = [](void* self, std::size_t, std::size_t) -> void* {
      auto& order = static_cast<shuffled_arena*>(self)->order_;
      if (order.empty()) return nullptr;
      void* slot = order.back();
      order.pop_back();
      return slot;
    };
    r.deallocate = [](void*, void*, std::size_t, std::size_t) {};
    return r;
  }

 private:
  memory_resource memory_ = default_memory();
  std::size_t bytes_;
  std::vector<std::byte*> order_;
  std::byte* data_ = nullptr;
};

struct shape {
  const char* name;
  std::int32_t query_heads, kv_heads, key_dim, value_dim;
  dtype type;
  std::int64_t entries;     ///< in the sequence
  double resident = 1;      ///< share of the chunks that is resident
  std::int32_t tokens = 1;  ///< query tokens
  std::size_t cold =
      256u << 20;  ///< bytes of layers to go through before one is read again; 0 = one, in cache
};

/// Values between 1/8 and 2 of either sign, straight in the stored type.
std::vector<std::byte> random_elements(dtype type, std::size_t count) {
  std::mt19937_64 random(11);
  std::vector<std::byte> bytes(count * size_of(type));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t r = random();
    const auto exponent = std::uint32_t(r >> 40 & 3u), sign = std::uint32_t(r >> 50 & 1u);
    if (type == dtype::f32) {
      const std::uint32_t bits = sign << 31 | (124 + exponent) << 23 | std::uint32_t(r & 0x7fffffu);
      std::memcpy(&bytes[i * 4], &bits, 4);
    } else {
      const bool brain = type == dtype::bf16;
      const auto bits = std::uint16_t(brain ? sign << 15 | (124 + exponent) << 7 | (r & 127u)
                                            : sign << 15 | (12 + exponent) << 10 | (r & 1023u));
      std::memcpy(&bytes[i * 2], &bits, 2);
    }
  }
  return bytes;
}

class problem {
 public:
  explicit problem(const shape& s)
      : shape_(s),
        geometry_(geometry_of(s)),
        arena_(chunk_layout(geometry_).chunk_bytes(), std::size_t(geometry_.chunks_for(s.entries))),
        store_(geometry_, arena_.resource()) {
    sequence_options options;
    options.max_tokens = s.entries;
    item_.sequence = store_.open(options);
    item_.position = s.entries - s.tokens;
    item_.num_tokens = s.tokens;

    const std::size_t chunk_bytes = chunk_layout(geometry_).chunk_bytes();
    const auto pool = random_elements(geometry_.type, std::size_t{1} << 20);
    std::vector<std::byte> chunk(chunk_bytes);
    std::size_t at = 0;
    for (std::int64_t left = s.entries; left > 0; left -= geometry_.entries_per_chunk) {
      for (std::size_t filled = 0; filled < chunk_bytes;) {
        const std::size_t part = std::min(chunk_bytes - filled, pool.size() - at);
        std::memcpy(&chunk[filled], &pool[at], part);
        filled += part;
        at = (at + part + 1024 * 12) % (pool.size() - 4096) / 64 * 64;
      }
      if (store_.append_chunk(item_.sequence, view<const std::byte, 1>(chunk.data(), chunk_bytes),
                              std::min<std::int64_t>(left, geometry_.entries_per_chunk)) != status::ok) {
        throw std::bad_alloc();
      }
    }
    const auto chunks = geometry_.chunks_for(s.entries);
    const auto kept = std::int64_t(std::llround(double(chunks) * s.resident));
    if (kept < chunks) {
      std::vector<chunk_id> ids(static_cast<std::size_t>(chunks));
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end() - 1, std::mt19937_64(3));
      ids[std::size_t(kept) - 1] = chunk_id(chunks - 1);
      ids.resize(std::size_t(kept));
      store_.set_resident(item_.sequence, ids);
    }

    std::mt19937_64 random(5);
    std::normal_distribution<float> normal;
    q_.resize(std::size_t(s.tokens) * std::size_t(s.query_heads) * std::size_t(s.key_dim));
    for (float& x : q_) x = normal(random);
    out_.resize(std::size_t(s.tokens) * std::size_t(s.query_heads) * std::size_t(s.value_dim));
    prompt_extent prompts;
    const bool prompt = s.tokens > most_decode_tokens;
    if (prompt) prompts.rows = s.tokens;
    scratch_bytes_ = attend_workspace_bytes(geometry_, s.query_heads, prompt ? 0 : s.tokens, chunks, prompts);
    scratch_.reset(new (std::align_val_t(64)) std::byte[scratch_bytes_]);
    options_.scratch = {scratch_.get(), scratch_bytes_};
  }

  status run() {
    layer_ = (layer_ + 1) % geometry_.layers;
    return sparse_attend(
        store_, batch(&item_, 1), layer_,
        const_tensor<3>(q_.data(), dtype::f32, shape_.tokens, shape_.query_heads, shape_.key_dim),
        tensor<3>(out_.data(), dtype::f32, shape_.tokens, shape_.query_heads, shape_.value_dim), options_,
        stream_ref::host());
  }

  /// Compares a few heads of the last run with the double-precision reference.
  bool correct() {
    resident_set set;
    if (store_.resident(item_.sequence, layer_, &set) != status::ok) return false;
    for (const std::int32_t head : {0, shape_.query_heads - 1}) {
      const std::int32_t token = shape_.tokens - 1;
      const std::int64_t kv_head = head / (shape_.query_heads / shape_.kv_heads);
      const chunk_layout layout(geometry_);
      std::vector<flashmemory_test::reference::entry> entries;
      for (std::int64_t c = 0; c < set.count; ++c) {
        const auto* k = set.chunks[c].data + layout.key_offset(layer_, kv_head);
        const auto* v = set.chunks[c].data + layout.value_offset(layer_, kv_head);
        for (std::int64_t e = 0; e < set.chunks[c].entries; ++e) {
          entries.push_back({row(k, e, shape_.key_dim), row(v, e, shape_.value_dim)});
        }
      }
      const float* q = &q_[std::size_t(token * shape_.query_heads + head) * std::size_t(shape_.key_dim)];
      const auto expected = flashmemory_test::reference::attention(
          std::vector<double>(q, q + shape_.key_dim), entries, shape_.value_dim,
          1 / std::sqrt(double(shape_.key_dim)), 0, std::nullopt);
      const float* out =
          &out_[std::size_t(token * shape_.query_heads + head) * std::size_t(shape_.value_dim)];
      for (std::size_t i = 0; i < expected.out.size(); ++i) {
        if (!(std::fabs(expected.out[i] - double(out[i])) < 2e-5)) return false;
      }
    }
    return true;
  }

  double bytes() {
    resident_set set;
    if (store_.resident(item_.sequence, 0, &set) != status::ok) return 0;
    double entries = 0;
    for (std::int64_t c = 0; c < set.count; ++c) entries += set.chunks[c].entries;
    return entries * shape_.kv_heads * (shape_.key_dim + shape_.value_dim) * double(size_of(shape_.type));
  }

  double flop() {
    // The last token of a piece sees all entries, each one before it one less.
    const double seen = 1 - (shape_.tokens - 1) / 2.0 / double(shape_.entries);
    return 2 * bytes() / double(size_of(shape_.type)) * shape_.query_heads / shape_.kv_heads * shape_.tokens *
           seen;
  }

 private:
  static kv_geometry geometry_of(const shape& s) {
    kv_geometry g;
    g.kv_heads = s.kv_heads;
    g.key_dim = s.key_dim;
    g.value_dim = s.value_dim;
    g.type = s.type;
    g.layers = 1;
    const std::size_t layer =
        chunk_layout(g).layer_bytes() * std::size_t(double(g.chunks_for(s.entries)) * s.resident);
    g.layers = std::int32_t(std::max<std::size_t>(1, (s.cold + layer - 1) / layer));
    return g;
  }

  std::vector<double> row(const std::byte* block, std::int64_t entry, std::int64_t dim) const {
    std::vector<double> values;
    for (std::int64_t i = 0; i < dim; ++i) {
      values.push_back(flashmemory_test::element_as_float(block, shape_.type, entry * dim + i));
    }
    return values;
  }

  struct aligned_delete {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };

  shape shape_;
  kv_geometry geometry_;
  shuffled_arena arena_;
  flashmemory_test::plain_store store_;
  batch_item item_;
  std::int32_t layer_ = 0;
  std::vector<float> q_, out_;
  std::size_t scratch_bytes_ = 0;
  std::unique_ptr<std::byte, aligned_delete> scratch_;
  attend_options options_;
};

/// Times single calls: the median says what to expect, the best what the code can do when nobody else uses
/// the machine. The ceilings are the best of several runs as well.
class call_times {
 public:
  template <class F>
  void time(const F& call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    seconds_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  void report(benchmark::State& state, double bytes, double flop) {
    std::sort(seconds_.begin(), seconds_.end());
    const double median = seconds_[seconds_.size() / 2], best = seconds_.front();
    const ceilings& c = measured_ceilings();
    state.counters["GB/s"] = bytes / median * 1e-9;
    state.counters["of_read"] = bytes / median / c.read_bytes;
    state.counters["best_of_read"] = bytes / best / c.read_bytes;
    state.counters["Gflop/s"] = flop / median * 1e-9;
    state.counters["of_fma"] = flop / median / c.fma_flops;
    state.counters["best_of_fma"] = flop / best / c.fma_flops;
    state.counters["median_us"] = median * 1e6;
    state.counters["best_us"] = best * 1e6;
  }

 private:
  std::vector<double> seconds_;
};

void attend(benchmark::State& state, const shape& s) {
  problem p(s);
  if (p.run() != status::ok || !p.correct()) return state.SkipWithError("differs from the reference");
  call_times times;
  bool ok = true;
  for (auto _ : state) times.time([&] { ok = ok && p.run() == status::ok; });
  if (!ok) return state.SkipWithError("sparse_attend failed");
  times.report(state, p.bytes(), p.flop());
}

/// The baseline over 32 query and 8 KV heads, d 128, bf16; threads as the library's.
void naive(benchmark::State& state) {
  constexpr std::int64_t heads = 32, kv_heads = 8, dim = 128;
  const std::int64_t entries = state.range(0);
  const auto elements = std::size_t(kv_heads * entries * dim);
  const auto k = random_elements(dtype::bf16, elements), v = k;
  std::vector<float> q(std::size_t(heads * dim), 0.01f), out(q.size()), logits(std::size_t(heads * entries));
  call_times times;
  for (auto _ : state) {
    times.time([&] {
      naive_attention(q.data(), reinterpret_cast<const bfloat16*>(k.data()),
                      reinterpret_cast<const bfloat16*>(v.data()), heads, kv_heads, entries, dim,
                      logits.data(), out.data(), default_threads());
    });
    benchmark::DoNotOptimize(out.data());
  }
  times.report(state, double(elements) * 4, double(elements) * 4 * heads / kv_heads);
}
BENCHMARK(naive)
    ->Name("naive_attention/gqa_32_8/d128/bf16")
    ->Arg(32768)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

const shape shapes[] = {
    {"gqa_32_8/d128/bf16/4K", 32, 8, 128, 128, dtype::bf16, 4096},
    {"gqa_32_8/d128/bf16/32K", 32, 8, 128, 128, dtype::bf16, 32768},
    {"gqa_32_8/d128/bf16/128K", 32, 8, 128, 128, dtype::bf16, 131072},
    {"mha_8_8/d128/bf16/32K", 8, 8, 128, 128, dtype::bf16, 32768},
    {"mqa_32_1/d128/bf16/32K", 32, 1, 128, 128, dtype::bf16, 32768},
    {"gqa_32_8/d128/f16/32K", 32, 8, 128, 128, dtype::f16, 32768},
    {"gqa_32_8/d128/f32/32K", 32, 8, 128, 128, dtype::f32, 32768},
    {"gqa_32_8/d64/bf16/32K", 32, 8, 64, 64, dtype::bf16, 32768},
    {"gqa_32_8/d256/bf16/32K", 32, 8, 256, 256, dtype::bf16, 32768},
    {"gqa_32_8/d128/bf16/32K/resident:13.5%", 32, 8, 128, 128, dtype::bf16, 32768, 0.135},
    {"gqa_32_8/d128/bf16/32K/tokens:4", 32, 8, 128, 128, dtype::bf16, 32768, 1, 4},
    {"gqa_32_8/d128/bf16/256/cached", 32, 8, 128, 128, dtype::bf16, 256, 1, 1, 0},
    {"mha_8_8/d128/bf16/256/cached", 8, 8, 128, 128, dtype::bf16, 256, 1, 1, 0},
    {"gqa_4_2/d64/bf16/40_chunks/cached", 4, 2, 64, 64, dtype::bf16, 2560, 1, 1, 0},
    {"gqa_4_2/d64/f32/40_chunks/cached", 4, 2, 64, 64, dtype::f32, 2560, 1, 1, 0},
    {"gqa_4_2/d64/f32/16K/resident:13.5%", 4, 2, 64, 64, dtype::f32, 16384, 0.135},
    {"gqa_4_2/d64/f32/16K", 4, 2, 64, 64, dtype::f32, 16384},
    {"gqa_32_8/d128/bf16/16K/prompt:512", 32, 8, 128, 128, dtype::bf16, 16384, 1, 512},
    {"gqa_32_8/d128/f16/16K/prompt:512", 32, 8, 128, 128, dtype::f16, 16384, 1, 512},
    {"gqa_9_3/d64/f16/8K/prompt:512", 9, 3, 64, 64, dtype::f16, 8192, 1, 512},
    {"gqa_4_1/d256/f16/32K/prompt:512", 4, 1, 256, 256, dtype::f16, 32768, 1, 512},
};

const int registered = [] {
  for (const shape& s : shapes) {
    benchmark::RegisterBenchmark((std::string("sparse_attend/") + s.name).c_str(),
                                 [&s](benchmark::State& state) { attend(state, s); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return 0;
}();

}  // namespace
}  // namespace flashmemory_bench
