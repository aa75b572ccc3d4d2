// SPDX-License-Identifier: MIT
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <flashmemory/train/record/recordings.hpp>
#include <map>
#include <memory>

#include "tests/support/recording_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace recording_folder;
using flashmemory_test::temporary_folder;
using support::same;

TEST_CASE("shards whose manifest is lost, or an older one, are not deleted", "[train][fault]") {
  const temporary_folder folder;
  record(folder.path(), 1, 2);
  const std::string older = contents(folder.file("manifest.0.json"));
  record(folder.path(), 3, 3);
  const std::string newest = contents(folder.file("manifest.0.json"));
  const auto shards = [&] {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::directory_iterator(folder.path()))
      if (entry.path().extension() == ".safetensors")
        all[entry.path().string()] = contents(entry.path().string());
    return all;
  };
  const auto before = shards();
  REQUIRE(before.size() == 5);
  const auto refused = [&] { return complaint<fm::format_error>([&] { record(folder.path(), 9, 1); }); };

  fs::remove(folder.file("manifest.0.json"));
  CHECK_THAT(refused(), Catch::Contains(folder.file("manifest.0.json")) && Catch::Contains("5 shards"));
  CHECK(shards() == before);
  CHECK(!fs::exists(folder.file("manifest.0.json")));

  put(folder.file("manifest.0.json"), older);
  CHECK_THAT(refused(), Catch::Contains("does not list it"));
  CHECK(shards() == before);

  put(folder.file("manifest.0.json"), newest);
  record(folder.path(), 9, 1);
  const train::recordings data(folder.path());
  REQUIRE(data.documents().size() == 6);
  for (std::uint64_t i = 0; i < 5; ++i)
    CHECK(same(data.load(static_cast<std::int64_t>(i)), some_document(1 + i)));
}

TEST_CASE("files that only look like a recorder's stay where they are", "[train][fault]") {
  const temporary_folder folder;
  record(folder.path(), 1, 1);
  const char* const others[] = {
      "shard.0.000000.safetensors.bak", "shard.0.copy.safetensors", "shard.0.7.safetensors",
      "shard.0.-00001.safetensors",     "manifest.0.json.old",      "manifest.0.json.1-x.tmp"};
  for (const char* other : others) put(folder.file(other), "mine");
  auto options = one_shard_each();
  options.fresh = GENERATE(false, true);
  { train::recorder(folder.path(), small_geometry(), options).add(some_document(2)); }
  for (const char* other : others) CHECK(contents(folder.file(other)) == "mine");
}

TEST_CASE("a recorder goes on with the settings it began with, or is refused by the one that differs",
          "[train][fault]") {
  const temporary_folder folder;
  auto options = one_shard_each();
  options.settings = {{"seed", "1"}, {"lengths", "512,1024"}};
  { train::recorder(folder.path(), small_geometry(), options).add(some_document(1)); }
  const std::string manifest = contents(folder.file("manifest.0.json"));
  const auto refused = [&](const train::recorder_options& o) {
    const std::string what =
        complaint<fm::format_error>([&] { train::recorder(folder.path(), small_geometry(), o); });
    CHECK_THAT(what, Catch::Contains("manifest.0.json"));
    CHECK(contents(folder.file("manifest.0.json")) == manifest);
    return what;
  };
  auto other = options;
  other.settings["seed"] = "2";
  CHECK_THAT(refused(other), Catch::Contains("'seed': it was 1, it is 2 now"));
  other.settings.erase("seed");
  CHECK_THAT(refused(other), Catch::Contains("'seed': it was 1, it is not stated now"));
  other = options;
  other.settings["kinds"] = "all";
  CHECK_THAT(refused(other), Catch::Contains("'kinds': it was not stated, it is all now"));
  other = options;
  other.rows = fm::dtype::f32;
  CHECK_THAT(refused(other), Catch::Contains("'rows': it was bf16, it is f32 now"));
  other = options;
  other.settings["seed"] = "\xff";
  CHECK_THROWS_AS(train::recorder(folder.path(), small_geometry(), other), fm::argument_error);
  other = options;  // what decides nothing of what is recorded
  other.shard_bytes = 1 << 20;
  { train::recorder(folder.path(), small_geometry(), other).add(some_document(2)); }
  other.writer = "1";
  other.settings["seed"] = "2";
  CHECK_NOTHROW(train::recorder(folder.path(), small_geometry(), other));
  CHECK(train::recordings(folder.path()).documents().size() == 2);
}

TEST_CASE("a fresh start takes this writer's recordings away, and only once everything else is right",
          "[train][fault]") {
  const temporary_folder folder;
  record(folder.path(), 1, 3, "a");
  record(folder.path(), 5, 2, "b");
  put(folder.file("thesis.txt"), "words");
  auto options = one_shard_each("a");
  options.fresh = true;
  options.settings = {{"seed", "2"}};
  const auto documents = [&] { return train::recordings(folder.path()).documents().size(); };
  SECTION("options that cannot work") {
    options.memory_budget = 0;
    CHECK_THROWS_AS(train::recorder(folder.path(), small_geometry(), options), fm::argument_error);
    CHECK(documents() == 5);
  }
  SECTION("another model than the other writer's") {
    auto g = small_geometry();
    g.model_fingerprint = "another model";
    CHECK_THROWS_AS(train::recorder(folder.path(), g, options), fm::format_error);
    CHECK(documents() == 5);
  }
  SECTION("a recorder that is at work") {
    train::recorder busy(folder.path(), small_geometry(), one_shard_each("a"));
    CHECK_THROWS_AS(train::recorder(folder.path(), small_geometry(), options), fm::io_failure);
    CHECK(documents() == 5);
  }
  SECTION("all right, whatever became of the manifest") {
    const int manifest = GENERATE(0, 1, 2);
    if (manifest == 1) fs::remove(folder.file("manifest.a.json"));
    if (manifest == 2) put(folder.file("manifest.a.json"), "{");
    { train::recorder(folder.path(), small_geometry(), options).add(some_document(9)); }
    CHECK(documents() == 3);
    CHECK(fs::exists(folder.file("shard.a.000000.safetensors")));
    CHECK(!fs::exists(folder.file("shard.a.000001.safetensors")));
    const train::recordings data(folder.path());
    data.verify();
    CHECK(same(data.load(0), some_document(9)));
  }
  CHECK(contents(folder.file("thesis.txt")) == "words");
}

TEST_CASE("a forked child's copy of a recorder writes nothing", "[train][fault]") {
  const temporary_folder folder;
  auto options = one_shard_each();
  options.shard_bytes = 1 << 20;
  auto recorder = std::make_unique<train::recorder>(folder.path(), small_geometry(), options);
  recorder->add(some_document(1));
  const pid_t child = ::fork();
  if (child == 0) {
    bool refused = false;
    try {
      recorder->flush();
    } catch (const fm::io_failure&) {
      refused = true;
    }
    recorder.reset();
    ::_exit(refused ? 0 : 1);
  }
  int state = 0;
  REQUIRE(::waitpid(child, &state, 0) == child);
  CHECK(state == 0);
  CHECK_THROWS_AS(train::recordings(folder.path()), fm::argument_error);  // no document yet
  recorder.reset();
  CHECK(train::recordings(folder.path()).documents().size() == 1);
}

TEST_CASE("a pipe in the place of a manifest is refused without waiting for a writer", "[train][fault]") {
  const temporary_folder folder;
  REQUIRE(::mkfifo(folder.file("manifest.0.json").c_str(), 0600) == 0);
  CHECK_THROWS_AS(train::recordings(folder.path()), fm::io_failure);
  CHECK_THROWS_AS(train::recorder(folder.path(), small_geometry(), one_shard_each()), fm::io_failure);
}
