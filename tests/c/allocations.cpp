// SPDX-License-Identifier: MIT
#include "tests/c/c_engine.hpp"
#include "tests/support/counted_allocations.hpp"

using namespace c_testing;

TEST_CASE("step calls through C allocate nothing, and refusals neither until they are asked about",
          "[c][allocation]") {
  world w;
  REQUIRE(w.pass(60, nullptr, FM_PROMPT_END) == FM_OK);
  host_tensor q({1, 4, 16}), k({1, 2, 16}), v({1, 2, 16}), out({1, 4, 16});
  std::int64_t refreshes = 0;
  for (int step = 0; step < 40; ++step) {
    const fm_batch_item item = w.item(1);
    fm_attend_options how;
    fm_selection_report report{};
    report.struct_size = sizeof(report);
    const std::int64_t before = allocations;
    fm_status codes[8] = {};
    codes[0] = fm_init_attend_options(&how, sizeof(how));
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      codes[1] |= fm_append(w.store, &item, 1, layer, &k.t, &v.t, nullptr);
      codes[2] |= fm_sparse_attend(w.attention, &item, 1, layer, &q.t, &out.t, &how, nullptr);
    }
    ++w.tokens;
    codes[3] = fm_select_chunks(w.select, &item, 1, nullptr);
    codes[4] = fm_report(w.select, w.sequence, &report);
    const fm_status refused = fm_append(w.store, &item, 1, 0, nullptr, &v.t, nullptr);
    const fm_status late = fm_append(w.store, &item, 1, 0, &k.t, &v.t, nullptr);
    const fm_status closed = fm_select_chunks(nullptr, &item, 1, nullptr);
    CHECK(allocations - before == 0);
    for (const fm_status code : codes) REQUIRE(code == FM_OK);
    CHECK(refused == FM_NULL_DATA);
    CHECK(late == FM_OUT_OF_ORDER);
    CHECK(closed == FM_BAD_HANDLE);
    refreshes = report.refreshes;
  }
  CHECK(refreshes >= 5);
}

TEST_CASE("a process without memory is told so, and what was open goes on", "[c][allocation]") {
  world w;
  REQUIRE(w.pass(20, nullptr, FM_PROMPT_END) == FM_OK);
  const fm_store_options so = small_store();
  for (int nth = 0; nth < 12; ++nth) {
    fm_store* store = nullptr;
    allocations_left = nth;
    const fm_status code = fm_store_open(&so, &store);
    allocations_left = -1;
    CAPTURE(nth);
    if (code == FM_OK) {
      CHECK(fm_store_close(store) == FM_OK);
    } else {
      CHECK((code == FM_NO_MEMORY || code == FM_BUDGET_EXCEEDED));
      CHECK(store == nullptr);
    }
  }
  CHECK(w.pass(1) == FM_OK);
}
