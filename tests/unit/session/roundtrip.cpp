// SPDX-License-Identifier: MIT
#include <cstring>
#include <flashmemory/indexer/pooled_keys.hpp>

#include "tests/catch.hpp"
#include "tests/unit/session/support.hpp"

using namespace session_testing;
using fm::status;

TEST_CASE("a loaded sequence goes on exactly as the saved one does", "[session]") {
  fm::kv_geometry g = toy::geometry();
  g.index_keys.layout = GENERATE(fm::index_key_layout::interleaved, fm::index_key_layout::planar);
  const std::int64_t prompt = GENERATE(1, 7, 8, 131, 400);
  const int steps = GENERATE(0, 3, 20);
  CAPTURE(int(g.index_keys.layout), prompt, steps);
  temporary_folder folder;
  const std::string path = folder.file("s");
  host a(g), b(g);
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, prompt) == status::ok);
  for (int i = 0; i < steps; ++i) REQUIRE(a.engine->step(s) == status::ok);
  fm::save_session(*a.store, s.handle, path, a.select.get());
  CHECK(folder.files() == 1);

  auto t = s;
  t.handle = fm::load_session(*b.store, path, b.select.get());
  REQUIRE(same_contents(a, s.handle, b, t.handle));
  fm::sequence_info i, j;
  REQUIRE(a.store->info(s.handle, &i) == status::ok);
  REQUIRE(b.store->info(t.handle, &j) == status::ok);
  CHECK(i.options.max_tokens == j.options.max_tokens);
  CHECK(i.options.max_resident_chunks == j.options.max_resident_chunks);
  CHECK(i.options.sink_chunks == j.options.sink_chunks);
  CHECK(i.options.recent_chunks == j.options.recent_chunks);
  for (int step = 0; step < 40; ++step) {
    CAPTURE(step);
    REQUIRE(a.engine->step(s) == status::ok);
    REQUIRE(b.engine->step(t) == status::ok);
    REQUIRE(toy::resident_ids(*a.store, s.handle) == toy::resident_ids(*b.store, t.handle));
  }
  CHECK(same_contents(a, s.handle, b, t.handle));
  fm::selection_report x, y;
  REQUIRE(a.select->report(s.handle, &x) == status::ok);
  REQUIRE(b.select->report(t.handle, &y) == status::ok);
  CHECK(x.refreshes == y.refreshes);
  CHECK(x.position == y.position);
}

TEST_CASE("a session over pooled keys goes on as the saved one does, holding what it held", "[session]") {
  fm::kv_geometry g = toy::geometry(0);
  g.kv_heads = 2;
  fm::pooled_keys_config config = fm::pooled_keys_of(g, 2, {0, 1});
  config.type = fm::index_key_type::int8;
  const fm::pooled_keys_indexer taps_only(config);
  g.index_keys = taps_only.taps().reads;
  struct pooled_host {
    fm::tiered_chunk_store store;
    fm::pooled_keys_indexer index;
    fm::selection_policy policy;
    std::unique_ptr<fm::selector> select;
    std::unique_ptr<toy::engine> engine;
    pooled_host(const fm::kv_geometry& geometry, const fm::pooled_keys_config& c)
        : store(toy::store_options(geometry)), index(c) {
      policy.interval = 4;
      policy.hold = 0.9f;
      select = std::make_unique<fm::selector>(store, index, policy);
      engine = std::make_unique<toy::engine>(store, *select);
      engine->queries = true;
      engine->query_width = 2 * 16;
    }
  } a(g, config), b(g, config);
  temporary_folder folder;
  auto s = a.engine->open(fm::sequence_options_for(a.policy, g, 800), 5);
  REQUIRE(a.engine->step(s, 203) == status::ok);
  for (int i = 0; i < 10; ++i) REQUIRE(a.engine->step(s) == status::ok);
  fm::save_session(a.store, s.handle, folder.file("s"), a.select.get());
  auto t = s;
  t.handle = fm::load_session(b.store, folder.file("s"), b.select.get());
  REQUIRE(a.select->save_state(s.handle) == b.select->save_state(t.handle));
  for (int step = 0; step < 40; ++step) {
    REQUIRE(a.engine->step(s) == status::ok);
    REQUIRE(b.engine->step(t) == status::ok);
    REQUIRE(toy::resident_ids(a.store, s.handle) == toy::resident_ids(b.store, t.handle));
  }
  // Keys of other dims, of other layers: another encoder's.
  config.lanes.pop_back();
  config.lanes.push_back({0, 0, {}, {}, {}});
  pooled_host other(g, config);
  CHECK_THROWS_AS(fm::load_session(other.store, folder.file("s"), other.select.get()), fm::format_error);
}

TEST_CASE("sessions keep every geometry: dtypes, entries of several tokens, no index-key lanes",
          "[session]") {
  fm::kv_geometry g = toy::geometry(0);
  g.type = GENERATE(fm::dtype::f32, fm::dtype::bf16, fm::dtype::f16);
  g.tokens_per_entry = GENERATE(1, 4);
  g.value_dim = GENERATE(16, 6);
  const std::int64_t tokens = GENERATE(1, 3, 32, 101);
  CAPTURE(int(g.type), g.tokens_per_entry, tokens);
  fm::tiered_chunk_store a(toy::store_options(g)), b(toy::store_options(g));
  fm::sequence_options o;
  o.max_tokens = 200;
  const auto s = a.open(o);
  const std::int64_t entries = g.entries_for(tokens);
  std::vector<float> kv(std::size_t(entries * 16 + 1));
  for (std::size_t i = 0; i < kv.size(); ++i) kv[i] = toy::number(i, 1, 2, 3);
  const fm::batch_item item{s, 0, std::int32_t(tokens)};
  for (std::int32_t layer = 0; layer < g.layers; ++layer)
    REQUIRE(a.append(fm::batch(&item, 1), layer, fm::view<const float, 3>(kv.data(), entries, 1, 16),
                     fm::view<const float, 3>(kv.data(), entries, 1, g.value_dim), toy::host) == status::ok);
  temporary_folder folder;
  fm::save_session(a, s, folder.file("s"));
  const auto t = fm::load_session(b, folder.file("s"));
  fm::sequence_info i;
  REQUIRE(b.info(t, &i) == status::ok);
  CHECK(i.tokens == tokens);
  const std::size_t bytes = fm::chunk_layout(g).chunk_bytes();
  for (std::int64_t c = 0; c < g.chunks_for(tokens); ++c) {
    std::vector<std::byte> x(bytes), y(bytes, std::byte{1});
    REQUIRE(a.read_chunk(s, fm::chunk_id(c), fm::view<std::byte, 1>(x.data(), bytes)) == status::ok);
    REQUIRE(b.read_chunk(t, fm::chunk_id(c), fm::view<std::byte, 1>(y.data(), bytes)) == status::ok);
    REQUIRE(x == y);
  }
}

TEST_CASE("an empty sequence is a session too", "[session]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  auto t = s;
  t.handle = fm::load_session(*b.store, folder.file("s"), b.select.get());
  REQUIRE(b.engine->step(t, 50) == status::ok);
  REQUIRE(a.engine->step(s, 50) == status::ok);
  CHECK(same_contents(a, s.handle, b, t.handle));
}

TEST_CASE("a session may be loaded with other options and without a selector", "[session]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 300) == status::ok);
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  auto o = a.options();
  o.max_tokens = 2000;
  o.max_resident_chunks = 60;
  const auto t = fm::load_session(*b.store, folder.file("s"), nullptr, o);
  fm::sequence_info i;
  REQUIRE(b.store->info(t, &i) == status::ok);
  CHECK(i.options.max_tokens == 2000);
  CHECK(same_contents(a, s.handle, b, t));
  fm::selection_report r;
  CHECK(b.select->report(t, &r) == status::unknown_sequence);
}

TEST_CASE("a session without a selector's state is refused where keys need a window", "[session]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 300) == status::ok);
  fm::save_session(*a.store, s.handle, folder.file("s"));
  CHECK_THROWS_AS(fm::load_session(*b.store, folder.file("s"), b.select.get()), fm::argument_error);
  CHECK(b.store->usage().sequences == 0);
  CHECK_NOTHROW(fm::load_session(*b.store, folder.file("s")));
}

TEST_CASE("what cannot be saved or loaded is a typed error and leaves nothing open", "[session]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 300) == status::ok);
  const std::string path = folder.file("s");
  SECTION("handles") {
    const auto code_of = [&](fm::sequence_handle h) {
      try {
        fm::save_session(*a.store, h, path);
      } catch (const fm::error& e) {
        return e.code();
      }
      return status::ok;
    };
    CHECK(code_of({}) == status::unknown_sequence);
    REQUIRE(a.store->close(s.handle) == status::ok);
    CHECK(code_of(s.handle) == status::stale_sequence);
    CHECK(folder.files() == 0);
  }
  SECTION("in the middle of a forward pass") {
    std::vector<float> hidden(std::size_t(4 * toy::width), 1.0f);
    const fm::batch_item item{s.handle, 300, 4};
    REQUIRE(a.select->observe(fm::batch(&item, 1), 0, fm::view<const float, 2>(hidden.data(), 4, toy::width),
                              toy::host) == status::ok);
    CHECK_THROWS_AS(fm::save_session(*a.store, s.handle, path, a.select.get()), fm::error);
    CHECK(folder.files() == 0);
  }
  SECTION("too small a max_tokens") {
    fm::save_session(*a.store, s.handle, path, a.select.get());
    auto o = a.options();
    o.max_tokens = 299;
    CHECK_THROWS_AS(fm::load_session(*b.store, path, nullptr, o), fm::argument_error);
  }
  SECTION("no room") {
    fm::save_session(*a.store, s.handle, path, a.select.get());
    auto small = toy::store_options(a.geometry);
    small.fast_bytes = 20000;
    fm::tiered_chunk_store store(small);
    CHECK_THROWS_AS(fm::load_session(store, path), fm::admission_error);
    CHECK(store.usage().sequences == 0);
  }
  SECTION("another policy's sink") {
    fm::save_session(*a.store, s.handle, path, a.select.get());
    auto p = b.policy;
    p.sink_chunks = 3;
    fm::selector_options o;
    o.max_rollback_tokens = 8;
    fm::selector other(*b.store, b.index, p, o);
    CHECK_THROWS_AS(fm::load_session(*b.store, path, &other), fm::format_error);
  }
  SECTION("another store's selector") {
    fm::save_session(*a.store, s.handle, path, a.select.get());
    CHECK_THROWS_AS(fm::load_session(*b.store, path, a.select.get()), fm::argument_error);
  }
  SECTION("no file") { CHECK_THROWS_AS(fm::load_session(*b.store, folder.file("none")), fm::io_failure); }
  SECTION("a folder") { CHECK_THROWS_AS(fm::load_session(*b.store, folder.file("")), fm::io_failure); }
  CHECK(b.store->usage().sequences == 0);
}

TEST_CASE("harmless options may change between a save and a load", "[session]") {
  temporary_folder folder;
  host a;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 300) == status::ok);
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  host b;
  fm::selection_policy policy = b.policy;
  fm::selector_options o;
  const int what = GENERATE(0, 1, 2, 3, 4, 5, 6, 7);
  CAPTURE(what);
  switch (what) {
    case 0:
      o.max_rollback_tokens = 0;
      break;
    case 1:
      o.max_rollback_tokens = 128;
      break;
    case 2:
      o.apply = fm::apply_mode::overlapped;
      break;
    case 3:
      o.threads = fm::serial_threads();
      break;
    case 4:
      policy.interval = 3;
      break;
    case 5:
      policy.budget_fraction = 0.5;
      break;
    case 6:
      policy.mode = fm::selection_mode::threshold;
      break;
    default:
      o.max_sequences = 2;
  }
  fm::selector select(*b.store, b.index, policy, o);
  toy::engine engine(*b.store, select);
  auto t = s;
  t.handle = fm::load_session(*b.store, folder.file("s"), &select);
  for (int i = 0; i < 40; ++i) REQUIRE(engine.step(t) == status::ok);
}

TEST_CASE("after a rollback, to 0 tokens too, a sequence is saved, loaded and forked", "[session]") {
  const std::int64_t tokens = GENERATE(0, 95, 100);
  CAPTURE(tokens);
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 100) == status::ok);
  REQUIRE(a.store->truncate(s.handle, tokens) == status::ok);
  s.tokens = tokens;
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  auto t = s, child = s;
  t.handle = fm::load_session(*b.store, folder.file("s"), b.select.get());
  child.handle = a.store->fork(s.handle, a.options());
  a.select->attach_fork(s.handle, child.handle);
  for (int i = 0; i < 40; ++i) {
    REQUIRE(a.engine->step(s, i == 0 ? 50 : 1) == status::ok);
    REQUIRE(b.engine->step(t, i == 0 ? 50 : 1) == status::ok);
    REQUIRE(a.engine->step(child, i == 0 ? 50 : 1) == status::ok);
  }
  CHECK(same_contents(a, s.handle, b, t.handle));
  CHECK(a.chunks(s.handle) == a.chunks(child.handle));
  for (std::int32_t stream = 0; stream < a.geometry.index_keys.lanes; ++stream)
    CHECK(toy::key_bytes(*a.store, s.handle, stream) == toy::key_bytes(*a.store, child.handle, stream));
}

namespace {

/// Bytes in memory as an engine's sink and source, which moves at most `part` bytes at a time and fails after `room`.
struct pipe_of_bytes {
  std::vector<char> bytes;
  std::size_t at = 0, part = 1 << 20, room = std::size_t(-1);
  fm::byte_sink sink() {
    return {this, [](void* context, const void* data, std::size_t count) {
              auto& self = *static_cast<pipe_of_bytes*>(context);
              if (count > self.room - self.bytes.size()) return false;
              const char* from = static_cast<const char*>(data);
              self.bytes.insert(self.bytes.end(), from, from + count);
              return true;
            }};
  }
  fm::byte_source source() {
    return {this, [](void* context, void* data, std::size_t count) {
              auto& self = *static_cast<pipe_of_bytes*>(context);
              if (self.at >= self.room) return std::int64_t{-1};
              const std::size_t n = std::min({count, self.part, self.bytes.size() - self.at});
              if (n > 0) std::memcpy(data, self.bytes.data() + self.at, n);
              self.at += n;
              return std::int64_t(n);
            }};
  }
};

}  // namespace

TEST_CASE("a session goes through an engine's sink and source as through a file", "[session]") {
  host a, b;
  auto s = a.engine->open(a.options(), 5), t = a.engine->open(a.options(), 6);
  REQUIRE(a.engine->step({&s, &t}, {100, 31}) == status::ok);
  pipe_of_bytes stream;
  stream.part = GENERATE(1, 7, 1 << 20);
  fm::session_options tagged;
  tagged.model_tag = "m";
  fm::save_session(*a.store, s.handle, stream.sink(), a.select.get(), tagged);
  const std::size_t first = stream.bytes.size();
  fm::save_session(*a.store, t.handle, stream.sink(), a.select.get());

  SECTION("one after the other, and no byte more") {
    const auto x = fm::load_session(*b.store, stream.source(), b.select.get(), {}, tagged);
    CHECK(stream.at == first);
    const auto y = fm::load_session(*b.store, stream.source(), b.select.get());
    CHECK(stream.at == stream.bytes.size());
    CHECK(same_contents(a, s.handle, b, x));
    CHECK(same_contents(a, t.handle, b, y));
    CHECK_THROWS_AS(fm::load_session(*b.store, stream.source(), b.select.get()), fm::format_error);
  }
  SECTION("the same bytes as in a file, but for the id of the file") {
    temporary_folder folder;
    fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get(), tagged);
    CHECK(read_file(folder.file("s")).size() == first);
    pipe_of_bytes file;
    file.bytes = read_file(folder.file("s"));
    CHECK_NOTHROW(fm::load_session(*b.store, file.source(), b.select.get(), {}, tagged));
  }
  SECTION("one that ends or fails anywhere") {
    for (std::size_t size = 0; size < first; size += 1 + first / 97) {
      CAPTURE(size);
      pipe_of_bytes cut, broken, full;
      cut.bytes.assign(stream.bytes.begin(), stream.bytes.begin() + std::ptrdiff_t(size));
      CHECK_THROWS_AS(fm::load_session(*b.store, cut.source(), b.select.get(), {}, tagged), fm::format_error);
      broken.bytes = stream.bytes;
      broken.room = size;
      broken.part = 64;
      CHECK_THROWS_AS(fm::load_session(*b.store, broken.source(), b.select.get(), {}, tagged),
                      fm::io_failure);
      full.room = size;
      CHECK_THROWS_AS(fm::save_session(*a.store, s.handle, full.sink(), a.select.get(), tagged),
                      fm::io_failure);
      REQUIRE(b.store->usage().sequences == 0);
    }
  }
  SECTION("one without a function") {
    CHECK_THROWS_AS(fm::load_session(*b.store, fm::byte_source{}), fm::argument_error);
    CHECK_THROWS_AS(fm::save_session(*a.store, s.handle, fm::byte_sink{}), fm::argument_error);
  }
}
