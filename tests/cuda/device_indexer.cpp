// SPDX-License-Identifier: MIT
#include <algorithm>
#include <flashmemory/cuda/device_indexer.hpp>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/error.hpp>
#include <functional>
#include <random>
#include <vector>

#include "tests/cuda/gpu.hpp"
#include "tests/support/fresh_seed.hpp"

namespace fm = flashmemory;
namespace cu = flashmemory::cuda;
using fm::status;
using namespace flashmemory_test;

namespace {

constexpr std::int32_t width = 12;

fm::indexer_taps own_taps() {
  fm::indexer_taps t;
  t.name = "own";
  t.queries = {{1, fm::tap_kind::hidden, width}};
  return t;
}

/// Scores come from a rule on the host, by way of the table; what it is shown is copied back.
class own_indexer final : public cu::device_indexer {
 public:
  own_indexer() : device_indexer(own_taps()) {}
  std::function<float(fm::sequence_handle, std::int64_t)> rule;
  std::vector<float> seen;  ///< the newest hidden states of the last call
  std::vector<std::int64_t> positions;
  status answer = status::ok;
  std::int64_t room = 0, calls = 0;

  void reserve(const cu::device_indexer_capacity& capacity) override {
    capacity_ = capacity;
    room = capacity.max_chunks;
  }
  std::size_t table_bytes(std::int32_t max_sequences) const noexcept override {
    return std::size_t(max_sequences) * most * sizeof(float);
  }
  status fill_table(const cu::device_scoring& call, fm::fault*) noexcept override {
    auto* const scores = reinterpret_cast<float*>(call.table);
    for (std::int64_t i = 0; i < call.due.shape[0]; ++i)
      for (std::int64_t c = 0; c < call.due(i).chunks; ++c)
        scores[i * std::int64_t(most) + c] = rule(call.due(i).sequence, c);
    return status::ok;
  }
  status score(const cu::device_scoring& call, fm::stream_ref stream, fm::fault* error) noexcept override {
    ++calls;
    if (answer != status::ok) {
      error->code = answer;
      error->what = "own";
      return answer;
    }
    const std::int64_t due = call.due.shape[0];
    const auto* const scores = reinterpret_cast<const float*>(call.table);
    for (std::int64_t i = 0; i < due; ++i)
      if (cudaMemcpyAsync(call.due(i).scores, scores + i * std::int64_t(most),
                          std::size_t(call.due(i).chunks) * sizeof(float), cudaMemcpyDeviceToDevice,
                          stream.cuda()) != cudaSuccess)
        return status::cuda_error;
    seen.resize(std::size_t(due * width));
    positions.resize(std::size_t(due));
    cudaMemcpyAsync(seen.data(), call.queries[0].data, seen.size() * sizeof(float), cudaMemcpyDeviceToHost,
                    stream.cuda());
    cudaMemcpyAsync(positions.data(), call.positions, positions.size() * sizeof(std::int64_t),
                    cudaMemcpyDeviceToHost, stream.cuda());
    return status::ok;
  }

 private:
  static constexpr std::size_t most = 256;
  cu::device_indexer_capacity capacity_;
};

struct own_world {
  own_world() {
    fm::store_options o;
    auto& g = o.geometry;
    g.layers = 2;
    g.kv_heads = 1;
    g.key_dim = g.value_dim = 16;
    g.type = fm::dtype::f32;
    g.entries_per_chunk = 8;
    o.fast_bytes = o.backing_bytes = std::size_t{32} << 20;
    o.max_sequences = 4;
    store = cu::make_store(o);
    policy.interval = 16;
    policy.budget_fraction = 0.2;
    fm::selector_options so;
    so.max_sequences = 4;
    so.stagger = false;
    select = cu::make_selector(*store, index, policy, so);
  }
  fm::sequence_handle open(std::int64_t max_tokens) {
    const auto s = store->open(fm::sequence_options_for(policy, store->geometry(), max_tokens));
    select->attach(s);
    return s;
  }
  status pass(fm::sequence_handle s, std::int64_t position, std::int32_t tokens) {
    const fm::batch_item item{s, position, tokens};
    const fm::batch one(&item, 1);
    std::vector<float> rows(std::size_t(tokens * width));
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < width; ++i)
        rows[std::size_t(t * width + i)] = float(s.index * 1000 + position + t) + 0.01f * float(i);
    const device_array<float> hidden(rows), kv(std::vector<float>(std::size_t(tokens * 16), 0.5f));
    status code =
        select->observe(one, 1, fm::view<const float, 2>(hidden.data(), tokens, width), stream.ref());
    for (std::int32_t layer = 0; code == status::ok && layer < 2; ++layer)
      code = store->append(one, layer, fm::view<const float, 3>(kv.data(), tokens, 1, 16),
                           fm::view<const float, 3>(kv.data(), tokens, 1, 16), stream.ref());
    if (code == status::ok) code = fm::select_chunks(*select, one, stream.ref());
    stream.wait();
    return code;
  }
  std::vector<fm::chunk_id> resident(fm::sequence_handle s) const {
    fm::resident_set set;
    REQUIRE(store->resident(s, 0, &set) == status::ok);
    std::vector<fm::chunk_id> ids;
    for (std::int64_t c = 0; c < set.count; ++c) ids.push_back(set.chunks[c].id);
    return ids;
  }
  own_indexer index;
  fm::selection_policy policy;
  device_stream stream;
  std::unique_ptr<fm::tiered_chunk_store> store;
  std::unique_ptr<fm::selector> select;
};

bool has(const std::vector<fm::chunk_id>& ids, fm::chunk_id id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TEST_CASE("an engine's own scorer chooses chunks on the device, for sequences of any length",
          "[gpu][select]") {
  REQUIRE_GPU();
  own_world w;
  const auto first = w.open(300);
  CHECK(w.index.room == 38);
  w.index.rule = [](fm::sequence_handle, std::int64_t c) { return c == 7 || c == 11 ? 5.0f : -float(c); };
  REQUIRE(w.pass(first, 0, 200) == status::ok);
  CHECK(has(w.resident(first), 7));
  CHECK(has(w.resident(first), 11));
  CHECK_FALSE(has(w.resident(first), 14));
  REQUIRE(w.index.positions == std::vector<std::int64_t>{199});
  for (std::int64_t i = 0; i < width; ++i)
    CHECK(w.index.seen[std::size_t(i)] == float(first.index * 1000 + 199) + 0.01f * float(i));

  // A longer one makes the tables grow, whatever has been scored until then.
  const auto second = w.open(1500);
  CHECK(w.index.room == 188);
  w.index.rule = [&](fm::sequence_handle s, std::int64_t c) {
    return c == (s == second ? 150 : 3) ? 9.0f : -float(c);
  };
  REQUIRE(w.pass(second, 0, 1400) == status::ok);
  CHECK(has(w.resident(second), 150));
  REQUIRE(w.pass(first, 200, 16) == status::ok);
  CHECK(has(w.resident(first), 3));
  CHECK_FALSE(has(w.resident(first), 11));
}

TEST_CASE("what an engine's own scorer cannot score is that refresh's fault, and the old set stays",
          "[gpu][select]") {
  REQUIRE_GPU();
  own_world w;
  const auto s = w.open(300);
  w.index.rule = [](fm::sequence_handle, std::int64_t c) { return c == 7 ? 5.0f : -float(c); };
  REQUIRE(w.pass(s, 0, 200) == status::ok);
  auto before = w.resident(s);
  w.index.answer = status::workspace_small;
  REQUIRE(w.select->request_refresh(s) == status::ok);
  CHECK(w.pass(s, 200, 1) == status::workspace_small);
  before.push_back(25);  // the chunk that the new token opens
  CHECK(w.resident(s) == before);
  CHECK(w.select->last_fault().code == status::workspace_small);
  CHECK(w.store->last_fault().code == status::workspace_small);
  w.index.answer = status::ok;
  REQUIRE(w.select->request_refresh(s) == status::ok);
  CHECK(w.pass(s, 201, 1) == status::ok);
}

TEST_CASE("taps that a device cannot serve are refused when the selector is made", "[gpu][select]") {
  REQUIRE_GPU();
  own_world w;
  struct odd final : cu::device_indexer {
    explicit odd(const fm::indexer_taps& t) : device_indexer(t) {}
    status score(const cu::device_scoring&, fm::stream_ref, fm::fault*) noexcept override {
      return status::ok;
    }
  };
  auto taps = own_taps();
  taps.index_keys = {{0, width, 4, 4}};
  odd encodes(taps);
  CHECK_THROWS_AS(cu::make_selector(*w.store, encodes, w.policy), fm::argument_error);
  fm::tiered_chunk_store host([&] {
    fm::store_options o;
    o.geometry = w.store->geometry();
    o.fast_bytes = o.backing_bytes = std::size_t{1} << 20;
    return o;
  }());
  CHECK_THROWS_WITH(cu::context_of(host), Catch::Contains("make_store"));
  CHECK_THROWS_AS(cu::make_selector(host, w.index, w.policy), fm::argument_error);
}
