// SPDX-License-Identifier: MIT
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "tests/c/c_engine.hpp"

using namespace c_testing;

TEST_CASE("null, closed, foreign and wrong handles are refused in words", "[c]") {
  world w;
  fm_store_usage usage{};
  usage.struct_size = sizeof(usage);
  const auto refused = [&](fm_store* handle, const std::string& says) {
    CHECK(fm_store_get_usage(handle, &usage) == FM_BAD_HANDLE);
    CHECK(last().code == FM_BAD_HANDLE);
    CHECK_THAT(last().text, Catch::Contains(says) && Catch::StartsWith("store"));
  };
  refused(nullptr, "is null");
  int mine = 0;
  refused(reinterpret_cast<fm_store*>(&mine), "no handle of this library");
  refused(reinterpret_cast<fm_store*>(std::uintptr_t{0x7f}), "no handle of this library");
  refused(reinterpret_cast<fm_store*>(w.select), "another kind");
  // The next version's handles begin with another byte.
  refused(reinterpret_cast<fm_store*>(reinterpret_cast<std::uintptr_t>(w.store) + (std::uintptr_t{1} << 48)),
          "another version");

  const fm_store_options so = small_store();
  fm_store *other = nullptr, *again = nullptr;
  REQUIRE(fm_store_open(&so, &other) == FM_OK);
  REQUIRE(fm_store_close(other) == FM_OK);
  refused(other, "is closed");
  REQUIRE(fm_store_open(&so, &again) == FM_OK);  // in the same place
  refused(other, "is closed");
  CHECK(fm_store_close(other) == FM_BAD_HANDLE);
  CHECK(fm_store_close(again) == FM_OK);

  CHECK(fm_select_chunks(nullptr, nullptr, 0, nullptr) == FM_BAD_HANDLE);
  CHECK(fm_sparse_attend(nullptr, nullptr, 0, 0, nullptr, nullptr, nullptr, nullptr) == FM_BAD_HANDLE);
  CHECK(fm_indexer_close(nullptr) == FM_BAD_HANDLE);
  CHECK(fm_selector_close(nullptr) == FM_BAD_HANDLE);
  CHECK(fm_attention_close(nullptr) == FM_BAD_HANDLE);
}

TEST_CASE("what others stand on is not closed", "[c]") {
  world w;
  CHECK(fm_store_close(w.store) == FM_IN_USE);
  CHECK_THAT(last().text, Catch::Contains("2 other objects"));
  CHECK(fm_indexer_close(w.index) == FM_IN_USE);
  CHECK(w.pass(40, nullptr, FM_PROMPT_END) == FM_OK);
  REQUIRE(fm_attention_close(w.attention) == FM_OK);
  CHECK(fm_store_close(w.store) == FM_IN_USE);
  REQUIRE(fm_selector_close(w.select) == FM_OK);
  CHECK(fm_store_close(w.store) == FM_OK);
  CHECK(fm_indexer_close(w.index) == FM_OK);
  w.attention = nullptr;
  w.select = nullptr;
  w.store = nullptr;
  w.index = nullptr;
}

TEST_CASE("structs of another size are refused, shorter ones served", "[c]") {
  fm_policy p;
  CHECK(fm_init_policy(&p, sizeof(p) + 8) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("struct_size"));
  CHECK(fm_init_policy(&p, 2) == FM_BAD_ARGUMENT);
  CHECK(fm_init_policy(nullptr, sizeof(p)) == FM_NULL_DATA);
  world w;
  fm_sequence_info info;
  std::memset(&info, 0x7f, sizeof(info));
  CHECK(fm_sequence_get_info(w.store, w.sequence, &info) == FM_BAD_ARGUMENT);
  // A program of an older header knows the first fields only: nothing behind them is written.
  info.struct_size = offsetof(fm_sequence_info, resident_chunks);
  REQUIRE(w.pass(20, nullptr, FM_PROMPT_END) == FM_OK);
  REQUIRE(fm_sequence_get_info(w.store, w.sequence, &info) == FM_OK);
  CHECK(info.tokens == 20);
  CHECK(info.complete_chunks == 2);
  CHECK(info.resident_chunks == 0x7f7f7f7f7f7f7f7f);
  fm_policy cut;
  REQUIRE(fm_init_policy(&cut, offsetof(fm_policy, budget_fraction)) == FM_OK);
  cut.interval = 8;
  fm_selector* select = nullptr;
  CHECK(fm_selector_open(w.store, w.index, &cut, nullptr, &select) == FM_OK);
  CHECK(fm_selector_close(select) == FM_OK);
  std::memset(&cut, 0, sizeof(cut));  // whoever forgets fm_init_policy()
  CHECK(fm_selector_open(w.store, w.index, &cut, nullptr, &select) == FM_BAD_ARGUMENT);
}

TEST_CASE("set-up that cannot work says what of it", "[c]") {
  fm_store_options so = small_store();
  fm_store* store = nullptr;
  so.layers = 0;
  CHECK(fm_store_open(&so, &store) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("layers"));
  so = small_store();
  so.type = 7;
  CHECK(fm_store_open(&so, &store) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("type"));
  so = small_store();
  so.fast_bytes = 10;
  CHECK(fm_store_open(&so, &store) == FM_BUDGET_EXCEEDED);
  CHECK_THAT(last().text, Catch::Contains("bytes"));
  so = small_store();
  so.backing_path = "/nowhere/at/all";
  CHECK(fm_store_open(&so, &store) == FM_IO_ERROR);
  CHECK_THAT(last().text, Catch::Contains("/nowhere/at/all"));
  CHECK(store == nullptr);
  fm_indexer* index = nullptr;
  CHECK(fm_indexer_load("/nowhere/at/all", &index) == FM_IO_ERROR);
  CHECK(fm_indexer_load(nullptr, &index) == FM_NULL_DATA);
  fm_pooled_keys_options po;
  REQUIRE(fm_init_pooled_keys_options(&po, sizeof(po)) == FM_OK);
  po.key_dim = 32;
  po.query_heads = 4;
  po.kv_heads = 2;
  po.num_lanes = 1;
  CHECK(fm_indexer_pooled_keys(&po, &index) == FM_NULL_DATA);
  fm_pooled_keys_lane lane{};
  lane.kv_head = 9;
  po.lanes = &lane;
  CHECK(fm_indexer_pooled_keys(&po, &index) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("kv_head") || Catch::Contains("lane"));
  CHECK(index == nullptr);
  world w;
  fm_sequence s;
  CHECK(fm_session_load(w.store, "/nowhere/at/all", nullptr, nullptr, nullptr, nullptr, &s) == FM_IO_ERROR);
  world other;
  CHECK(fm_session_save(w.store, w.sequence, "/nowhere", other.select, nullptr) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("another store"));
  fm_attention* attention = nullptr;
  fm_attention_options ao;
  REQUIRE(fm_init_attention_options(&ao, sizeof(ao)) == FM_OK);
  ao.query_heads = 3;
  ao.max_chunks = 8;
  CHECK(fm_attention_open(w.store, &ao, &attention) == FM_BAD_ARGUMENT);
  CHECK_THAT(last().text, Catch::Contains("query_heads"));
  so = small_store();
  so.cuda = 1;
  const fm_status code = fm_store_open(&so, &store);
  CHECK((code == FM_UNSUPPORTED || code == FM_CUDA_ERROR ||
         code == FM_OK));  // as it was built, and where it runs
  if (code == FM_OK) fm_store_close(store);
}

TEST_CASE("two threads in one object: one is served, the other is told, nothing breaks", "[c]") {
  world w;
  REQUIRE(w.pass(40, nullptr, FM_PROMPT_END) == FM_OK);
  std::atomic<int> served{0}, busy{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 3000; ++i) {
        fm_status code;
        if (i % 3 == 0) {
          const fm_batch_item nothing = {{UINT32_MAX, 0}, 0, 1, FM_DECODE};
          code = fm_select_chunks(w.select, &nothing, 1, nullptr);
        } else if (i % 3 == 1) {
          code = fm_request_refresh(w.select, w.sequence);
        } else {
          fm_sequence_info info{};
          info.struct_size = sizeof(info);
          code = fm_sequence_get_info(w.store, w.sequence, &info);
          if (code == FM_OK && info.tokens != 40) ++wrong;
        }
        if (code == FM_OK)
          ++served;
        else if (code == FM_BUSY && last().code == FM_BUSY)
          ++busy;
        else
          ++wrong;
      }
    });
  for (auto& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(served + busy == 12000);
  CHECK(served > 3000);
  CHECK(w.pass(1) == FM_OK);
}

namespace {

struct scorer {
  int calls = 0;
  int throws = 0;  ///< 1 an exception, 2 something else
  fm_status answer = FM_OK;
  fm_store* reenter = nullptr;
  fm_status reentered = FM_OK;
};

fm_status score(void* context, const fm_score_request* request, float* scores) {
  auto& s = *static_cast<scorer*>(context);
  ++s.calls;
  if (s.throws == 1) throw std::runtime_error("the scorer is tired");
  if (s.throws == 2) throw 7;
  if (s.reenter) s.reentered = fm_sequence_truncate(s.reenter, request->sequence, 0);
  if (request->num_queries != 1 || !request->queries[0]) return FM_BAD_ARGUMENT;
  for (std::int64_t c = 0; c < request->chunks; ++c) scores[c] = c == 3 ? 9.0f : -float(c);
  return s.answer;
}

}  // namespace

TEST_CASE("an engine's scorer chooses; what it throws or returns becomes a status", "[c]") {
  scorer s;
  world w(&score, &s);
  REQUIRE(w.pass(60, nullptr, FM_PROMPT) == FM_OK);
  REQUIRE(w.pass(60, nullptr, FM_PROMPT_END) == FM_OK);
  CHECK(s.calls == 1);
  std::int32_t ids[16];
  std::int64_t count = 0;
  REQUIRE(fm_sequence_resident(w.store, w.sequence, ids, 16, &count) == FM_OK);
  CHECK(std::count(ids, ids + std::min<std::int64_t>(count, 16), 3) == 1);

  const auto refresh = [&] {
    REQUIRE(fm_request_refresh(w.select, w.sequence) == FM_OK);
    return w.pass(1);
  };
  s.throws = 1;
  CHECK(refresh() == FM_EXCEPTION);
  CHECK_THAT(last().text, Catch::Contains("the scorer is tired"));
  s.throws = 2;
  CHECK(refresh() == FM_EXCEPTION);
  s.throws = 0;
  for (const fm_status answer : {fm_status(FM_INDEX_KEYS_MISSING), fm_status(FM_BUSY), fm_status(-5)}) {
    s.answer = answer;
    CHECK(refresh() == (answer == FM_INDEX_KEYS_MISSING ? answer : fm_status(FM_BAD_ARGUMENT)));
  }
  s.answer = FM_OK;
  s.reenter = w.store;
  CHECK(refresh() == FM_OK);
  CHECK(s.reentered == FM_BUSY);
  fm_sequence_info info{};
  info.struct_size = sizeof(info);
  REQUIRE(fm_sequence_get_info(w.store, w.sequence, &info) == FM_OK);
  CHECK(info.tokens == 126);
}

namespace {

void run_tasks(void* context, std::int32_t count, void (*task)(void*, std::int32_t), void* task_context) {
  int& left = *static_cast<int*>(context);
  if (left >= 0 && left-- == 0) throw std::runtime_error("no threads today");
  for (std::int32_t i = 0; i < count; ++i) task(task_context, i);
}

}  // namespace

TEST_CASE("an engine's threads do the work; what they throw ends the call", "[c]") {
  int left = -1;
  const fm_threads threads = {&left, &run_tasks, 2};
  world w(nullptr, nullptr, &threads);
  REQUIRE(w.pass(60, nullptr, FM_PROMPT) == FM_OK);
  left = 0;
  CHECK(w.pass(60, nullptr, FM_PROMPT) == FM_EXCEPTION);
  CHECK_THAT(last().text, Catch::Contains("threads.run"));
  CHECK(left == -1);
  REQUIRE(fm_sequence_truncate(w.store, w.sequence, 60) == FM_OK);
  CHECK(w.pass(60, nullptr, FM_PROMPT_END) == FM_OK);
}

TEST_CASE("the last fault is this thread's, and has a name for every code", "[c]") {
  CHECK(fm_store_close(nullptr) == FM_BAD_HANDLE);
  std::thread([] {
    CHECK(last().code == FM_OK);
    CHECK(last().text[0] == 0);
  }).join();
  CHECK(last().code == FM_BAD_HANDLE);
  for (fm_status code = FM_OK; code <= FM_TIMED_OUT; ++code)
    CHECK(std::string(fm_status_name(code)) != "unknown");
  for (fm_status code = FM_BAD_HANDLE; code <= FM_EXCEPTION; ++code)
    CHECK(std::string(fm_status_name(code)) != "unknown");
  CHECK(std::string(fm_status_name(99)) == "unknown");
  fm_last_fault(nullptr);
}

TEST_CASE("more objects than there is room for are refused, and room comes back", "[c]") {
  std::vector<fm_indexer*> all;
  fm_indexer* one = nullptr;
  while (all.size() < 5000 && fm_indexer_recency(&one) == FM_OK) all.push_back(one);
  CHECK(all.size() <= 4096);
  CHECK(last().code == FM_NO_MEMORY);
  for (fm_indexer* i : all) REQUIRE(fm_indexer_close(i) == FM_OK);
  REQUIRE(fm_indexer_recency(&one) == FM_OK);
  CHECK(fm_indexer_close(one) == FM_OK);
}
