// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "tests/catch.hpp"
#include "tests/support/nameless_file.hpp"
#include "tests/support/store_testing.hpp"

using namespace store_testing;
using Catch::Matchers::Contains;
using flashmemory_test::nameless_file_in;
using flashmemory_test::temporary_folder;
using fm::status;

namespace {

fm::store_options in_file(const temporary_folder& folder) {
  fm::store_options o = small_options();
  o.backing_path = folder.file("store");
  return o;
}

std::size_t bytes_on_disk(const std::string& path) {
  struct stat facts;
  REQUIRE(::stat(path.c_str(), &facts) == 0);
  return std::size_t(facts.st_blocks) * 512;
}

/// Files of at most `bytes` bytes while it lives: taking more space fails as on a full disk.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &now) == 0);
  }
  ~file_size_limit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  void (*handler_)(int);
};

/// Runs `f` in a forked child; its exit status, or minus the signal that ended it.
template <class F>
int in_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(f());
  int state = 0;
  REQUIRE(::waitpid(child, &state, 0) == child);
  return WIFEXITED(state) ? WEXITSTATUS(state) : -WTERMSIG(state);
}

}  // namespace

TEST_CASE("a backing file has no name, is its owner's alone, and belongs to one store", "[store][fault]") {
  temporary_folder folder;
  fm::store_options o = in_file(folder);
  fm::tiered_chunk_store a(o);
  CHECK(folder.files() == 0);
  struct stat facts;
  REQUIRE(::stat(nameless_file_in(folder.path()).c_str(), &facts) == 0);
  CHECK((facts.st_mode & 07777) == 0600);
  CHECK(facts.st_nlink == 0);
  // Another store of the same options has a file of its own.
  fm::tiered_chunk_store b(o);
  engine_sequence s = open(a, tokens(200, 8)), t = open(b, tokens(200, 8));
  REQUIRE(grow(a, s, 82, 1) == status::ok);
  REQUIRE(grow(b, t, 61, 2) == status::ok);
  REQUIRE(recall(a, s, {4, 9}) == status::ok);
  REQUIRE(recall(b, t, {3, 7}) == status::ok);
  CHECK(all_chunks_right(a, s));
  CHECK(all_chunks_right(b, t));
}

TEST_CASE("what is there already is refused as a backing file and stays as it was", "[store][fault]") {
  temporary_folder folder;
  fm::store_options o = in_file(folder);
  const std::string path = o.backing_path;
  const auto refused = [&] {
    CHECK_THROWS_AS(fm::tiered_chunk_store(o), fm::io_failure);
    CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains(o.backing_path));
  };
  SECTION("a file") {
    std::ofstream(path) << "a thesis";
    refused();
    std::string text;
    std::ifstream(path) >> text >> text;
    CHECK(text == "thesis");
  }
  SECTION("a folder") {
    std::filesystem::create_directory(path);
    refused();
    CHECK(std::filesystem::is_directory(path));
  }
  SECTION("a pipe, which nobody writes to") {
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    refused();
    CHECK(std::filesystem::is_fifo(path));
  }
  SECTION("a link to nowhere") {
    std::filesystem::create_symlink("nowhere", path);
    refused();
    CHECK(std::filesystem::is_symlink(path));
  }
  SECTION("a device") {
    o.backing_path = "/dev/null";
    refused();
    CHECK(std::filesystem::is_character_file("/dev/null"));
  }
  SECTION("no folder to lie in") {
    o.backing_path = path + "/nowhere/file";
    refused();
    CHECK_THROWS_WITH(fm::tiered_chunk_store(o), Contains("No such file"));
  }
}

TEST_CASE("a killed process leaves no backing file behind", "[store][fault]") {
  temporary_folder folder;
  CHECK(in_child([&] {
          fm::tiered_chunk_store store(in_file(folder));
          engine_sequence s = open(store, tokens(200, 8));
          if (grow(store, s, 82, 1) != status::ok) return 1;
          ::raise(SIGKILL);
          return 0;
        }) == -SIGKILL);
  CHECK(folder.files() == 0);
}

TEST_CASE("a forked child neither takes its parent's backing file away nor writes to it", "[store][fault]") {
  temporary_folder folder;
  const fm::store_options o = in_file(folder);
  auto store = std::make_unique<fm::tiered_chunk_store>(o);
  engine_sequence s = open(*store, tokens(200, 8));
  REQUIRE(grow(*store, s, 42, 1) == status::ok);
  CHECK(in_child([&] {
          status code = status::ok;
          for (int i = 0; i < 40 && code == status::ok; ++i) code = grow(*store, s, 1, 1);
          const fm::fault f = store->last_fault();
          const bool refused = code == status::io_error && f.os_error == EPERM;
          store.reset();
          return refused ? 0 : 1;
        }) == 0);
  REQUIRE(grow(*store, s, 40, 1) == status::ok);
  REQUIRE(recall(*store, s, {4, 9}) == status::ok);
  CHECK(all_chunks_right(*store, s));
}

TEST_CASE(
    "the space of a sequence is taken when it is opened, so that a full disk refuses it and no later step",
    "[store][fault]") {
  temporary_folder folder;
  fm::store_options o = in_file(folder);
  o.reserve_backing = GENERATE(true, false);
  const auto chunk = fm::chunk_layout(o.geometry).chunk_bytes();
  fm::tiered_chunk_store store(o);
  const std::string file = nameless_file_in(folder.path());
  CHECK(bytes_on_disk(file) < chunk);
  engine_sequence s = open(store, tokens(200, 8));
  CHECK((bytes_on_disk(file) >= 50 * chunk) == o.reserve_backing);
  {
    const file_size_limit full(64 * chunk);  // records come in groups of 16
    if (o.reserve_backing) {
      const auto before = store.usage();
      CHECK_THROWS_AS(store.open(tokens(200, 8)), fm::admission_error);
      CHECK_THROWS_WITH(store.open(tokens(200, 8)), Contains("backing store: File too large"));
      CHECK(store.usage().backing_reserved_bytes == before.backing_reserved_bytes);
      CHECK(store.usage().sequences == 1);
      CHECK(bytes_on_disk(file) < 80 * chunk);  // what was found of the space has been given back
    } else {
      CHECK_NOTHROW(store.close(store.open(tokens(200, 8))));
    }
    // What has been admitted is there, whatever becomes of the disk.
    if (o.reserve_backing) REQUIRE(grow(store, s, 200, 1) == status::ok);
  }
  if (!o.reserve_backing) REQUIRE(grow(store, s, 200, 1) == status::ok);
  REQUIRE(recall(store, s, {4, 9}) == status::ok);
  CHECK(all_chunks_right(store, s));
  const auto t = store.open(tokens(200, 8));
  CHECK(store.close(t) == status::ok);
}
