// SPDX-License-Identifier: MIT
#include "src/core/checked.hpp"

#include <atomic>
#include <cmath>
#include <thread>

#include "tests/catch.hpp"
#include "tests/support/store_testing.hpp"

static_assert(FLASHMEMORY_CHECKED, "this program is built with the checks");

using namespace store_testing;
using fm::status;

namespace {

/// A medium whose reads and writes wait inside a call of the store until the test has looked.
class slow final : public fm::backing_store {
 public:
  explicit slow(std::unique_ptr<fm::backing_store> inner) : inner_(std::move(inner)) {}
  status write(std::int64_t r, std::size_t at, const void* data, std::size_t n, int* e) noexcept override {
    wait();
    return inner_->write(r, at, data, n, e);
  }
  status read(std::int64_t r, std::size_t at, void* data, std::size_t n, int* e) const noexcept override {
    wait();
    return inner_->read(r, at, data, n, e);
  }
  bool needs_verification() const noexcept override { return true; }
  mutable std::atomic<bool> hold{false}, inside{false};

 private:
  void wait() const {
    if (!hold) return;
    inside = true;
    while (hold) std::this_thread::yield();
    inside = false;
  }
  std::unique_ptr<fm::backing_store> inner_;
};

struct world {
  fm::store_options options = small_options();
  slow* medium;
  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence s;

  world() {
    const auto bytes = fm::chunk_layout(options.geometry).chunk_bytes();
    auto made = std::make_unique<slow>(
        fm::make_ram_backing(std::int64_t(options.backing_bytes / bytes), bytes, fm::default_memory()));
    medium = made.get();
    store = std::make_unique<fm::tiered_chunk_store>(options, std::move(made));
    s = open(*store, tokens(200, 8));
    REQUIRE(grow(*store, s, 82, 1) == status::ok);
  }
  /// Runs `call` in another thread, and `look` while that is inside the medium.
  template <class Call, class Look>
  void beside(const Call& call, const Look& look) {
    medium->hold = true;
    std::thread other(call);
    while (!medium->inside) std::this_thread::yield();
    look();
    medium->hold = false;
    other.join();
  }
};

}  // namespace

TEST_CASE("a checked store refuses every call beside one that changes something, and does not change") {
  world w;
  std::vector<std::byte> chunk(fm::chunk_layout(w.options.geometry).chunk_bytes());
  status theirs = status::io_error;
  const auto look = [&] {
    fm::resident_set set;
    fm::sequence_info i;
    CHECK(w.store->truncate(w.s.handle, 10) == status::bad_argument);
    CHECK(std::string(w.store->last_fault().what) == "another thread is in a call of the store");
    CHECK(w.store->close(w.s.handle) == status::bad_argument);
    CHECK(recall(*w.store, w.s, {3}) == status::bad_argument);
    CHECK(w.store->resident(w.s.handle, 0, &set) == status::bad_argument);
    CHECK(w.store->info(w.s.handle, &i) == status::bad_argument);
    CHECK(w.store->read_chunk(w.s.handle, 3, fm::view<std::byte, 1>(chunk.data(), chunk.size())) ==
          status::bad_argument);
    CHECK_THROWS_AS(w.store->open(tokens(20, 0)), fm::error);
    CHECK_THROWS_AS(w.store->fork(w.s.handle, tokens(200, 8)), fm::error);
  };
  w.beside([&] { theirs = recall(*w.store, w.s, {5}); }, look);
  CHECK(theirs == status::ok);
  CHECK(info(*w.store, w.s).tokens == 82);
  CHECK(resident_ids(*w.store, w.s) == std::vector<fm::chunk_id>{0, 5, 18, 19, 20});
  REQUIRE(recall(*w.store, w.s, {3}) == status::ok);  // one after the other, whichever thread
}

TEST_CASE("a checked store lets const calls run beside each other, and nothing else beside them") {
  world w;
  std::vector<std::byte> chunk(fm::chunk_layout(w.options.geometry).chunk_bytes());
  status theirs = status::io_error;
  w.beside(
      [&] {
        theirs = w.store->read_chunk(w.s.handle, 3, fm::view<std::byte, 1>(chunk.data(), chunk.size()));
      },
      [&] {
        fm::resident_set set;
        CHECK(w.store->resident(w.s.handle, 0, &set) == status::ok);
        CHECK(info(*w.store, w.s).tokens == 82);
        CHECK(recall(*w.store, w.s, {3}) == status::bad_argument);
        CHECK(grow(*w.store, w.s, 1, 9) == status::bad_argument);
      });
  CHECK(theirs == status::ok);
  REQUIRE(grow(*w.store, w.s, 1, 9) == status::ok);
  CHECK(all_chunks_right(*w.store, w.s));
}

TEST_CASE("in a checked store a slot that was given back reads as NaN through an old resident set") {
  world w;
  REQUIRE(recall(*w.store, w.s, {5}) == status::ok);
  const fm::resident_set before = resident(*w.store, w.s);
  REQUIRE(before.chunks[1].id == 5);
  const std::byte* const slot = before.chunks[1].data;
  REQUIRE(recall(*w.store, w.s, {}) == status::ok);
  const std::size_t bytes = fm::chunk_layout(w.options.geometry).chunk_bytes();
  CHECK(std::all_of(slot, slot + bytes, [](std::byte b) { return b == std::byte{0xff}; }));
}
