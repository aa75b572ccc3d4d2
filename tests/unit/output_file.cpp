// SPDX-License-Identifier: MIT
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/io/output_file.hpp>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/catch.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;

namespace {

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("a file is written whole, over the one before, and nothing else is left", "[io]") {
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("a");
  fm::write_file(path, "first");
  fm::write_file(path, std::string(100000, 'x'));
  CHECK(content(path) == std::string(100000, 'x'));
  fm::check_output_file(path);
  CHECK(content(path) == std::string(100000, 'x'));
  fm::check_output_file(folder.file("b"));
  CHECK(folder.files() == 1);
}

TEST_CASE("an output that cannot be written is named before and when it is written", "[io]") {
  const flashmemory_test::temporary_folder folder;
  std::ofstream(folder.file("file")) << "no folder";
  for (const std::string& path : {folder.path(), folder.file("no/a"), folder.file("file/a")}) {
    CAPTURE(path);
    CHECK_THROWS_WITH(fm::check_output_file(path), Catch::Contains(path));
    CHECK_THROWS_AS(fm::write_file(path, "x"), fm::io_failure);
  }
  CHECK_THROWS_AS(fm::check_output_file(""), fm::io_failure);
  CHECK_THROWS_AS(fm::check_output_folder(""), fm::io_failure);
  CHECK_THROWS_WITH(fm::check_output_folder(folder.file("file/a")), Catch::Contains("file/a"));
  CHECK_THROWS_AS(fm::check_output_folder("/proc/nothing/here"), fm::io_failure);
  fm::check_output_folder(folder.file("made/later"));
  fm::check_output_folder(folder.path());
  CHECK(folder.files() == 1);
}

TEST_CASE("what is no regular file is written to as it is", "[io]") {
  fm::check_output_file("/dev/null");
  fm::write_file("/dev/null", "x");
  CHECK(std::filesystem::is_character_file("/dev/null"));
  const flashmemory_test::temporary_folder folder;
  const std::string pipe = folder.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::string read;
  std::thread reader([&] { read = content(pipe); });
  fm::write_file(pipe, "through a pipe");
  reader.join();
  CHECK(read == "through a pipe");
  CHECK(std::filesystem::is_fifo(pipe));
}
