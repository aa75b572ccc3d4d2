// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <flashmemory/io/safetensors.hpp>

#include "cuda/select/kernels.hpp"
#include "src/core/convert.hpp"
#include "tests/cuda/step_world.hpp"
#include "tests/support/fresh_seed.hpp"

using namespace step_testing;

namespace {

std::vector<float> floats_of(const std::vector<std::uint16_t>& halves) {
  std::vector<float> values;
  for (const std::uint16_t h : halves) {
    const std::uint32_t bits = std::uint32_t{h} << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    values.push_back(f);
  }
  return values;
}

std::vector<std::uint16_t> some_halves(std::mt19937& random, std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const float f = normal(random);
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    values.push_back(std::uint16_t(bits >> 16));
  }
  return values;
}

/// A store and selector of each backend that are shown the same.
struct two_backends {
  fm::dual_encoder_config config;
  fm::selection_policy policy;
  fm::store_options options;
  fm::dual_encoder_indexer index;
  device_stream stream;
  std::unique_ptr<fm::tiered_chunk_store> on_host, on_device;
  std::unique_ptr<fm::selector> host_select, device_select;
  fm::sequence_handle x, y;
  std::int64_t tokens = 0;

  two_backends(const fm::dual_encoder_config& c, std::int64_t max_tokens)
      : config(c), options(make_options()), index(c) {
    policy.interval = 16;
    policy.budget_fraction = 0.3;
    on_host = std::make_unique<fm::tiered_chunk_store>(options);
    on_device = cu::make_store(options);
    fm::selector_options o;
    o.max_sequences = 3;
    host_select = std::make_unique<fm::selector>(*on_host, index, policy, o);
    cu::device_selector_options d;
    d.weights = fm::dtype::f32;
    device_select = cu::make_selector(*on_device, c, policy, o, d);
    x = on_host->open(fm::sequence_options_for(policy, options.geometry, max_tokens));
    y = on_device->open(fm::sequence_options_for(policy, options.geometry, max_tokens));
    host_select->attach(x);
    device_select->attach(y);
  }
  static fm::store_options make_options() {
    fm::store_options o;
    o.geometry = geometry();
    o.fast_bytes = o.backing_bytes = std::size_t{256} << 20;
    o.max_sequences = 4;
    return o;
  }

  std::vector<float> newest[2];  ///< hidden states of the newest token, per layer

  /// Largest |logit| of the last scores, by the host's arithmetic: what rounding of the queries is measured by.
  double largest_logit() const {
    const auto& g = options.geometry;
    std::vector<float> queries(std::size_t(config.heads) * 128), gates(std::size_t(config.heads));
    std::vector<std::byte> memory(index.workspace_bytes(g, 0, 0) + 64);
    double largest = 0;
    for (std::int32_t r = 0; r < index.taps().reads.lanes; ++r) {
      REQUIRE(index.encode_query(r, newest[config.retrievers[std::size_t(r)].query_layer].data(), tokens - 1,
                                 queries.data(), gates.data(), {memory.data(), memory.size()}) == status::ok);
      fm::index_key_pages pages;
      REQUIRE(on_host->index_keys(x, r, &pages) == status::ok);
      std::vector<float> logits(std::size_t(tokens / 16 * 4));
      REQUIRE(index.score_keys(r, queries.data(), gates.data(), pages.data, std::int64_t(logits.size()),
                               g.index_keys_per_chunk(), g.index_keys.layout, logits.data(),
                               fm::serial_threads()) == status::ok);
      for (const float z : logits) largest = std::max(largest, double(std::abs(z)));
    }
    return largest;
  }

  /// A pass of `count` tokens; returns how the device's observe() went.
  status pass(std::mt19937& random, std::int64_t count, bool poison = false) {
    const auto& g = options.geometry;
    const fm::batch_item p{x, tokens, std::int32_t(count)}, q{y, tokens, std::int32_t(count)};
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      auto hidden = some_halves(random, count * config.hidden);
      if (poison && layer == 0) hidden[std::size_t((count - 1) * config.hidden)] = 0x7fc0;  // NaN
      const auto wide = floats_of(hidden);
      newest[layer].assign(wide.end() - config.hidden, wide.end());
      const auto kv = some_halves(random, count * g.kv_heads * g.key_dim);
      const device_array<std::uint16_t> device_hidden(hidden), device_kv(kv);
      const fm::const_tensor<3> host_rows(kv.data(), fm::dtype::bf16, count, g.kv_heads, g.key_dim);
      const fm::const_tensor<3> device_rows(device_kv.data(), fm::dtype::bf16, count, g.kv_heads, g.key_dim);
      REQUIRE(host_select->observe(fm::batch(&p, 1), layer,
                                   fm::view<const float, 2>(wide.data(), count, std::int64_t{config.hidden}),
                                   fm::stream_ref::host()) == status::ok);
      const auto code = device_select->observe(
          fm::batch(&q, 1), layer,
          fm::const_tensor<2>(device_hidden.data(), fm::dtype::bf16, count, std::int64_t{config.hidden}),
          stream.ref());
      if (code != status::ok) return code;
      REQUIRE(on_host->append(fm::batch(&p, 1), layer, host_rows, host_rows, fm::stream_ref::host()) ==
              status::ok);
      REQUIRE(on_device->append(fm::batch(&q, 1), layer, device_rows, device_rows, stream.ref()) ==
              status::ok);
      stream.wait();
    }
    tokens += count;
    REQUIRE(fm::select_chunks(*host_select, fm::batch(&p, 1), fm::stream_ref::host()) == status::ok);
    REQUIRE(fm::select_chunks(*device_select, fm::batch(&q, 1), stream.ref()) == status::ok);
    return status::ok;
  }

  /// Keys of both, e4m3 codes and scales.
  struct keys_found {
    std::int64_t keys = 0, different_codes = 0, far_codes = 0;
    double scale_error = 0;
  };
  keys_found compare_keys() const {
    keys_found found;
    const auto& g = options.geometry;
    const auto per_page = g.index_keys_per_chunk();
    for (std::int32_t k = 0; k < g.index_keys.lanes; ++k) {
      fm::index_key_pages a, b;
      REQUIRE(on_host->index_keys(x, k, &a) == status::ok);
      REQUIRE(on_device->index_keys(y, k, &b) == status::ok);
      REQUIRE(a.keys == b.keys);
      const auto bytes = std::size_t((b.keys + per_page - 1) / per_page * per_page * 132);
      std::vector<std::byte> other(bytes);
      must(cudaMemcpy(other.data(), b.data, bytes, cudaMemcpyDeviceToHost));
      for (std::int64_t n = 0; n < a.keys; ++n) {
        const std::size_t page = std::size_t(n / per_page * per_page * 132), at = std::size_t(n % per_page);
        for (std::size_t i = 0; i < 128; ++i) {
          const int p = int(a.data[page + at * 128 + i]), q = int(other[page + at * 128 + i]);
          found.different_codes += p != q;
          const int near_zero = (p & 0x7f) + (q & 0x7f);
          found.far_codes += (p & 0x80) == (q & 0x80) ? std::abs(p - q) > 1 : near_zero > 2;
        }
        float s, t;
        std::memcpy(&s, a.data + page + std::size_t(per_page) * 128 + at * 4, 4);
        std::memcpy(&t, other.data() + page + std::size_t(per_page) * 128 + at * 4, 4);
        found.scale_error = std::max(found.scale_error, std::abs(double(s) - t) / std::max(1e-12, double(s)));
        ++found.keys;
      }
    }
    return found;
  }

  /// Largest difference of chunk scores.
  double score_error() const {
    const auto a = host_select->last_scores(), b = device_select->last_scores();
    REQUIRE(a.shape[0] == b.shape[0]);
    double error = 0;
    for (std::int64_t c = 0; c < a.shape[0]; ++c) error = std::max(error, std::abs(double(a(c)) - b(c)));
    return error;
  }
};

}  // namespace

TEST_CASE("keys and scores made on the device are the host's but for rounding", "[gpu][selector]") {
  REQUIRE_GPU();
  // How much a chunk's score moves when each of its four keys' logits move by one: the mean of probabilities as
  // log-odds by at most one, a sum of probabilities by a quarter each.
  struct {
    fm::ensemble combine;
    fm::key_reduction reduce;
    double slope;
  } const rules[] = {{fm::ensemble::max, fm::key_reduction::max, 1},
                     {fm::ensemble::mean, fm::key_reduction::max, 1},
                     {fm::ensemble::max, fm::key_reduction::sum, 1},
                     {fm::ensemble::mean, fm::key_reduction::sum, 1}};
  for (const auto& rule : rules) {
    const auto seed = flashmemory_test::fresh_seed();
    CAPTURE(int(rule.combine), int(rule.reduce), seed);
    auto config = indexer_config(seed, false, 96);
    config.combine = rule.combine;
    config.reduce = rule.reduce;
    for (auto& r : config.retrievers)
      for (float& w : r.weights_proj) w *= 2e-3f;  // logits of the order of one
    two_backends both(config, 2000);
    std::mt19937 random(seed);
    double worst = 0;
    std::int64_t compared = 0;
    const auto pass = [&](std::int64_t count) {
      const auto before = both.host_select->counters().refreshes;
      REQUIRE(both.pass(random, count) == status::ok);
      if (both.host_select->counters().refreshes == before) return;
      worst = std::max(worst, both.score_error() / (rule.slope * both.largest_logit()));
      ++compared;
    };
    pass(333);
    for (int step = 0; step < 100; ++step) pass(1 + step % 4);
    CHECK(compared > 10);
    const auto keys = both.compare_keys();
    std::printf(
        "scores: largest difference %.2e of the largest logit; keys: %lld of %lld codes differ, by one\n",
        worst, static_cast<long long>(keys.different_codes), static_cast<long long>(keys.keys * 128));
    CHECK(worst > 0);
    CHECK(worst <= 6e-2);
    CHECK(keys.keys > 200);
    CHECK(keys.far_codes == 0);
    CHECK(keys.different_codes <= keys.keys * 128 / 100);
    CHECK(keys.scale_error < 1e-5);
  }
}

TEST_CASE("chunk scores are reduced from logits as the host does", "[gpu][selector]") {
  REQUIRE_GPU();
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const std::int32_t retrievers : {1, 2, 3, 7})
    for (const std::int32_t per_chunk : {1, 2, 31, 32, 33, 64, 100})
      for (const auto combine : {fm::ensemble::max, fm::ensemble::mean})
        for (const auto reduce :
             {fm::key_reduction::max, fm::key_reduction::count_positive, fm::key_reduction::sum}) {
          CAPTURE(retrievers, per_chunk, int(combine), int(reduce));
          const std::int64_t chunks = 1 + std::int64_t(random() % 40), keys = chunks * per_chunk,
                             stride = keys + 5;
          std::vector<float> logits(std::size_t(retrievers * stride));
          for (float& z : logits) {
            z = normal(random) * 3;
            switch (random() % 200) {
              case 0:
                z *= 100;
                break;
              case 1:
                z = INFINITY;
                break;
              case 2:
                z = -INFINITY;
                break;
              case 3:
                z = 0;
                break;
              default:
                break;
            }
          }
          if (random() % 2 == 0) logits[std::size_t(keys / 2)] = NAN;
          const device_array<float> in(logits), out(std::size_t{1} * std::size_t(chunks));
          must(cu::detail::launch_reduce_chunks(in.data(), retrievers, stride, chunks, per_chunk, combine,
                                                reduce, out.data(), nullptr));
          const auto got = out.get();
          for (std::int64_t c = 0; c < chunks; ++c) {
            // In double precision, line by line as dual_encoder.hpp says.
            long double sum = reduce == fm::key_reduction::max ? -INFINITY : 0;
            bool nan = false;
            int undecided = 0;  // keys whose sign is rounding's
            for (std::int64_t k = c * per_chunk; k < (c + 1) * per_chunk; ++k) {
              long double largest = -INFINITY, yes = 0, no = 0;
              for (std::int32_t r = 0; r < retrievers; ++r) {
                const long double z = logits[std::size_t(r * stride + k)];
                nan = nan || std::isnan(z);
                largest = std::max(largest, z);
                yes += 1 / (1 + std::exp(-z));
                no += 1 / (1 + std::exp(z));
              }
              const long double z =
                  combine == fm::ensemble::max || retrievers == 1 ? largest : std::log(yes) - std::log(no);
              if (reduce == fm::key_reduction::max) sum = std::max(sum, z);
              if (reduce == fm::key_reduction::count_positive) sum += z > 0;
              if (reduce == fm::key_reduction::count_positive) undecided += z != 0 && std::abs(z) < 1e-5L;
              if (reduce == fm::key_reduction::sum) sum += 1 / (1 + std::exp(-z));
            }
            const double value = double(sum);
            const float found = got[std::size_t(c)];
            CAPTURE(c, value, found);
            if (nan)
              REQUIRE(std::isnan(found));
            else if (std::isinf(value) || std::isinf(found))
              REQUIRE(double(found) == value);
            else
              REQUIRE(std::abs(found - value) <= undecided + 2e-5 * std::max(1.0, std::abs(value)));
          }
        }
}

TEST_CASE("keys that NaN went into are zero and counted, scores of a NaN are NaN", "[gpu][selector]") {
  REQUIRE_GPU();
  two_backends both(indexer_config(5, false, 96), 2000);
  std::mt19937 random(5);
  REQUIRE(both.pass(random, 200) == status::ok);
  REQUIRE(both.device_select->request_refresh(both.y) == status::ok);
  REQUIRE(both.host_select->request_refresh(both.x) == status::ok);
  REQUIRE(both.pass(random, 4, true) == status::ok);
  CHECK(both.device_select->counters().nan_keys == both.host_select->counters().nan_keys);
  CHECK(both.device_select->counters().nan_keys > 0);
  const auto scores = both.device_select->last_scores();
  REQUIRE(scores.shape[0] == both.host_select->last_scores().shape[0]);
  for (std::int64_t c = 0; c < scores.shape[0]; ++c)
    CHECK(std::isnan(scores(c)) == std::isnan(both.host_select->last_scores()(c)));
  // The window of later keys still holds the NaN, and is counted for as long.
  REQUIRE(both.pass(random, 40) == status::ok);
  CHECK(both.device_select->counters().nan_keys == both.host_select->counters().nan_keys);
  CHECK(both.compare_keys().far_codes == 0);
}

TEST_CASE("the device selector gives the published scorer's scores", "[gpu][selector]") {
  REQUIRE_GPU();
  const std::string name = GENERATE("small", "medium");
  const std::string path = std::string(FLASHMEMORY_TEST_DATA) + "/golden/indexer_" + name + ".safetensors";
  const fm::safetensors_file file(path);
  const auto config = fm::load_dual_encoder(
      path, name == "small" ? std::vector<std::int32_t>{0, 1} : std::vector<std::int32_t>{0, 1, 2});
  const auto batch = file.find("hidden")->shape[0], keys = file.find("compressed_k")->shape[1];
  const auto hidden = fm::to_floats(file, *file.find("hidden"));
  std::vector<std::vector<float>> expected;  // logits of each retriever
  for (const auto& r : config.retrievers)
    expected.push_back(fm::to_floats(file, file.require("expect.logits." + r.name, {batch, keys})));
  std::vector<std::int64_t> positions(static_cast<std::size_t>(batch));
  std::memcpy(positions.data(), file.find("positions")->data, positions.size() * 8);
  const auto retrievers = std::int32_t(config.retrievers.size());
  double worst = 0;
  for (std::int64_t row = 0; row < batch; ++row) {
    const std::int64_t tokens = positions[std::size_t(row)] + 1;
    if (tokens < 4 * keys) continue;  // fewer tokens than it has keys
    fm::store_options o;
    o.geometry.layers = retrievers;
    o.geometry.kv_heads = 1;
    o.geometry.key_dim = o.geometry.value_dim = 1;
    o.geometry.type = fm::dtype::f32;
    o.geometry.index_keys.lanes = retrievers;
    o.geometry.index_keys.layout = fm::index_key_layout::planar;
    o.fast_bytes = o.backing_bytes = std::size_t{2} << 30;
    o.max_sequences = 1;
    const auto store = cu::make_store(o);
    fm::selection_policy policy;
    policy.budget_fraction = 0.01;
    fm::selector_options so;
    so.max_sequences = 1;
    cu::device_selector_options d;
    d.weights = fm::dtype::f32;
    const auto select = cu::make_selector(*store, config, policy, so, d);
    const auto s = store->open(fm::sequence_options_for(policy, o.geometry, tokens));
    select->attach(s);
    const device_stream stream;
    const device_array<float> kv(std::vector<float>(std::size_t(tokens), 0.0f));
    // Golden keys first, zeros after them.
    std::vector<std::byte> rows(std::size_t(tokens / 4 * 132), std::byte{0});
    std::memcpy(rows.data(), file.find("compressed_k")->data + row * keys * 132, std::size_t(keys * 132));
    const device_array<std::byte> device_keys(rows);
    const device_array<float> newest(
        std::vector<float>(hidden.begin() + row * config.hidden, hidden.begin() + (row + 1) * config.hidden));
    const auto pass = [&](std::int64_t position, std::int64_t count) {
      const fm::batch_item item{s, position, std::int32_t(count)};
      const fm::batch items(&item, 1);
      for (std::int32_t layer = 0; layer < retrievers; ++layer) {
        if (count == 1)
          REQUIRE(select->observe(items, layer,
                                  fm::view<const float, 2>(newest.data(), 1, std::int64_t{config.hidden}),
                                  stream.ref()) == status::ok);
        const fm::view<const float, 3> values(kv.data(), count, 1, 1);
        REQUIRE(store->append(items, layer, values, values, stream.ref()) == status::ok);
      }
    };
    pass(0, tokens - 1);
    pass(tokens - 1, 1);
    for (std::int32_t r = 0; r < retrievers; ++r)
      REQUIRE(store->append_index_keys(s, r, 0,
                                       fm::view<const std::byte, 2>(device_keys.data(), tokens / 4, 132),
                                       stream.ref()) == status::ok);
    const fm::batch_item item{s, tokens - 1, 1};
    REQUIRE(fm::select_chunks(*select, fm::batch(&item, 1), stream.ref()) == status::ok);
    const auto scores = select->last_scores();
    REQUIRE(scores.shape[0] == tokens / 64);
    double error = 0, largest = 0;
    for (std::int64_t c = 0; (c + 1) * 16 <= keys; ++c) {
      double wanted = -INFINITY;
      for (std::int64_t k = c * 16; k < (c + 1) * 16; ++k)
        for (const auto& logits : expected) {
          wanted = std::max(wanted, double(logits[std::size_t(row * keys + k)]));
          largest = std::max(largest, std::abs(double(logits[std::size_t(row * keys + k)])));
        }
      error = std::max(error, std::abs(wanted - scores(c)));
    }
    worst = std::max(worst, error / largest);
  }
  std::printf("golden %s through the device selector: largest error %.2e of the largest logit\n",
              name.c_str(), worst);
  CHECK(worst > 0);
  CHECK(worst <= 6e-2);
}

TEST_CASE("a fork and a loaded state go on as their origin does", "[gpu][selector]") {
  REQUIRE_GPU();
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const number_pool pool(seed);
  world_options o;
  o.rows = 2;
  world w(pool, o, seed);
  auto s = w.open();
  w.prefill(s, 133, 1);
  for (std::uint64_t i = 0; i < 21; ++i) REQUIRE(w.decode({&s}, i) == status::ok);
  world::sequence child;
  child.handle = w.store->fork(s.handle, fm::sequence_options_for(w.policy, geometry(), 600));
  child.tokens = s.tokens;
  w.select->attach_fork(s.handle, child.handle);
  const auto state = w.select->save_state(s.handle);
  w.select->detach(s.handle);
  w.select->load_state(s.handle, state.data(), state.size());
  CHECK(w.select->save_state(s.handle) == state);
  for (std::uint64_t i = 0; i < 60; ++i) {
    // Both rows get different numbers; show the child the parent's by letting them take turns in row 0.
    REQUIRE(w.decode({&s}, 500 + i) == status::ok);
    REQUIRE(w.decode({&child}, 500 + i) == status::ok);
    REQUIRE(w.resident(s) == w.resident(child));
  }
  CHECK(w.contents(s) == w.contents(child));
}
