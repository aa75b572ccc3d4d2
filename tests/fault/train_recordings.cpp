// SPDX-License-Identifier: MIT
#include <sys/resource.h>
#include <xxhash.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>

#include "src/train/record/manifest.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/random_document.hpp"
#include "tests/support/recording_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace fs = std::filesystem;
namespace train = flashmemory::train;
using namespace recording_folder;
using flashmemory_test::temporary_folder;
using support::random_document;
using support::same;
using support::small_geometry;

namespace {

void read_all(const std::string& folder) {
  const train::recordings data(folder);
  for (std::size_t i = 0; i < data.documents().size(); ++i) data.load(static_cast<std::int64_t>(i));
}

/// Files of at most `bytes` bytes while it lives: writing more fails as on a full disk.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &now) == 0);
  }
  ~file_size_limit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  void (*handler_)(int);
};

}  // namespace

TEST_CASE("a shard that is cut or damaged anywhere is refused by name", "[train][fault]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const temporary_folder folder;
  record(folder.path(), seed, 3);
  const std::string shard = folder.file("shard.0.000001.safetensors");
  const std::string good = contents(shard);
  REQUIRE(good.size() > 100);

  std::uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  // In the length, in the header, at its end, in the data, before the last byte; empty.
  for (const std::size_t length : {std::size_t{0}, std::size_t{5}, std::size_t{8}, std::size_t(header / 2),
                                   std::size_t(8 + header), std::size_t(9 + header), good.size() - 1}) {
    CAPTURE(length);
    put(shard, good.substr(0, length));
    CHECK_THAT(complaint<fm::format_error>([&] { read_all(folder.path()); }), Catch::Contains(shard));
  }
  put(shard, good + "x");
  CHECK_THAT(complaint<fm::format_error>([&] { read_all(folder.path()); }), Catch::Contains(shard));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20; ++i) {
    std::string damaged = good;
    damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
    put(shard, damaged);
    const train::recordings data(folder.path());  // shards are not read yet
    CHECK_THAT(complaint<fm::format_error>([&] { data.verify(); }), Catch::Contains(shard));
    CHECK_THAT(complaint<fm::format_error>([&] { data.load(1); }), Catch::Contains(shard));
    CHECK(same(data.load(0), some_document(seed)));  // the others are as good as before
  }
  fs::remove(shard);
  CHECK_THAT(complaint<fm::format_error>([&] { read_all(folder.path()); }), Catch::Contains(shard));
  CHECK_THAT(complaint<fm::format_error>([&] { record(folder.path(), seed, 1); }), Catch::Contains(shard));
}

TEST_CASE("a manifest that is cut or damaged anywhere is refused by name", "[train][fault]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const temporary_folder folder;
  record(folder.path(), seed, 2);
  const std::string manifest = folder.file("manifest.0.json");
  const std::string good = contents(manifest);
  for (std::size_t length = 0; length + 2 < good.size(); length += 1 + length / 50) {
    CAPTURE(length);
    put(manifest, good.substr(0, length));
    CHECK_THAT(complaint<fm::format_error>([&] { read_all(folder.path()); }), Catch::Contains(manifest));
    CHECK_THAT(complaint<fm::format_error>([&] { record(folder.path(), seed, 1); }),
               Catch::Contains(manifest));
  }
  for (std::size_t at = 0; at < good.size(); at += 7) {
    if (good[at] < '1' || good[at] > '8') continue;
    CAPTURE(at);
    std::string damaged = good;
    ++damaged[at];
    put(manifest, damaged);
    CHECK_THAT(complaint<fm::format_error>([&] { read_all(folder.path()); }), Catch::Contains(manifest));
  }
}

TEST_CASE("fields that contradict each other are refused even with a right checksum", "[train][fault]") {
  const temporary_folder folder;
  record(folder.path(), 7, 2);
  const std::string path = folder.file("manifest.0.json");
  const std::string good = contents(path);
  const auto refused = [&](const std::function<void(train::detail::manifest&)>& change) {
    auto m = train::detail::parse_manifest(good, path);
    change(m);
    put(path, to_text(m));
    complaint<fm::format_error>([&] { read_all(folder.path()); });
    put(path, good);
  };
  read_all(folder.path());
  refused([](auto& m) { m.documents[1].number = 0; });
  refused([](auto& m) { m.documents[1].number = m.next_document; });
  refused([](auto& m) { m.documents[1].parts = {5}; });
  refused([](auto& m) { m.documents[1].parts = {0}; });  // lies in the other shard
  refused([](auto& m) { m.documents[1].parts = {}; });
  refused([](auto& m) { m.documents[1].info.tokens += 40; });
  refused([](auto& m) { ++m.documents[1].info.queries; });
  refused([](auto& m) { ++m.documents[1].info.attention_tokens; });
  refused([](auto& m) { ++m.documents[1].info.evidence; });
  refused([](auto& m) { m.shards[1].number = 0; });
  refused([](auto& m) { m.shards[1].number = m.next_shard; });
  refused([](auto& m) { ++m.shards[1].bytes; });
  refused([](auto& m) { ++m.shards[1].checksum; });
  refused([](auto& m) { m.geometry.queries[0].width = 7; });
  refused([](auto& m) { m.geometry.layers = 0; });
  refused([](auto& m) { m.writer = "../x"; });
  refused([](auto& m) { m.writer = "1"; });
}

TEST_CASE("recordings of another geometry or model are never mixed", "[train][fault]") {
  const temporary_folder folder, other;
  record(folder.path(), 1, 1);
  auto g = small_geometry();
  SECTION("model") { g.model_fingerprint = "another model"; }
  SECTION("chunk") { g.entries_per_chunk = 16; }
  SECTION("width") { g.queries[1].width = 12; }
  SECTION("window") { g.keys[0].window = 8; }
  SECTION("streams") { g.keys.pop_back(); }
  CHECK_THAT(complaint<fm::format_error>([&] { train::recorder(folder.path(), g, one_shard_each()); }),
             Catch::Contains("manifest.0.json"));
  CHECK_THAT(complaint<fm::format_error>([&] { train::recorder(folder.path(), g, one_shard_each("1")); }),
             Catch::Contains("manifest.0.json"));
  {  // as two machines would that copy their folders together
    train::recorder recorder(other.path(), g, one_shard_each("1"));
    recorder.add(random_document(g, 3));
    recorder.flush();
  }
  for (const auto& entry : fs::directory_iterator(other.path()))
    fs::copy(entry.path(), folder.path(), fs::copy_options::skip_existing);
  CHECK_THAT(complaint<fm::format_error>([&] { train::recordings(folder.path()); }),
             Catch::Contains("manifest.1.json"));
}

TEST_CASE("what a crash left half done is discarded, what was listed stays", "[train][fault]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  const temporary_folder folder;
  record(folder.path(), seed, 2);
  const std::string manifest = contents(folder.file("manifest.0.json"));
  record(folder.path(), seed + 2, 1);  // takes shard 2
  const std::string whole = contents(folder.file("shard.0.000002.safetensors"));
  const std::string next_manifest = contents(folder.file("manifest.0.json"));
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);

  // The process died while it wrote the shard, before its rename, after it, or while it wrote the manifest.
  struct crash {
    const char* file;
    std::string bytes;
  };
  for (const crash& c :
       {crash{"shard.0.000002.safetensors.1-0.tmp", whole.substr(0, 3)},
        crash{"shard.0.000002.safetensors.1-0.tmp", whole.substr(0, 8 + header / 2)},
        crash{"shard.0.000002.safetensors.1-0.tmp", whole.substr(0, whole.size() - 1)},
        crash{"shard.0.000002.safetensors", whole}, crash{"shard.0.000002.safetensors", whole.substr(0, 9)},
        crash{"manifest.0.json.1-0.tmp", next_manifest.substr(0, next_manifest.size() / 2)},
        crash{"manifest.0.json.1-0.tmp", next_manifest}}) {
    CAPTURE(c.file, c.bytes.size());
    for (const auto& entry : fs::directory_iterator(folder.path()))
      if (entry.path().string().find("000002") != std::string::npos) fs::remove(entry.path());
    put(folder.file("manifest.0.json"), manifest);
    put(folder.file(c.file), c.bytes);
    {  // readable at once
      const train::recordings data(folder.path());
      CHECK(data.documents().size() == 2);
    }
    record(folder.path(), seed + 50, 1);
    const train::recordings data(folder.path());
    data.verify();
    REQUIRE(data.documents().size() == 3);
    for (std::uint64_t i = 0; i < 2; ++i)
      CHECK(same(data.load(static_cast<std::int64_t>(i)), some_document(seed + i)));
    CHECK(same(data.load(2), some_document(seed + 50)));
    for (const auto& entry : fs::directory_iterator(folder.path())) CHECK(entry.path().extension() != ".tmp");
  }
}

TEST_CASE("another writer's files are nobody else's to tidy", "[train][fault]") {
  const temporary_folder folder;
  record(folder.path(), 1, 1, "a");
  put(folder.file("shard.b.000000.safetensors.1-0.tmp"), "b is at work");
  put(folder.file("notes.txt"), "mine");
  record(folder.path(), 2, 1, "a");
  CHECK(fs::exists(folder.file("shard.b.000000.safetensors.1-0.tmp")));
  CHECK(fs::exists(folder.file("notes.txt")));
}

TEST_CASE("a full disk is an error that names the shard, and nothing half-written is listed",
          "[train][fault]") {
  const std::uint64_t seed = flashmemory_test::fresh_seed();
  const rlim_t room = GENERATE(rlim_t{0}, rlim_t{100}, rlim_t{5000});
  CAPTURE(seed, room);
  const temporary_folder folder;
  const auto g = small_geometry();
  train::recorder_options options;
  options.shard_bytes = std::size_t{1} << 20;
  options.memory_budget = std::size_t{1} << 21;
  std::vector<train::document> docs;
  for (std::uint64_t i = 0; i < 6; ++i) docs.push_back(random_document(g, seed + i, 200));
  docs[0] = random_document(g, seed + 1000, 0);
  train::recorder recorder(folder.path(), g, options);
  recorder.add(docs[0]);
  recorder.add(docs[1]);
  recorder.flush();
  for (std::size_t i = 2; i < 6; ++i) recorder.add(docs[i]);
  std::size_t waiting = 0;
  for (std::size_t i = 2; i < 6; ++i) waiting += docs[i].bytes();
  {
    const file_size_limit full(room);
    if (waiting > room) {
      CHECK_THAT(complaint<fm::io_failure>([&] { recorder.flush(); }),
                 Catch::Contains(folder.file("shard.0.00000")));
      CHECK_THROWS_AS(recorder.flush(), fm::io_failure);  // and again
    }
  }
  {
    const train::recordings data(folder.path());
    data.verify();
    CHECK(data.documents().size() == 2);
    for (const auto& entry : fs::directory_iterator(folder.path())) CHECK(entry.path().extension() != ".tmp");
  }
  recorder.flush();  // once there is room again, nothing is lost
  const train::recordings data(folder.path());
  data.verify();
  REQUIRE(data.documents().size() == 6);
  for (std::size_t i = 0; i < 6; ++i) CHECK(same(data.load(static_cast<std::int64_t>(i)), docs[i]));
}

TEST_CASE("a disk that fills up within a document takes nothing of the call that found out",
          "[train][fault]") {
  const temporary_folder folder;
  train::recording_geometry g;
  g.layers = g.heads = 1;
  g.queries = {{0, fm::tap_kind::hidden, 64}};
  train::recorder_options options;
  options.shard_bytes = options.memory_budget = 20000;
  train::recorder recorder(folder.path(), g, options);
  const auto id = recorder.begin("", train::dataset_split::train);
  const std::vector<float> row(64, 0.5f);
  const float* const rows[] = {row.data()};
  std::int64_t position = 0;
  {
    const file_size_limit full(4096);
    const std::string what = complaint<fm::io_failure>([&] {
      for (;; ++position) recorder.add_query(id, position, rows);
    });
    CHECK_THAT(what, Catch::Contains("shard.0.000000.safetensors"));
  }
  for (; position < 1000; ++position) recorder.add_query(id, position, rows);
  recorder.finish(id, 1000);
  recorder.flush();
  const auto doc = train::recordings(folder.path()).load(0);
  REQUIRE(doc.positions.size() == 1000);
  for (std::int64_t p = 0; p < 1000; ++p) CHECK(doc.positions[static_cast<std::size_t>(p)] == p);
}

TEST_CASE("folders that hold nothing, and documents that are too large, are refused", "[train][fault]") {
  const temporary_folder folder;
  CHECK_THAT(complaint<fm::argument_error>([&] { train::recordings(folder.path()); }),
             Catch::Contains(folder.path()));
  CHECK_THAT(complaint<fm::io_failure>([&] { train::recordings(folder.path() + "/no"); }),
             Catch::Contains(folder.path()));
  record(folder.path(), 5, 2);
  train::recordings_options options;
  options.max_document_bytes = 10;
  const train::recordings data(folder.path(), options);
  CHECK_THROWS_AS(data.load(0), fm::admission_error);
  CHECK_THROWS_AS(data.load(2), fm::argument_error);
  CHECK_THROWS_AS(data.load(-1), fm::argument_error);
}
