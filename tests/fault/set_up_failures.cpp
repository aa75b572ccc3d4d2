// SPDX-License-Identifier: MIT
#include <functional>

#include "tests/catch.hpp"
#include "tests/support/counted_allocations.hpp"
#include "tests/support/small_dual_encoder.hpp"
#include "tests/support/store_testing.hpp"

namespace fm = flashmemory;
using fm::status;
using store_testing::counting_memory;

namespace {

/// Counts what a resource gives; its own books are never what is refused.
fm::memory_resource counted_resource(counting_memory& memory) {
  fm::memory_resource r;
  r.context = &memory;
  r.allocate = [](void* self, std::size_t bytes, std::size_t alignment) {
    const std::int64_t left = allocations_left.exchange(-1);
    const fm::memory_resource inner = static_cast<counting_memory*>(self)->resource();
    void* const block = inner.allocate(inner.context, bytes, alignment);
    allocations_left = left;
    return block;
  };
  r.deallocate = [](void* self, void* block, std::size_t bytes, std::size_t alignment) {
    const std::int64_t left = allocations_left.exchange(-1);
    const fm::memory_resource inner = static_cast<counting_memory*>(self)->resource();
    inner.deallocate(inner.context, block, bytes, alignment);
    allocations_left = left;
  };
  return r;
}

/// A store, a selector and a sequence with a prompt, whose memory comes from `memory`.
struct world {
  counting_memory memory;
  fm::dual_encoder_indexer index{toy::small_dual_encoder(1)};
  fm::store_options options;
  fm::selection_policy policy;
  fm::selector_options select_options;
  std::unique_ptr<fm::tiered_chunk_store> store;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<toy::engine> engine;
  toy::sequence s;

  world() {
    options = toy::store_options(toy::geometry(static_cast<std::int32_t>(index.taps().index_keys.size())), 6);
    options.fast_bytes = options.backing_bytes = std::size_t{4} << 20;
    options.memory = counted_resource(memory);
    select_options.memory = counted_resource(memory);
    store = std::make_unique<fm::tiered_chunk_store>(options);
    select = std::make_unique<fm::selector>(*store, index, policy, select_options);
    engine = std::make_unique<toy::engine>(*store, *select);
    s = engine->open(wanted(), 1);
    REQUIRE(engine->step(s, 150) == status::ok);
  }
  fm::sequence_options wanted() const { return fm::sequence_options_for(policy, options.geometry, 400); }
};

/// Refuses the first, second, ... allocation of a set-up call until it succeeds. \returns how many were refused
int refuse_each(world& w, bool resource, const std::function<void()>& call) {
  for (int n = 0;; ++n) {
    const fm::store_usage before = w.store->usage();
    const std::size_t in_use = w.memory.in_use;
    bool failed = false;
    w.memory.allowed = resource ? n : -1;
    allocations_left = resource ? -1 : n;
    try {
      call();
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const fm::admission_error&) {
      failed = true;
    }
    allocations_left = -1;
    w.memory.allowed = -1;
    if (!failed) return n;
    CAPTURE(n, resource);
    const fm::store_usage after = w.store->usage();
    REQUIRE(after.sequences == before.sequences);
    REQUIRE(after.fast_bytes == before.fast_bytes);
    REQUIRE(after.backing_reserved_bytes == before.backing_reserved_bytes);
    REQUIRE(w.memory.in_use == in_use);
    REQUIRE_FALSE(w.memory.mismatched);
    REQUIRE(n < 5000);
  }
}

}  // namespace

TEST_CASE("whichever allocation of a set-up call fails, nothing has changed and nothing is lost", "[fault]") {
  const bool resource = GENERATE(false, true);
  world w;
  const auto state = w.select->save_state(w.s.handle);
  fm::sequence_handle made;
  int refused = 0;

  refused += refuse_each(w, resource, [&] { made = w.store->open(w.wanted()); });
  refused += refuse_each(w, resource, [&] { w.select->attach(made); });
  w.select->detach(made);
  REQUIRE(w.store->close(made) == status::ok);

  refused += refuse_each(w, resource, [&] { made = w.store->fork(w.s.handle, w.wanted()); });
  refused += refuse_each(w, resource, [&] { w.select->attach_fork(w.s.handle, made); });
  w.select->detach(made);
  refused += refuse_each(w, resource, [&] { w.select->load_state(made, state.data(), state.size()); });
  REQUIRE(w.store->close(made) == status::ok);

  const int stores = refuse_each(w, resource, [&] { fm::tiered_chunk_store another(w.options); });
  const int selectors =
      refuse_each(w, resource, [&] { fm::selector another(*w.store, w.index, w.policy, w.select_options); });
  CHECK(stores > 1);
  CHECK(selectors > 0);
  if (resource) CHECK(refused > 4);

  REQUIRE(w.engine->step(w.s) == status::ok);  // it has been served all the time
  CHECK(w.select->request_refresh(w.s.handle) == status::ok);
  REQUIRE(w.engine->step(w.s) == status::ok);
}

TEST_CASE("what is reported as a sequence's keys and tables is what was taken for them", "[fault]") {
  world w;
  const auto before = w.memory.blocks;
  fm::sequence_options o = w.wanted();
  o.max_tokens = 333;
  const fm::sequence_handle made = w.store->open(o);
  fm::sequence_info i;
  REQUIRE(w.store->info(made, &i) == status::ok);
  const fm::kv_geometry& g = w.options.geometry;
  CHECK(i.index_key_bytes ==
        std::size_t(g.index_keys.lanes * g.chunks_for(333)) * fm::chunk_layout(g).index_key_page_bytes());
  int keys = 0, tables = 0;
  std::size_t taken = 0;
  for (const auto& [block, bytes] : w.memory.blocks) {
    if (before.count(block)) continue;
    keys += bytes == i.index_key_bytes;
    tables += bytes == i.table_bytes;
    taken += bytes;
  }
  CHECK(keys == 1);
  CHECK(tables == 1);
  CHECK(i.table_bytes > std::size_t(g.chunks_for(333)) * sizeof(void*));
  CHECK(taken >= i.index_key_bytes + i.table_bytes);
  REQUIRE(w.store->close(made) == status::ok);
}
