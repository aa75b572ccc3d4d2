// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <flashmemory/io/safetensors.hpp>
#include <functional>

#include "tests/catch.hpp"
#include "tests/support/system_calls.hpp"
#include "tests/unit/session/support.hpp"

using namespace session_testing;
using fm::status;
using system_calls::watch;

namespace {

std::size_t open_files() {
  return std::size_t(std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                                   std::filesystem::directory_iterator()));
}

mode_t mode_of(const std::string& path) {
  struct stat facts;
  REQUIRE(::stat(path.c_str(), &facts) == 0);
  return facts.st_mode & 07777;
}

/// A file of a kind that the library saves as a whole: how one is written, and which it is.
struct saved_file {
  std::function<void(const std::string& path, int version)> write;
  std::function<int(const std::string& path)> version_of;
};

saved_file a_tensor() {
  return {[](const std::string& path, int version) {
            const std::vector<float> values(3000, float(version));
            fm::tensor_source t;
            t.name = "t";
            t.shape = {3000};
            t.data = reinterpret_cast<const std::byte*>(values.data());
            t.bytes = 12000;
            fm::write_safetensors(path, {t}, {});
          },
          [](const std::string& path) {
            const fm::safetensors_file file(path);
            const auto values = fm::to_floats(file, file.require("t", {3000}));
            for (const float v : values) REQUIRE(v == values.front());
            return int(values.front());
          }};
}

/// Version n has n times 40 tokens.
saved_file a_session() {
  const auto from = std::make_shared<host>();
  const auto to = std::make_shared<host>();
  const auto s = std::make_shared<toy::sequence>(from->engine->open(from->options(), 5));
  REQUIRE(from->engine->step(*s, 40) == status::ok);
  return {[=](const std::string& path, int version) {
            while (s->tokens < version * 40) REQUIRE(from->engine->step(*s, 40) == status::ok);
            fm::save_session(*from->store, s->handle, path, from->select.get());
          },
          [=](const std::string& path) {
            const auto loaded = fm::load_session(*to->store, path, to->select.get());
            fm::sequence_info info;
            REQUIRE(to->store->info(loaded, &info) == status::ok);
            REQUIRE(to->store->close(loaded) == status::ok);
            return int(info.tokens / 40);
          }};
}

saved_file either() { return GENERATE(0, 1) == 0 ? a_tensor() : a_session(); }

}  // namespace

TEST_CASE(
    "whichever system call of a save fails, the path holds the old file or the new one, and nothing is left",
    "[fault][saving]") {
  const saved_file kind = either();
  const int error = GENERATE(EIO, ENOSPC);
  temporary_folder folder;
  const std::string path = folder.file("f");
  kind.write(path, 1);
  REQUIRE(kind.version_of(path) == 1);
  std::size_t calls = 0, refused = 0;
  {
    watch all;
    kind.write(path, 2);
    calls = all.calls().size();
  }
  REQUIRE(calls > 8);
  kind.write(path, 2);
  const std::size_t files = open_files();
  for (int n = 0; n < int(calls); ++n) {
    std::string failed, said;
    {
      watch one(watch::mode::fail, n, error);
      try {
        kind.write(path, 3);
      } catch (const fm::io_failure& e) {
        said = e.what();
      }
      REQUIRE(int(one.calls().size()) > n);
      failed = one.calls()[std::size_t(n)].name + ' ' + one.calls()[std::size_t(n)].path;
    }
    CAPTURE(n, failed, said);
    refused += !said.empty();
    if (!said.empty()) CHECK(said.find(path) != std::string::npos);
    const int now = kind.version_of(path);
    CHECK((now == 2 || now == 3));
    if (said.empty()) CHECK(now == 3);
    CHECK(open_files() == files);
    CHECK(folder.files() == 1);
    std::filesystem::remove(path);
    kind.write(path, 2);
  }
  CHECK(refused >= 6);
  CHECK(kind.version_of(path) >= 2);
}

TEST_CASE("whichever system call of a load fails, it is an error and nothing stays open", "[fault][saving]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 100) == status::ok);
  const std::string path = folder.file("s");
  fm::save_session(*a.store, s.handle, path, a.select.get());
  std::size_t calls = 0;
  {
    watch all;
    REQUIRE(b.store->close(fm::load_session(*b.store, path, b.select.get())) == status::ok);
    calls = all.calls().size();
  }
  REQUIRE(calls > 10);
  const std::size_t files = open_files();
  for (int n = 0; n < int(calls); ++n) {
    CAPTURE(n);
    watch one(watch::mode::fail, n);
    CHECK_THROWS_AS(fm::load_session(*b.store, path, b.select.get()), fm::io_failure);
    CHECK(b.store->usage().sequences == 0);
  }
  CHECK(open_files() == files);
}

TEST_CASE("short and interrupted reads and writes make no difference", "[fault][saving]") {
  const saved_file kind = either();
  const auto how = GENERATE(watch::mode::shorten, watch::mode::signals);
  temporary_folder folder;
  watch disturbed(how);
  kind.write(folder.file("f"), 2);
  CHECK(kind.version_of(folder.file("f")) == 2);
}

TEST_CASE("a file is synced before it gets its name, and its folder after", "[fault][saving]") {
  const saved_file kind = either();
  temporary_folder folder;
  const std::string path = folder.file("f");
  watch all;
  kind.write(path, 1);
  std::vector<std::string> order;
  for (const auto& call : all.calls()) {
    if (call.name == "write" && (order.empty() || order.back() != "write")) order.push_back("write");
    if (call.name == "rename") order.push_back("rename");
    if (call.name != "fsync") continue;
    order.push_back(call.path == folder.path()      ? "sync of the folder"
                    : call.path.rfind(path, 0) == 0 ? "sync of the file"
                                                    : "sync of " + call.path);
  }
  CHECK(order == std::vector<std::string>{"write", "sync of the file", "rename", "sync of the folder"});
}

TEST_CASE("what a user has set up about a path stays: links, permissions, what is no plain file",
          "[fault][saving]") {
  const saved_file kind = either();
  temporary_folder folder;
  const std::string path = folder.file("f");
  SECTION("permissions") {
    const mode_t mode = GENERATE(0600, 0640, 0644, 0664);
    kind.write(path, 1);
    REQUIRE(::chmod(path.c_str(), mode) == 0);
    kind.write(path, 2);
    CHECK(mode_of(path) == mode);
    CHECK(kind.version_of(path) == 2);
  }
  SECTION("a link, relative or not, to a file that is there or not") {
    std::filesystem::create_directory(folder.file("real"));
    const bool relative = GENERATE(false, true), there = GENERATE(false, true);
    const std::string target = folder.file("real/f");
    if (there) kind.write(target, 1);
    std::filesystem::create_symlink(relative ? "real/f" : target, path);
    kind.write(path, 2);
    CHECK(std::filesystem::is_symlink(path));
    CHECK(!std::filesystem::is_symlink(target));
    CHECK(kind.version_of(target) == 2);
    CHECK(folder.files() == 2);
  }
  SECTION("links in a circle") {
    std::filesystem::create_symlink("g", path);
    std::filesystem::create_symlink("f", folder.file("g"));
    CHECK_THROWS_AS(kind.write(path, 1), fm::io_failure);
  }
  SECTION("a pipe") {
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    CHECK_THROWS_AS(kind.write(path, 1), fm::io_failure);
    CHECK_THROWS_AS(kind.version_of(path), fm::io_failure);
    CHECK(std::filesystem::is_fifo(path));
  }
  SECTION("a folder") {
    std::filesystem::create_directory(path);
    CHECK_THROWS_AS(kind.write(path, 1), fm::io_failure);
    CHECK_THROWS_AS(kind.version_of(path), fm::io_failure);
  }
  SECTION("a read-only file") {
    kind.write(path, 1);
    REQUIRE(::chmod(path.c_str(), 0444) == 0);
    if (::geteuid() == 0) {  // who may write everything
      CHECK_NOTHROW(kind.write(path, 2));
      CHECK(mode_of(path) == 0444);
    } else {
      CHECK_THROWS_AS(kind.write(path, 2), fm::io_failure);
    }
  }
}

TEST_CASE("a new session is its owner's alone unless told otherwise", "[fault][saving]") {
  temporary_folder folder;
  host a;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 40) == status::ok);
  const mode_t before = ::umask(022);
  fm::save_session(*a.store, s.handle, folder.file("own"));
  fm::session_options shared;
  shared.permissions = 0666;
  fm::save_session(*a.store, s.handle, folder.file("shared"), nullptr, shared);
  ::umask(before);
  CHECK(mode_of(folder.file("own")) == 0600);
  CHECK(mode_of(folder.file("shared")) == 0644);
}

TEST_CASE("what a killed writer left is removed by the next one, what one at work holds is not",
          "[fault][saving]") {
  const saved_file kind = either();
  temporary_folder folder;
  const std::string path = folder.file("f");
  kind.write(path, 1);
  for (const char* left : {"f.1-0.tmp", "f.999999-12.tmp"}) write_file(folder.file(left), {'x'});
  for (const char* other : {"f.tmp", "f.1-0.tmp.bak", "f.1-a.tmp", "f.1.tmp", "g.1-0.tmp", "ff.1-0.tmp"})
    write_file(folder.file(other), {'x'});
  const int held = ::open(folder.file("f.2-0.tmp").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(::flock(held, LOCK_EX) == 0);
  kind.write(path, 2);
  CHECK(folder.files() == 1 + 6 + 1);
  CHECK(std::filesystem::exists(folder.file("f.2-0.tmp")));
  CHECK(!std::filesystem::exists(folder.file("f.1-0.tmp")));
  ::close(held);
  kind.write(path, 2);
  CHECK(!std::filesystem::exists(folder.file("f.2-0.tmp")));
}

TEST_CASE("a checkpoint that somebody shortens or writes to while it is read is an io_failure",
          "[fault][saving]") {
  const saved_file kind = a_tensor();
  temporary_folder folder;
  const std::string path = folder.file("f");
  kind.write(path, 1);
  const bool shortens = GENERATE(true, false);
  const int at = GENERATE(0, 1, 2, 3);  // which part is being read
  CAPTURE(shortens, at);
  watch reading(watch::mode::shorten);
  int reads = 0;
  reading.before = [&](const system_calls::call& call) {
    if (call.name != "read" || reads++ != at) return;
    if (shortens) {
      std::filesystem::resize_file(path, 100);
    } else {
      std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
      out.seekp(5000);
      out.put('x');
    }
  };
  CHECK_THROWS_AS(fm::safetensors_file(path), fm::io_failure);
  CHECK(reads > at);
}

TEST_CASE("where the file system has no nameless files a backing file has its name for a moment only",
          "[fault][saving]") {
  temporary_folder folder;
  const std::string path = folder.file("store");
  std::unique_ptr<fm::backing_store> backing;
  {
    watch without(watch::mode::fail, 0, EOPNOTSUPP);
    backing = fm::make_file_backing(path, 4, 64);
    REQUIRE(without.calls().size() == 2);
    CHECK(without.calls()[0].path == folder.path());
    CHECK(without.calls()[1].path == path);
  }
  CHECK(folder.files() == 0);
  char data[64] = "bytes", back[64] = {};
  int os_error = 0;
  REQUIRE(backing->write(3, 0, data, 64, &os_error) == status::ok);
  REQUIRE(backing->read(3, 0, back, 64, &os_error) == status::ok);
  CHECK(std::memcmp(data, back, 64) == 0);
  {
    watch refused(watch::mode::fail, 0, EACCES);
    CHECK_THROWS_AS(fm::make_file_backing(path, 4, 64), fm::io_failure);
  }
}
