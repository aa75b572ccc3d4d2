// SPDX-License-Identifier: MIT
#include <functional>

#include "tests/cuda/step_world.hpp"

using namespace step_testing;

TEST_CASE("a decode step refuses what cannot work and changes nothing", "[gpu][step]") {
  REQUIRE_GPU();
  const number_pool pool(1);
  world w(pool, {}, 1);
  auto s = w.open(), t = w.open();
  w.prefill(s, 40, 1);
  w.prefill(t, 7, 2);
  const auto prepared = [&](std::vector<fm::batch_item> items) {
    return w.step->prepare(fm::batch(items.data(), items.size()), w.stream.ref());
  };
  const auto unchanged = [&] {
    fm::sequence_info info;
    REQUIRE(w.store->info(s.handle, &info) == status::ok);
    CHECK(info.tokens == s.tokens);
    REQUIRE(w.store->info(t.handle, &info) == status::ok);
    CHECK(info.tokens == t.tokens);
  };
  CHECK(w.step->finish(w.stream.ref()) == status::out_of_order);
  CHECK(prepared({{s.handle, 40, 1}, {t.handle, 7, 2}}) == status::bad_shape);
  CHECK(w.step->last_fault().sequence == t.handle.index);
  CHECK(prepared({{s.handle, 40, 1}, {s.handle, 40, 1}}) == status::bad_argument);
  CHECK(prepared({{s.handle, 40, 1}, {t.handle, 8, 1}}) == status::out_of_order);
  CHECK(prepared(std::vector<fm::batch_item>(7, fm::batch_item{})) == status::bad_shape);
  CHECK(w.step->prepare(fm::batch(nullptr, 2), w.stream.ref()) == status::null_data);
  fm::batch_item one{s.handle, 40, 1};
  CHECK(w.step->prepare(fm::batch(&one, 1), fm::stream_ref::host()) == status::unsupported);
  fm::sequence_handle stranger = w.store->open(fm::sequence_options_for(w.policy, geometry(), 100));
  CHECK(prepared({{stranger, 0, 1}}) == status::unknown_sequence);
  unchanged();

  REQUIRE(prepared({{s.handle, 40, 1}, {}, {t.handle, 7, 1}}) == status::ok);
  CHECK(prepared({{s.handle, 40, 1}}) == status::out_of_order);
  w.step->abandon();
  unchanged();
  w.step->abandon();
  REQUIRE(w.decode({&s, nullptr, &t}, 3) == status::ok);
  unchanged();

  // A step that other calls have moved on cannot end; it is given up.
  REQUIRE(prepared({{s.handle, s.tokens, 1}}) == status::ok);
  REQUIRE(w.store->truncate(s.handle, s.tokens) == status::ok);
  CHECK(w.step->finish(w.stream.ref()) == status::out_of_order);
  w.step->abandon();
  REQUIRE(w.decode({&s}, 4) == status::ok);
}

TEST_CASE("the launches of a step refuse tensors that do not fit, by name", "[gpu][step]") {
  REQUIRE_GPU();
  const number_pool pool(1);
  world_options o;
  o.own_keys = true;
  world w(pool, o, 1);
  const auto g = geometry();
  const device_array<std::uint16_t> some(4096);
  const fm::const_tensor<3> good(some.data(), fm::dtype::bf16, 6, g.kv_heads, g.key_dim);
  const auto refused = [&](status code, status expected, const char* what) {
    CHECK(code == expected);
    CHECK(w.step->last_fault().code == expected);
    CHECK(std::string(w.step->last_fault().what).find(what) != std::string::npos);
  };
  const auto stream = w.stream.ref();
  const auto spoiled = [&](const std::function<void(fm::const_tensor<3>&)>& spoil) {
    auto copy = good;
    spoil(copy);
    return copy;
  };
  refused(w.step->append(2, good, good, stream), status::out_of_range, "layer");
  refused(w.step->append(-1, good, good, stream), status::out_of_range, "layer");
  refused(w.step->append(0, good, good, fm::stream_ref::host()), status::unsupported, "stream");
  refused(w.step->append(0, spoiled([](auto& k) { k.shape[0] = 5; }), good, stream), status::bad_shape, "k");
  refused(w.step->append(0, good, spoiled([](auto& v) { v.shape[1] = 1; }), stream), status::bad_shape, "v");
  refused(w.step->append(0, good, spoiled([](auto& v) { v.shape[2] = 32; }), stream), status::bad_shape, "v");
  refused(w.step->append(0, spoiled([](auto& k) { k.stride[2] = 2; }), good, stream), status::bad_shape, "k");
  refused(w.step->append(0, spoiled([](auto& k) { k.type = fm::dtype::f16; }), good, stream),
          status::bad_dtype, "k");
  refused(w.step->append(0, spoiled([](auto& k) { k.data = nullptr; }), good, stream), status::null_data,
          "k");
  const device_array<std::byte> keys(6 * 132);
  fm::view<const std::byte, 2> rows(keys.data(), 6, 132);
  refused(w.step->append_index_keys(2, rows, stream), status::out_of_range, "lane");
  rows.shape[0] = 5;
  refused(w.step->append_index_keys(0, rows, stream), status::bad_shape, "keys");
  rows = fm::view<const std::byte, 2>(keys.data(), 6, 131);
  refused(w.step->append_index_keys(0, rows, stream), status::bad_shape, "key bytes");
  rows = fm::view<const std::byte, 2>(nullptr, 6, 132);
  refused(w.step->append_index_keys(0, rows, stream), status::null_data, "keys");
  fm::const_tensor<2> hidden(some.data(), fm::dtype::bf16, 6, hidden_size);
  hidden.shape[1] = 31;
  refused(w.step->observe(0, hidden, stream), status::bad_shape, "hidden");
  hidden.shape[1] = hidden_size;
  hidden.shape[0] = 7;
  refused(w.step->observe(1, hidden, stream), status::bad_shape, "hidden");
  hidden.shape[0] = 6;
  hidden.data = nullptr;
  refused(w.step->observe(1, hidden, stream), status::null_data, "hidden");
}

TEST_CASE("a decode step that cannot be built says which option is wrong", "[gpu][step]") {
  REQUIRE_GPU();
  const number_pool pool(1);
  world w(pool, {}, 1);
  const auto refused = [&](const char* field, const std::function<void(cu::decode_step_options&)>& spoil) {
    cu::decode_step_options o;
    o.rows = 4;
    o.max_chunks = 16;
    spoil(o);
    try {
      const cu::decode_step step(*w.store, w.select.get(), o);
    } catch (const fm::argument_error& e) {
      CHECK(std::string(e.what()).find(field) != std::string::npos);
      return;
    }
    FAIL("accepted a wrong " << field);
  };
  refused("rows", [](auto& o) { o.rows = 0; });
  refused("tokens", [](auto& o) { o.tokens = 9; });
  refused("max_chunks", [](auto& o) { o.max_chunks = 0; });  // no sequence is open
  refused("query_heads", [](auto& o) { o.query_heads = -1; });
  refused("query_heads", [](auto& o) { o.query_heads = 3; });
  refused("staging_steps", [](auto& o) { o.staging_steps = 1; });
}

TEST_CASE("chunk tables follow the resident sets, row by row, and send only what has changed",
          "[gpu][step]") {
  REQUIRE_GPU();
  const number_pool pool(2);
  world w(pool, {}, 2);
  auto s = w.open(), t = w.open();
  w.prefill(s, 200, 1);
  w.prefill(t, 90, 2);
  cu::chunk_tables_options o;
  o.rows = 3;
  o.max_chunks = 40;
  cu::chunk_tables tables(cu::context_of(*w.store), o);
  const auto check = [&](const std::vector<const world::sequence*>& rows) {
    w.stream.wait();
    std::vector<cu::chunk_row> heads(3);
    std::vector<const std::byte*> lists(3 * 40);
    must(cudaMemcpy(heads.data(), tables.rows().data, heads.size() * sizeof(cu::chunk_row),
                    cudaMemcpyDeviceToHost));
    must(cudaMemcpy(lists.data(), tables.lists(), lists.size() * sizeof(void*), cudaMemcpyDeviceToHost));
    for (std::size_t r = 0; r < 3; ++r) {
      CHECK(heads[r].chunks == tables.lists() + r * 40);
      if (r >= rows.size() || rows[r] == nullptr) {
        CHECK(heads[r].entries == 0);
        continue;
      }
      fm::resident_set set;
      REQUIRE(w.store->resident(rows[r]->handle, 0, &set) == status::ok);
      std::int64_t entries = 0;
      for (std::int64_t c = 0; c < set.count; ++c) {
        CHECK(lists[r * 40 + std::size_t(c)] == set.chunks[c].data);
        entries += set.chunks[c].entries;
      }
      CHECK(heads[r].entries == entries);
    }
  };
  check({});
  const auto update = [&](const std::vector<const world::sequence*>& rows) {
    std::vector<fm::batch_item> items;
    for (const auto* r : rows)
      items.push_back(r == nullptr ? fm::batch_item{} : fm::batch_item{r->handle, r->tokens, 1});
    return tables.update(*w.store, fm::batch(items.data(), items.size()), 0, w.stream.ref());
  };
  REQUIRE(update({&s, nullptr, &t}) == status::ok);
  check({&s, nullptr, &t});
  const auto sent = tables.bytes_sent();
  REQUIRE(update({&s, nullptr, &t}) == status::ok);
  CHECK(tables.bytes_sent() == sent);
  w.prefill(t, 1, 3);
  REQUIRE(update({&s, nullptr, &t}) == status::ok);
  CHECK(tables.bytes_sent() - sent <= 2 * 16);  // how many entries there are, and perhaps a new chunk
  check({&s, nullptr, &t});
  REQUIRE(update({&t, &s}) == status::ok);
  check({&t, &s});
  REQUIRE(update({}) == status::ok);
  check({});
  CHECK(update({&s, &t, &s, &t}) == status::bad_shape);
  fm::batch_item stale{s.handle, 0, 1};
  w.close(s);
  CHECK(tables.update(*w.store, fm::batch(&stale, 1), 0, w.stream.ref()) == status::stale_sequence);
  check({});
  cu::chunk_tables_options few = o;
  few.max_chunks = 2;
  cu::chunk_tables small(cu::context_of(*w.store), few);
  fm::batch_item item{t.handle, t.tokens, 1};
  fm::fault why;
  CHECK(small.update(*w.store, fm::batch(&item, 1), 0, w.stream.ref(), &why) == status::budget_exceeded);
  CHECK(why.expected == 2);
  CHECK(why.sequence == t.handle.index);
}
