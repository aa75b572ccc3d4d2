// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE("with a backing store in host memory there is one copy of each chunk, not two") {
  fm::kv_geometry g = small_geometry();
  g.key_dim = g.value_dim = 64;
  g.entries_per_chunk = 16;
  const std::size_t chunk = fm::chunk_layout(g).chunk_bytes();
  constexpr std::int64_t chunks = 200;
  const std::int64_t quota = GENERATE(0, 27);  // all of them, and 13.5 %
  counting_memory memory;
  fm::store_options o = small_options(g);
  o.max_sequences = 1;
  o.backing_bytes = chunks * chunk;
  o.memory = memory.resource();
  o.fast_bytes = fm::store_bytes_for(o, tokens(chunks * 16, quota), 1).fast;
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(chunks * 16, quota));
  REQUIRE(grow(store, s, chunks * 16, 3) == status::ok);
  CHECK(all_chunks_right(store, s));
  const std::size_t keys = info(store, s).index_key_bytes;
  CHECK(double(memory.in_use - keys) <= 1.05 * double(chunks * chunk));
  // The books count what attention reads, as they do where it is a copy.
  CHECK(info(store, s).slot_bytes == std::size_t(info(store, s).resident_chunks) * chunk);
  CHECK(store.usage().fast_bytes > std::size_t(info(store, s).resident_chunks) * chunk);
  CHECK(store.usage().fast_bytes <= o.fast_bytes);
}

TEST_CASE("chunks that are read in place stay right through forks, rollbacks and recalls") {
  fm::tiered_chunk_store store(small_options());
  engine_sequence s = open(store, tokens(200, 9));
  REQUIRE(grow(store, s, 82, 11) == status::ok);
  const auto address = [&](fm::chunk_id id) {
    const fm::resident_set set = resident(store, s);
    for (std::int64_t i = 0; i < set.count; ++i)
      if (set.chunks[i].id == id) return set.chunks[i].data;
    return static_cast<const std::byte*>(nullptr);
  };
  REQUIRE(recall(store, s, {5, 7}) == status::ok);
  const std::byte* const at = address(5);
  CHECK(at == store.layer_address(s.handle, 5, 0));
  REQUIRE(recall(store, s, {7}) == status::ok);
  CHECK(store.layer_address(s.handle, 5, 0) == at);  // whether it is resident or not
  REQUIRE(recall(store, s, {5}) == status::ok);
  CHECK(address(5) == at);

  engine_sequence child = s;
  child.handle = store.fork(s.handle, tokens(200, 9));
  REQUIRE(store.truncate(child.handle, 22) == status::ok);  // reopens a chunk that both have
  child.tokens = 22;
  child.tags.resize(22);
  REQUIRE(grow(store, child, 30, 5) == status::ok);
  CHECK(all_chunks_right(store, child));
  CHECK(all_chunks_right(store, s));
  REQUIRE(store.truncate(s.handle, 50) == status::ok);
  s.tokens = 50;
  s.tags.resize(50);
  REQUIRE(grow(store, s, 10, 6) == status::ok);
  CHECK(all_chunks_right(store, s));
  CHECK(all_chunks_right(store, child));
}

TEST_CASE("verify_ram finds damage in place, and read_layer() refuses it by the layer") {
  fm::store_options o = small_options();
  o.verify_ram = true;
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(200, 9));
  REQUIRE(grow(store, s, 82, 11) == status::ok);
  REQUIRE(recall(store, s, {5}) == status::ok);
  const fm::resident_set set = resident(store, s, 1);
  REQUIRE(set.chunks[1].id == 5);
  const fm::chunk_layout layout(o.geometry);
  const_cast<std::byte*>(set.chunks[1].data)[layout.key_offset(1, 0)] ^= std::byte{1};
  REQUIRE(recall(store, s, {}) == status::ok);
  CHECK(store.layer_address(s.handle, 5, 1) == nullptr);  // it has to be checked
  std::vector<std::byte> out(layout.layer_bytes());
  const fm::view<std::byte, 1> to(out.data(), out.size());
  CHECK(store.read_layer(s.handle, 5, 0, to) == status::ok);
  CHECK(store.read_layer(s.handle, 5, 1, to) == status::corrupt_chunk);
  CHECK(store.last_fault().chunk == 5);
  CHECK(store.last_fault().layer == 1);
  fm::recall_report r;
  REQUIRE(recall(store, s, {5, 6}, &r) == status::ok);
  CHECK(r.unreadable == 1);
  CHECK(r.first_unreadable == 5);
}

TEST_CASE("read_layer() gives what was appended of any chunk, in the middle of a pass of the layers so far") {
  const bool on_file = GENERATE(false, true);
  const temporary_path path;
  fm::store_options o = small_options();
  if (on_file) o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  const fm::kv_geometry& g = o.geometry;
  const fm::chunk_layout layout(g);
  engine_sequence s = open(store, tokens(400, 9));
  REQUIRE(grow(store, s, 82, 11) == status::ok);
  std::vector<std::byte> out(layout.layer_bytes());
  const fm::view<std::byte, 1> to(out.data(), out.size());
  const auto right = [&](fm::chunk_id id, std::int32_t layer, const std::vector<std::uint64_t>& tags) {
    const auto expected = expected_chunk(g, tags, id);
    return std::memcmp(out.data(), expected.data() + layout.key_offset(layer, 0), layout.layer_bytes()) == 0;
  };
  for (fm::chunk_id id = 0; id < 20; ++id)
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      REQUIRE(store.read_layer(s.handle, id, layer, to) == status::ok);
      CHECK(right(id, layer, s.tags));
    }
  CHECK(store.read_layer(s.handle, 20, 0, to) == status::out_of_order);  // the open one
  CHECK(store.read_layer(s.handle, 21, 0, to) == status::out_of_range);
  CHECK(store.read_layer(s.handle, 3, g.layers, to) == status::out_of_range);
  CHECK(store.read_layer(s.handle, 3, 0, fm::view<std::byte, 1>(out.data(), 5)) == status::bad_shape);
  CHECK(store.read_layer(s.handle, 3, 0, fm::view<std::byte, 1>(nullptr, out.size())) == status::null_data);

  const auto tags = new_tags(g, s, 100, 5);
  auto all = s.tags;
  all.insert(all.end(), tags.begin(), tags.end());
  const fm::batch_item item{s.handle, s.tokens, 100};
  const made_rows rows = make_rows(g, tags, 0);
  REQUIRE(store.append(fm::batch(&item, 1), 0, rows.k_view, rows.v_view, host) == status::ok);
  REQUIRE(store.read_layer(s.handle, 30, 0, to) == status::ok);
  CHECK(right(30, 0, all));
  CHECK(store.read_layer(s.handle, 30, 1, to) == status::out_of_order);
  CHECK((store.layer_address(s.handle, 30, 0) != nullptr) == !on_file);
  CHECK(store.layer_address(s.handle, 30, 1) == nullptr);
}
