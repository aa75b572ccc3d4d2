// SPDX-License-Identifier: MIT

#include "tests/catch.hpp"
#include "tests/support/counted_allocations.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using fm::status;

TEST_CASE(
    "append, append_index_keys, recall, resident, truncate and close allocate nothing, also when they fail") {
  const bool in_file = GENERATE(false, true);
  CAPTURE(in_file);
  fm::kv_geometry g = small_geometry();
  temporary_path path;
  fm::store_options o = small_options(g);
  if (in_file) o.backing_path = path.string();
  o.verify_ram = true;
  counting_memory memory;
  o.memory = memory.resource();
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(400, 9)), t = open(store, tokens(400, 0));
  const std::vector<std::uint64_t> prompt_tags(2 * 101, 3), step_tags(2, 5);
  const made_rows prompt[] = {make_rows(g, prompt_tags, 0), make_rows(g, prompt_tags, 1)};
  const made_rows step[] = {make_rows(g, step_tags, 0), make_rows(g, step_tags, 1)};
  const auto keys = make_keys(g, 60, 1);
  const fm::chunk_id chosen[] = {3, 1, 8}, wrong[] = {4, 4};
  REQUIRE(recall(store, s, {}) == status::ok);

  const std::int64_t before = allocations, before_memory = memory.calls;
  bool good = true;
  const auto pass = [&](std::int64_t position, std::int32_t count, const made_rows* rows) {
    const fm::batch_item items[] = {{s.handle, position, count}, {t.handle, position, count}};
    for (std::int32_t layer = 0; layer < 2; ++layer)
      good = good && store.append(fm::batch(items, 2), layer, rows[layer].k_view, rows[layer].v_view, host) ==
                         status::ok;
  };
  pass(0, 101, prompt);
  good = good && store.append_index_keys(s.handle, 0, 0, key_view(g, keys, 60), host) == status::ok;
  for (std::int64_t n = 0; n < 60; ++n) {
    fm::recall_report r;
    fm::resident_set set;
    if (n % 4 == 0)
      good = good &&
             store.recall(s.handle, fm::view<const fm::chunk_id, 1>(chosen, n % 3), &r, host) == status::ok;
    pass(101 + n, 1, step);
    good = good && store.resident(s.handle, 1, &set) == status::ok && set.tokens == 102 + n;
  }
  good = good && store.recall(s.handle, fm::view<const fm::chunk_id, 1>(wrong, 2), nullptr, host) ==
                     status::bad_argument;
  good = good && store.truncate(s.handle, 90) == status::ok &&
         store.truncate(s.handle, 99) == status::out_of_range;
  const std::int64_t after = allocations, after_memory = memory.calls;
  REQUIRE(good);
  CHECK(after == before);
  CHECK(after_memory == before_memory);
  const std::int64_t closing = allocations;
  const status closed = store.close(s.handle);
  CHECK(allocations == closing);
  CHECK(closed == status::ok);
}
