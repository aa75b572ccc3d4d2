// SPDX-License-Identifier: MIT
#include <sys/resource.h>
#include <xxhash.h>

#include <csignal>
#include <cstring>

#include "src/session/load.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/nameless_file.hpp"
#include "tests/unit/session/support.hpp"

using namespace session_testing;
using fm::status;

namespace {

/// A small geometry, so that every byte of a file can be tried.
fm::kv_geometry tiny() {
  fm::kv_geometry g = toy::geometry();
  g.entries_per_chunk = 4;
  return g;
}

struct saved {
  temporary_folder folder;
  host a{tiny()}, b{tiny()};
  toy::sequence s;
  std::vector<char> bytes;

  explicit saved(std::int64_t tokens = 9) {
    s = a.engine->open(a.options(), 5);
    REQUIRE(a.engine->step(s, tokens) == status::ok);
    fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
    bytes = read_file(folder.file("s"));
  }
  fm::sequence_handle load(const std::vector<char>& from) {
    fm::detail::memory_input in(reinterpret_cast<const std::byte*>(from.data()), from.size(), "image");
    return fm::detail::load_session_from(in, *b.store, b.select.get(), {}, {});
  }
  void refused(const std::vector<char>& from) {
    REQUIRE_THROWS_AS(load(from), fm::format_error);
    REQUIRE(b.store->usage().sequences == 0);
  }
};

}  // namespace

TEST_CASE("a session cut short at any byte is refused", "[session][fault]") {
  saved s;
  CAPTURE(s.bytes.size());
  for (std::size_t size = 0; size < s.bytes.size(); ++size) {
    CAPTURE(size);
    s.refused({s.bytes.begin(), s.bytes.begin() + std::ptrdiff_t(size)});
  }
  auto longer = s.bytes;
  longer.push_back(0);
  s.refused(longer);
  CHECK_NOTHROW(s.load(s.bytes));
}

TEST_CASE("a session with any byte changed is refused", "[session][fault]") {
  saved s;
  const char flip = char(GENERATE(0x01, 0x80, 0xff));
  for (std::size_t at = 0; at < s.bytes.size(); ++at) {
    CAPTURE(at);
    auto damaged = s.bytes;
    damaged[at] = char(damaged[at] ^ flip);
    s.refused(damaged);
  }
}

TEST_CASE("the same holds for files on disk", "[session][fault]") {
  saved s(30);
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 40; ++i) {
    const std::size_t at = std::uniform_int_distribution<std::size_t>(0, s.bytes.size() - 1)(random);
    CAPTURE(at);
    auto damaged = s.bytes;
    if (i % 2 == 0)
      damaged.resize(at);
    else
      damaged[at] = char(damaged[at] ^ 0x10);
    write_file(s.folder.file("d"), damaged);
    REQUIRE_THROWS_AS(fm::load_session(*s.b.store, s.folder.file("d"), s.b.select.get()), fm::format_error);
    REQUIRE(s.b.store->usage().sequences == 0);
  }
}

TEST_CASE("a header that was made up with a right checksum is still checked against the file",
          "[session][fault]") {
  saved s;
  std::uint32_t header = 0;
  std::memcpy(&header, s.bytes.data() + 12, 4);
  REQUIRE(header == 24 + 12 * 4 + 5 * 8 + 16 + 8 + 2 * 4 + 3 * 8 + std::string("dual_encoder").size() + 8);
  int accepted = 0;
  for (std::size_t at = 0; at + 8 < header; ++at)
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      CAPTURE(at, value);
      auto forged = s.bytes;
      if (forged[at] == char(value)) continue;
      forged[at] = char(value);
      const std::uint64_t sum = XXH3_64bits(forged.data(), header - 8);
      std::memcpy(forged.data() + header - 8, &sum, 8);
      try {
        const auto loaded = s.load(forged);
        accepted +=
            s.b.store->close(loaded) == status::ok;  // limits of the sequence may be anything that works
      } catch (const fm::format_error&) {
      } catch (const fm::admission_error&) {
      } catch (const fm::argument_error&) {
      }
      REQUIRE(s.b.store->usage().sequences == 0);
    }
  CHECK(accepted < 40);
}

TEST_CASE("foreign files, other versions and other geometries are named", "[session][fault]") {
  saved s;
  const auto message = [&](const std::vector<char>& from, host& to) {
    write_file(s.folder.file("d"), from);
    try {
      fm::load_session(*to.store, s.folder.file("d"), nullptr);
    } catch (const fm::format_error& e) {
      return std::string(e.what());
    }
    return std::string("nothing was thrown");
  };
  CHECK(message(std::vector<char>(5000, 'x'), s.b).find("no flashmemory session") != std::string::npos);
  for (const int version : {1, 3}) {
    auto other = s.bytes;
    other[8] = char(version);
    const std::string says = message(other, s.b);
    CHECK(says.find("a session of version " + std::to_string(version)) != std::string::npos);
    CHECK(says.find("reads version 2") != std::string::npos);
    CHECK(says.find(s.folder.file("d")) != std::string::npos);
  }
  struct other {
    const char* field;
    void (*change)(fm::kv_geometry&);
  };
  const other others[] = {
      {"layers", [](fm::kv_geometry& g) { g.layers = 3; }},
      {"kv_heads", [](fm::kv_geometry& g) { g.kv_heads = 2; }},
      {"key_dim", [](fm::kv_geometry& g) { g.key_dim = 32; }},
      {"value_dim", [](fm::kv_geometry& g) { g.value_dim = 32; }},
      {"type", [](fm::kv_geometry& g) { g.type = fm::dtype::bf16; }},
      {"entries_per_chunk", [](fm::kv_geometry& g) { g.entries_per_chunk = 8; }},
      {"tokens_per_entry", [](fm::kv_geometry& g) { g.tokens_per_entry = 2; }},
      {"index_keys.lanes", [](fm::kv_geometry& g) { g.index_keys.lanes = 4; }},
  };
  for (const other& o : others) {
    fm::kv_geometry g = tiny();
    o.change(g);
    host to(g);
    CAPTURE(o.field);
    const std::string says = message(s.bytes, to);
    CHECK(says.find(std::string(o.field) + " is ") != std::string::npos);
    if (std::string(o.field) == "type")
      CHECK(says.find("type is f32, the store's is bf16") != std::string::npos);
    CHECK(to.store->usage().sequences == 0);
  }
}

TEST_CASE("a session is replaced as a whole or stays as it was", "[session][fault]") {
  saved s(40);
  for (int i = 0; i < 9; ++i) REQUIRE(s.a.engine->step(s.s) == status::ok);
  SECTION("replaced") {
    fm::save_session(*s.a.store, s.s.handle, s.folder.file("s"), s.a.select.get());
    CHECK(read_file(s.folder.file("s")) != s.bytes);
    CHECK_NOTHROW(fm::load_session(*s.b.store, s.folder.file("s"), s.b.select.get()));
  }
  SECTION("no room on the disk") {
    // A limit on file sizes stands for a full disk: write() fails half way.
    rlimit old;
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit low = old;
    low.rlim_cur = s.bytes.size() / 2;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &low) == 0);
    bool failed = false;
    try {
      fm::save_session(*s.a.store, s.s.handle, s.folder.file("s"), s.a.select.get());
    } catch (const fm::io_failure& e) {
      failed = true;
      CHECK(std::string(e.what()).find(s.folder.file("s")) != std::string::npos);
    }
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
    std::signal(SIGXFSZ, handler);
    CHECK(failed);
    CHECK(read_file(s.folder.file("s")) == s.bytes);
  }
  SECTION("a folder that is not there") {
    CHECK_THROWS_AS(fm::save_session(*s.a.store, s.s.handle, s.folder.file("no/where")), fm::io_failure);
    CHECK(read_file(s.folder.file("s")) == s.bytes);
  }
  CHECK(s.folder.files() == 1);
}

TEST_CASE("a chunk that rotted in the backing store is not saved", "[session][fault]") {
  temporary_folder folder;
  auto o = toy::store_options(tiny());
  o.backing_path = folder.file("backing");
  fm::tiered_chunk_store store(o);
  const std::string backing = flashmemory_test::nameless_file_in(folder.path());
  fm::dual_encoder_indexer index(toy::small_dual_encoder(3));
  fm::selection_policy p;
  p.interval = 8;
  fm::selector select(store, index, p);
  toy::engine engine(store, select);
  auto s = engine.open(fm::sequence_options_for(p, tiny(), 400), 5);
  REQUIRE(engine.step(s, 200) == status::ok);
  auto bytes = read_file(backing);
  for (char& b : bytes) b = char(b ^ 1);
  {
    std::fstream out(backing, std::ios::binary | std::ios::in | std::ios::out);
    out.write(bytes.data(), std::streamsize(bytes.size()));
  }
  bool corrupt = false;
  try {
    fm::save_session(store, s.handle, folder.file("s"), &select);
  } catch (const fm::error& e) {
    corrupt = e.code() == status::corrupt_chunk;
  }
  CHECK(corrupt);
  CHECK(folder.files() == 0);
}
