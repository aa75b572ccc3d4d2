// SPDX-License-Identifier: MIT
#include <cerrno>
#include <fstream>
#include <functional>

#include "tests/catch.hpp"
#include "tests/support/nameless_file.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using Catch::Matchers::Contains;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

std::string nameless_file_of(const temporary_path& path) {
  return flashmemory_test::nameless_file_in(std::filesystem::path(path.string()).parent_path().string());
}

/// A store over a backing store that fails on demand, two sequences, and a script that comes by every path
/// that reads or writes. Each step either succeeds or changes nothing; after a failure it is repeated.
class scripted {
 public:
  scripted(failing_backing::switches& control, bool in_file) : control_(control) {
    fm::store_options o = small_options();
    o.transition_chunks = 4;
    const auto bytes = fm::chunk_layout(o.geometry).chunk_bytes();
    const auto records = std::int64_t(o.backing_bytes / bytes);
    auto inner = in_file ? fm::make_file_backing(path_.string(), records, bytes)
                         : fm::make_ram_backing(records, bytes, fm::default_memory());
    store = std::make_unique<fm::tiered_chunk_store>(
        o, std::make_unique<failing_backing>(std::move(inner), &control));
    a = open(*store, tokens(400, 8));
    b = open(*store, tokens(400, 8));
  }

  /// \returns how many steps failed
  int run() {
    prompt({&a}, {35});
    prompt({&a, &b}, {22, 41});
    select(a, {5, 2, 7});
    select(b, {1, 3});
    for (int i = 0; i < 6; ++i) prompt({&a, &b}, {1, 1});
    import_chunks();
    shorten(b, 30);
    select(a, {});
    prompt({&a}, {3});
    child = a;
    attempt({&a, &b}, [&] {
      try {
        child.handle = store->fork(a.handle, tokens(400, 9, 2, 4));
        return status::ok;
      } catch (const fm::admission_error&) {
        throw;
      } catch (const fm::error& e) {
        CHECK_THAT(e.what(), Contains("chunk"));
        return e.code();
      }
    });
    shorten(child, 18);
    prompt({&child, &a}, {9, 2});
    select(child, {3, 1});
    return failures_;
  }

  void check_all() {
    for (const engine_sequence* s : {&a, &b, &child, &c})
      if (s->handle.generation != 0) REQUIRE(all_chunks_right(*store, *s));
  }

  std::unique_ptr<fm::tiered_chunk_store> store;
  engine_sequence a, b, c, child;
  status expected = status::io_error;

 private:
  void attempt(const std::vector<const engine_sequence*>& touched, const std::function<status()>& step) {
    std::vector<snapshot> before;
    for (const engine_sequence* s : touched) before.emplace_back(*store, *s);
    status code = step();
    if (code != status::ok) {
      ++failures_;
      REQUIRE(std::string(to_string(code)) == to_string(expected));
      for (std::size_t i = 0; i < touched.size(); ++i) {
        REQUIRE(snapshot(*store, *touched[i]) == before[i]);
        if (!in_pass_) REQUIRE(all_chunks_right(*store, *touched[i]));
      }
      code = step();
    }
    REQUIRE(code == status::ok);
  }

  void prompt(std::vector<engine_sequence*> grown, const std::vector<std::int32_t>& counts) {
    const fm::kv_geometry& g = store->geometry();
    std::vector<fm::batch_item> items;
    std::vector<std::uint64_t> all;
    std::vector<std::vector<std::uint64_t>> tags;
    std::vector<const engine_sequence*> touched;
    for (std::size_t i = 0; i < grown.size(); ++i) {
      items.push_back({grown[i]->handle, grown[i]->tokens, counts[i]});
      tags.push_back(new_tags(g, *grown[i], counts[i], ++seed_));
      all.insert(all.end(), tags[i].begin(), tags[i].end());
      touched.push_back(grown[i]);
    }
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const made_rows rows = make_rows(g, all, layer);
      in_pass_ = layer > 0;
      attempt(touched, [&] {
        const status code =
            store->append(fm::batch(items.data(), items.size()), layer, rows.k_view, rows.v_view, host);
        if (code != status::ok) {
          CHECK(store->last_fault().layer == layer);
          CHECK(store->last_fault().os_error == control_.os_error);
        }
        return code;
      });
    }
    in_pass_ = false;
    for (std::size_t i = 0; i < grown.size(); ++i) {
      grown[i]->tags.insert(grown[i]->tags.end(), tags[i].begin(), tags[i].end());
      grown[i]->tokens += counts[i];
    }
  }

  void select(engine_sequence& s, const ids& chunks) {
    attempt({&a, &b}, [&] { return recall(*store, s, chunks); });
  }

  void shorten(engine_sequence& s, std::int64_t to) {
    attempt({&s}, [&] { return store->truncate(s.handle, to); });
    s.tokens = to;
    s.tags.resize(std::size_t(to));
  }

  void import_chunks() {
    c.handle = store->open(tokens(100, 6));
    for (std::uint64_t i = 0; i < 8; ++i) {
      const auto tags = new_tags(store->geometry(), c, i == 7 ? 3 : 4, 900 + i);
      auto together = c.tags;
      together.insert(together.end(), tags.begin(), tags.end());
      const auto bytes = expected_chunk(store->geometry(), together, std::int64_t(i));
      attempt({&c}, [&] {
        return store->append_chunk(c.handle, fm::view<const std::byte, 1>(bytes.data(), bytes.size()),
                                   std::int64_t(tags.size()));
      });
      c.tags = together;
      c.tokens += std::int64_t(tags.size());
    }
  }

  temporary_path path_;
  failing_backing::switches& control_;
  int failures_ = 0;
  std::uint64_t seed_ = 0;
  bool in_pass_ = false;
};

}  // namespace

TEST_CASE("whichever write fails, nothing has changed and the same call succeeds when repeated") {
  const bool in_file = GENERATE(false, true);
  failing_backing::switches clean;
  REQUIRE(scripted(clean, in_file).run() == 0);
  REQUIRE(clean.writes > 40);
  for (std::int64_t n = 0; n < clean.writes; ++n) {
    CAPTURE(n, in_file);
    failing_backing::switches control;
    control.fail_write = n;
    control.os_error = ENOSPC;
    scripted script(control, in_file);
    REQUIRE(script.run() == 1);
    script.check_all();
    REQUIRE(script.store->counters().faults == 1);
  }
}

TEST_CASE("a read that fails once costs nothing, whichever it is") {
  failing_backing::switches clean;
  REQUIRE(scripted(clean, false).run() == 0);
  const bool changed = GENERATE(false, true);
  for (std::int64_t n = 0; n < clean.reads; ++n) {
    CAPTURE(n, changed);
    failing_backing::switches control;
    control.verify = true;
    (changed ? control.flip_read : control.fail_read) = n;
    scripted script(control, false);
    REQUIRE(script.run() == 0);
    script.check_all();
    const fm::store_counters c = script.store->counters();
    REQUIRE(c.read_retries == 1);
    REQUIRE(c.chunks_unreadable == 0);
    REQUIRE(c.faults == 0);
  }
}

TEST_CASE(
    "a read that fails twice costs a recall the chunk; else nothing has changed, and the call may be "
    "repeated") {
  failing_backing::switches clean;
  REQUIRE(scripted(clean, false).run() == 0);
  REQUIRE(clean.reads > 10);
  for (std::int64_t n = 0; n < clean.reads; ++n) {
    CAPTURE(n);
    failing_backing::switches control;
    control.fail_read = n;
    control.failing_reads = 2;
    control.os_error = EIO;
    scripted script(control, false);
    const int failed = script.run();
    script.check_all();
    const fm::store_counters c = script.store->counters();
    REQUIRE(failed + c.chunks_unreadable == 1);
    REQUIRE(c.selected == c.hits + c.recalled + c.refused);
    REQUIRE(c.chunks_bad == 0);
  }
}

TEST_CASE("whichever reads return a changed byte, it is found and never used") {
  failing_backing::switches clean;
  clean.verify = true;
  REQUIRE(scripted(clean, false).run() == 0);
  for (std::int64_t n = 0; n < clean.reads; ++n) {
    CAPTURE(n);
    failing_backing::switches control;
    control.verify = true;
    control.flip_read = n;
    control.failing_reads = 2;
    control.flip_at = std::size_t(n * 37);
    scripted script(control, false);
    script.expected = status::corrupt_chunk;
    const int failed = script.run();
    script.check_all();
    REQUIRE(failed + script.store->counters().chunks_unreadable == 1);
    REQUIRE(script.store->counters().chunks_bad == 1);
  }
}

TEST_CASE("a device that stays full keeps refusing, and what is there stays readable") {
  failing_backing::switches control;
  control.os_error = ENOSPC;
  fm::store_options o = small_options();
  fm::tiered_chunk_store store(o, failing_ram(o, &control));
  engine_sequence s = open(store, tokens(200, 6));
  REQUIRE(grow(store, s, 43, 1) == status::ok);
  control.read_only_after = control.writes;
  const auto tags = new_tags(store.geometry(), s, 1, 2);
  const fm::batch_item item{s.handle, 43, 1};
  const made_rows first = make_rows(store.geometry(), tags, 0), last = make_rows(store.geometry(), tags, 1);
  REQUIRE(store.append(fm::batch(&item, 1), 0, first.k_view, first.v_view, host) == status::ok);
  for (int i = 0; i < 3; ++i) {
    CHECK(store.append(fm::batch(&item, 1), 1, last.k_view, last.v_view, host) == status::io_error);
    CHECK(store.last_fault().os_error == ENOSPC);
    CHECK(store.last_fault().chunk == 10);
    CHECK(store.last_fault().sequence == s.handle.index);
    CHECK(recall(store, s, {3, 6}) == status::ok);
  }
  REQUIRE(store.truncate(s.handle, 43) == status::ok);  // the engine gives the token up
  CHECK(all_chunks_right(store, s));
  CHECK(store.counters().chunks_sealed == 10);
  control.read_only_after = -1;
  REQUIRE(grow(store, s, 1, 3) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("one changed byte anywhere in the file is a corrupt chunk that names sequence, chunk and layer") {
  fm::store_options o = small_options();
  temporary_path path;
  o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  engine_sequence other = open(store, tokens(60, 6));
  engine_sequence s = open(store, tokens(200, 8));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  REQUIRE(recall(store, s, {4, 9}) == status::ok);
  const fm::chunk_layout layout(o.geometry);
  const auto bytes = layout.chunk_bytes();

  // Where chunk 6 lies is the store's business: it is looked up by its bytes.
  const auto chunk = expected_chunk(o.geometry, s.tags, 6);
  const std::string backing = nameless_file_of(path);
  std::vector<char> file(std::filesystem::file_size(backing));
  std::ifstream(backing, std::ios::binary).read(file.data(), std::streamsize(file.size()));
  std::size_t at = 0;
  while (at < file.size() && std::memcmp(file.data() + at, chunk.data(), bytes) != 0) at += bytes;
  REQUIRE(at < file.size());

  const auto flip = [&](std::size_t offset) {
    std::fstream f(backing, std::ios::binary | std::ios::in | std::ios::out);
    f.seekg(std::streamoff(at + offset));
    const char changed = char(f.get() ^ 1);
    f.seekp(std::streamoff(at + offset));
    f.put(changed);
    REQUIRE(f.good());
  };
  for (std::size_t offset = 0; offset < bytes; offset += 13) {
    CAPTURE(offset);
    flip(offset);
    fm::recall_report r;
    REQUIRE(recall(store, s, {5, 6, 7}, &r) == status::ok);
    CHECK(resident_ids(store, s) == ids{0, 5, 7, 18, 19, 20});
    CHECK(r.first_unreadable == 6);
    const fm::fault f = store.last_fault();
    CHECK(f.code == status::corrupt_chunk);
    CHECK(f.sequence == s.handle.index);
    CHECK(f.chunk == 6);
    CHECK(f.layer == std::int64_t(offset / layout.layer_bytes()));
    CHECK(resident_bytes_right(store, s));
    const snapshot after(store, s);
    std::vector<std::byte> out(bytes);
    CHECK(store.read_chunk(s.handle, 6, fm::view<std::byte, 1>(out.data(), bytes)) == status::corrupt_chunk);
    CHECK(store.truncate(s.handle, 26) == status::corrupt_chunk);
    CHECK(snapshot(store, s) == after);
    CHECK_THROWS_AS(store.fork(s.handle, tokens(200)), fm::error);
    CHECK(snapshot(store, s) == after);
    flip(offset);
  }
  CHECK(recall(store, s, {5, 6, 7}) == status::ok);
  CHECK(all_chunks_right(store, s));
}

TEST_CASE("a file that somebody cut short is an io_error") {
  fm::store_options o = small_options();
  temporary_path path;
  o.backing_path = path.string();
  fm::tiered_chunk_store store(o);
  engine_sequence s = open(store, tokens(200, 8));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  std::filesystem::resize_file(nameless_file_of(path), 10);
  fm::recall_report r;
  CHECK(recall(store, s, {3}, &r) == status::ok);
  CHECK(r.unreadable == 1);
  CHECK(store.last_fault().code == status::io_error);
  CHECK(store.last_fault().os_error == EIO);
  CHECK(store.last_fault().chunk == 3);
  std::vector<std::byte> out(fm::chunk_layout(o.geometry).chunk_bytes());
  CHECK(store.read_chunk(s.handle, 3, fm::view<std::byte, 1>(out.data(), out.size())) == status::io_error);
}

TEST_CASE("RAM is verified only when asked to") {
  const bool verify = GENERATE(false, true);
  failing_backing::switches control;
  fm::store_options o = small_options();
  o.verify_ram = verify;
  fm::tiered_chunk_store store(o, failing_ram(o, &control));
  engine_sequence s = open(store, tokens(200, 8));
  REQUIRE(grow(store, s, 82, 1) == status::ok);
  control.flip_read = control.reads;
  control.failing_reads = 2;
  fm::recall_report r;
  CHECK(recall(store, s, {3}, &r) == status::ok);
  CHECK(r.unreadable == (verify ? 1 : 0));
}

TEST_CASE("backing stores refuse sizes that cannot be and ranges outside of a record") {
  temporary_path path;
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  CHECK_THROWS_AS(fm::make_ram_backing(0, 64, fm::default_memory()), fm::argument_error);
  CHECK_THROWS_AS(fm::make_ram_backing(4, 0, fm::default_memory()), fm::argument_error);
  CHECK_THROWS_AS(fm::make_ram_backing(4, 64, {}), fm::argument_error);
  counting_memory dry;
  dry.allowed = 0;
  CHECK_THROWS_AS(fm::make_ram_backing(4, 64, dry.resource()), fm::admission_error);
  CHECK_THROWS_AS(fm::make_file_backing(path.string(), 0, 64), fm::argument_error);
  CHECK_THROWS_AS(fm::make_file_backing(path.string(), 4, 0), fm::argument_error);
  CHECK_THROWS_AS(fm::make_file_backing(path.string(), most, 64), fm::argument_error);

  const bool in_file = GENERATE(false, true);
  const auto backing = in_file ? fm::make_file_backing(path.string(), 4, 64)
                               : fm::make_ram_backing(4, 64, fm::default_memory());
  CHECK(backing->needs_verification() == in_file);
  char data[128] = "bytes";
  int os_error = 99;
  CHECK(backing->write(3, 58, data, 6, &os_error) == status::ok);
  CHECK(os_error == 0);
  char back[6] = {};
  CHECK(backing->read(3, 58, back, 6, &os_error) == status::ok);
  CHECK(std::memcmp(back, data, 6) == 0);
  for (const auto& [record, offset, bytes] : std::vector<std::tuple<std::int64_t, std::size_t, std::size_t>>{
           {-1, 0, 1}, {4, 0, 1}, {0, 0, 65}, {0, 64, 1}, {0, 65, 0}, {0, ~std::size_t{0}, 2}}) {
    CHECK(backing->write(record, offset, data, bytes, &os_error) == status::out_of_range);
    CHECK(backing->read(record, offset, data, bytes, &os_error) == status::out_of_range);
  }
}
