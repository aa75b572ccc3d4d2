// SPDX-License-Identifier: MIT
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/self_test.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>

#include "tests/catch.hpp"
#include "tests/support/forwarding_store.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
using flashmemory_test::forwarding_store;
using fm::self_check;
using fm::status;

namespace {

fm::kv_geometry small(fm::dtype type = fm::dtype::f32, std::int32_t kv_heads = 2) {
  fm::kv_geometry g;
  g.layers = 2;
  g.kv_heads = kv_heads;
  g.key_dim = 64;
  g.value_dim = 32;
  g.type = type;
  g.entries_per_chunk = 16;
  g.index_keys = {2, 32, fm::index_key_type::int8, 4, fm::index_key_layout::interleaved};
  return g;
}

fm::store_options store_of(const fm::kv_geometry& g) {
  fm::store_options o;
  o.geometry = g;
  o.fast_bytes = o.backing_bytes = std::size_t{256} << 20;
  o.max_sequences = 3;
  return o;
}

fm::self_test_options quick(std::int32_t query_heads = 4) {
  fm::self_test_options o;
  o.query_heads = query_heads;
  o.lengths = 200;
  return o;
}

}  // namespace

TEST_CASE("what is right passes, in every dtype, head group, index key and ratio", "[self_test]") {
  const auto type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  const auto heads = GENERATE(std::pair{1, 4}, std::pair{2, 6}, std::pair{4, 4});
  const auto keys = GENERATE(fm::index_key_type::e4m3, fm::index_key_type::mxfp4, fm::index_key_type::bf16);
  const auto seed = flashmemory_test::fresh_seed();
  fm::kv_geometry g = small(type, heads.first);
  g.index_keys.type = keys;
  g.index_keys.layout = seed % 2 ? fm::index_key_layout::planar : fm::index_key_layout::interleaved;
  g.index_keys.tokens_per_key = seed % 3 ? 4 : 2;
  g.index_keys.lanes = static_cast<std::int32_t>(seed % 4);
  g.tokens_per_entry = seed % 5 == 0 ? 4 : 1;
  g.entries_per_chunk = seed % 7 ? 16 : 64;
  CAPTURE(fm::to_string(type), heads.first, heads.second, fm::to_string(keys), seed);
  fm::tiered_chunk_store store(store_of(g));
  fm::self_test_options o = quick(heads.second);
  o.seed = seed;
  o.sink_chunks = static_cast<std::int32_t>(seed % 3);
  o.recent_chunks = static_cast<std::int32_t>(seed / 3 % 3) + 1;
  const auto report = fm::self_test(store, o);
  CAPTURE(describe(report));
  CHECK(report.passed());
  CHECK(report.lengths > 200);
  CHECK(report.checks > 400);
  CHECK(store.usage().sequences == 0);
  CHECK(store.usage().backing_bytes == 0);
  CHECK(store.counters().faults == 0);
}

TEST_CASE(
    "a store with a file behind, and one whose other sequences are at work, pass and are left as they were",
    "[self_test]") {
  const flashmemory_test::temporary_folder folder;
  fm::store_options options = store_of(small());
  options.backing_path = folder.file("backing");
  fm::tiered_chunk_store store(options);
  fm::sequence_options each;
  each.max_tokens = 64;
  const auto other = store.open(each);
  const std::vector<float> rows(std::size_t(20 * 2 * 64), 0.5f);
  const fm::batch_item item{other, 0, 20};
  for (std::int32_t l = 0; l < 2; ++l)
    REQUIRE(store.append(fm::batch(&item, 1), l, {rows.data(), fm::dtype::f32, 20, 2, 64},
                         {rows.data(), fm::dtype::f32, 20, 2, 32}, fm::stream_ref::host()) == status::ok);
  const auto report = fm::self_test(store, quick());
  CHECK(describe(report).find("passed") != std::string::npos);
  fm::sequence_info info;
  REQUIRE(store.info(other, &info) == status::ok);
  CHECK(info.tokens == 20);
  CHECK(store.usage().sequences == 1);
}

TEST_CASE("what cannot be tested is refused by name, and nothing stays open", "[self_test]") {
  fm::store_options options = store_of(small());
  options.max_sequences = 1;
  fm::tiered_chunk_store store(options);
  fm::self_test_options o = quick();
  o.query_heads = 3;
  CHECK_THROWS_WITH(fm::self_test(store, o), Catch::Contains("query_heads"));
  o = quick();
  o.lengths = -1;
  CHECK_THROWS_WITH(fm::self_test(store, o), Catch::Contains("lengths"));
  o = quick();
  o.tolerance = 0;
  CHECK_THROWS_WITH(fm::self_test(store, o), Catch::Contains("tolerance"));
  fm::sequence_options each;
  each.max_tokens = 64;
  const auto other = store.open(each);
  CHECK_THROWS_AS(fm::self_test(store, quick()), fm::admission_error);
  REQUIRE(store.close(other) == status::ok);
  CHECK(fm::self_test(store, quick()).passed());
  options = store_of(small());
  options.fast_bytes = 100000;
  fm::tiered_chunk_store tight(options);
  CHECK_THROWS_AS(fm::self_test(tight, quick()), fm::admission_error);
  CHECK(tight.usage().sequences == 0);
}

namespace {

/// Runs the test over a store or a step that is wrong in one way.
fm::self_test_report run(fm::chunk_store& store, fm::tested_step* step = nullptr) {
  auto o = quick();
  o.seed = flashmemory_test::fresh_seed();
  const auto report = fm::self_test(store, o, step);
  CAPTURE(o.seed, describe(report));
  CHECK(!report.passed());
  CHECK(store.usage().sequences == 0);
  CHECK(describe(report).find(to_string(report.failed)) != std::string::npos);
  return report;
}

/// A resident set whose copy may be bent.
struct bent_store : forwarding_store {
  using forwarding_store::forwarding_store;
  mutable std::vector<fm::resident_chunk> bent;
  virtual void bend() const noexcept = 0;
  status resident(fm::sequence_handle s, std::int32_t layer, fm::resident_set* out,
                  std::uint64_t known) const noexcept override {
    const status code = inner_.resident(s, layer, out, known);
    if (code != status::ok) return code;
    bent.assign(out->chunks, out->chunks + out->count);
    bend();
    out->chunks = bent.data();
    out->count = std::int64_t(bent.size());
    return code;
  }
};

}  // namespace

TEST_CASE("fault: a ring of rows that is off by one shows in index keys", "[self_test]") {
  fm::tiered_chunk_store store(store_of(small()));
  struct : fm::tested_step {
    std::vector<float> last = std::vector<float>(8), shifted;
    status observe(fm::selector& s, fm::batch items, std::int32_t layer,
                   fm::view<const float, 2> hidden) noexcept override {
      if (layer != 0) return fm::tested_step::observe(s, items, layer, hidden);
      shifted.assign(last.begin(), last.end());
      shifted.insert(shifted.end(), hidden.data, hidden.data + (hidden.shape[0] - 1) * 8);
      last.assign(hidden.data + (hidden.shape[0] - 1) * 8, hidden.data + hidden.shape[0] * 8);
      return fm::tested_step::observe(s, items, layer,
                                      fm::view<const float, 2>(shifted.data(), hidden.shape[0], 8));
    }
  } step;
  CHECK(run(store, &step).failed == self_check::index_keys);
}

TEST_CASE("fault: a prompt's last piece that is not indexed shows in index keys", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : forwarding_store {
    using forwarding_store::forwarding_store;
    status index_keys(fm::sequence_handle s, std::int32_t lane,
                      fm::index_key_pages* out) const noexcept override {
      const status code = inner_.index_keys(s, lane, out);
      out->keys -= out->keys % 4;  // as of whole chunks
      return code;
    }
  } store(inner);
  const auto report = run(store);
  CHECK(report.failed == self_check::index_keys);
  CHECK(report.length < 100);
}

TEST_CASE("fault: a chunk in the place of its neighbour is found by attention", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : bent_store {
    using bent_store::bent_store;
    mutable fm::sequence_handle sequence;
    mutable std::vector<std::byte> neighbour;
    fm::sequence_handle open(const fm::sequence_options& o) override { return sequence = inner_.open(o); }
    void bend() const noexcept override {
      if (bent.size() < 5) return;
      neighbour.resize(fm::chunk_layout(geometry()).chunk_bytes());
      fm::resident_chunk& moved = bent[1];
      if (inner_.read_chunk(sequence, moved.id - 1,
                            fm::view<std::byte, 1>(neighbour.data(), neighbour.size())) == status::ok)
        moved.data = neighbour.data();
    }
  } store(inner);
  const auto report = run(store);
  CHECK((report.failed == self_check::attention || report.failed == self_check::needle));
}

TEST_CASE("fault: a resident set that stays what it was is found", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : forwarding_store {
    using forwarding_store::forwarding_store;
    int calls = 0;
    status recall(fm::sequence_handle s, fm::view<const fm::chunk_id, 1> c, fm::recall_report* report,
                  fm::stream_ref r) noexcept override {
      return ++calls % 3 == 0 ? status::ok : inner_.recall(s, c, report, r);
    }
  } store(inner);
  const auto report = run(store);
  CHECK((report.failed == self_check::selected || report.failed == self_check::set_size ||
         report.failed == self_check::always));
}

TEST_CASE("fault: heads whose stride is another's are found by attention", "[self_test]") {
  fm::tiered_chunk_store store(store_of(small()));
  struct : fm::tested_step {
    status append(fm::chunk_store& s, fm::batch items, std::int32_t layer, fm::view<const float, 3> k,
                  fm::view<const float, 3> v) noexcept override {
      k.stride[1] = v.shape[2];  // of V's rows, which are shorter
      return fm::tested_step::append(s, items, layer, k, v);
    }
  } step;
  const auto report = run(store, &step);
  CHECK((report.failed == self_check::attention || report.failed == self_check::needle));
}

TEST_CASE("fault: a position that is off by one is found by attention", "[self_test]") {
  fm::tiered_chunk_store store(store_of(small()));
  struct : fm::tested_step {
    status attend(fm::chunk_store& s, fm::batch items, std::int32_t layer, fm::view<const float, 3> q,
                  fm::view<const float, 1> sinks, bool everything, fm::workspace scratch,
                  fm::view<float, 3> out, fm::view<float, 2> lse) noexcept override {
      fm::batch_item item = items(0);
      if (item.num_tokens == 1) --item.position;
      return fm::tested_step::attend(s, fm::batch(&item, 1), layer, q, sinks, everything, scratch, out, lse);
    }
  } step;
  CHECK(run(store, &step).failed == self_check::attention);
}

TEST_CASE("fault: a sink that is lost is found by attention", "[self_test]") {
  fm::tiered_chunk_store store(store_of(small()));
  struct : fm::tested_step {
    status attend(fm::chunk_store& s, fm::batch items, std::int32_t layer, fm::view<const float, 3> q,
                  fm::view<const float, 1>, bool everything, fm::workspace scratch, fm::view<float, 3> out,
                  fm::view<float, 2> lse) noexcept override {
      return fm::tested_step::attend(s, items, layer, q, {}, everything, scratch, out, lse);
    }
  } step;
  CHECK(run(store, &step).failed == self_check::attention);
}

TEST_CASE("fault: a selection that is short by one shows in the set's size", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : forwarding_store {
    using forwarding_store::forwarding_store;
    status recall(fm::sequence_handle s, fm::view<const fm::chunk_id, 1> c, fm::recall_report* report,
                  fm::stream_ref r) noexcept override {
      if (c.shape[0] > 4) --c.shape[0];
      return inner_.recall(s, c, report, r);
    }
  } store(inner);
  CHECK(run(store).failed == self_check::set_size);
}

TEST_CASE("fault: a slot that holds another chunk's bytes already is found by attention", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : bent_store {
    using bent_store::bent_store;
    void bend() const noexcept override {
      if (bent.size() > 3) bent[bent.size() - 3].data = bent.front().data;
    }
  } store(inner);
  const auto report = run(store);
  CHECK((report.failed == self_check::attention || report.failed == self_check::needle));
}

TEST_CASE("fault: a window of recent chunks that is off by one is found", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : bent_store {
    using bent_store::bent_store;
    void bend() const noexcept override {
      if (bent.size() > 4) bent.erase(bent.end() - 3);
    }
  } store(inner);
  CHECK(run(store).failed == self_check::always);
}

TEST_CASE("a call that fails is named with its fault, at its length", "[self_test]") {
  fm::tiered_chunk_store inner(store_of(small()));
  struct : forwarding_store {
    using forwarding_store::forwarding_store;
    int calls = 0;
    status append(fm::batch i, std::int32_t l, fm::const_tensor<3> k, fm::const_tensor<3> v,
                  fm::stream_ref r) noexcept override {
      if (++calls == 50) l = 7;
      return inner_.append(i, l, k, v, r);
    }
  } store(inner);
  const auto report = run(store);
  CHECK(report.failed == self_check::call);
  CHECK(report.why.code == status::out_of_range);
  CHECK(report.length > 60);
}
