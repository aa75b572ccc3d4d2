// SPDX-License-Identifier: MIT
#include <flashmemory/io/safetensors.hpp>
#include <limits>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/io/safetensors_support.hpp"

using namespace flashmemory;
using namespace flashmemory_test;
using Catch::Matchers::Contains;

namespace {

tensor_source source(std::string name, tensor_type type, std::vector<std::int64_t> shape,
                     const std::vector<std::byte>& data) {
  tensor_source t;
  t.name = std::move(name);
  t.type = type;
  t.shape = std::move(shape);
  t.data = data.data();
  t.bytes = data.size();
  return t;
}

}  // namespace

TEST_CASE("What write_safetensors() writes is read back byte for byte", "[safetensors]") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const temporary_folder folder;
  const std::string path = folder.file("t.safetensors");
  for (int round = 0; round < 20; ++round) {
    std::vector<std::vector<std::byte>> data;
    std::vector<tensor_source> tensors;
    const std::size_t count = random() % 6;
    for (std::size_t i = 0; i < count; ++i) {
      const auto type = static_cast<tensor_type>(random() % 15);
      std::vector<std::int64_t> shape(random() % 4);
      std::size_t bytes = size_of(type);
      for (auto& extent : shape) {
        extent = random() % 5;
        bytes *= static_cast<std::size_t>(extent);
      }
      data.emplace_back(bytes);
      for (auto& b : data.back()) b = static_cast<std::byte>(random());
      tensors.push_back(source("t\"\\\n\xc3\xa9" + std::to_string(i), type, shape, {}));
    }
    for (std::size_t i = 0; i < count; ++i) {
      tensors[i].data = data[i].data();
      tensors[i].bytes = data[i].size();
    }
    const std::map<std::string, std::string> metadata{{"a \"quoted\" key", "line\nline"},
                                                      {"", "\xe2\x82\xac"}};
    write_safetensors(path, tensors, metadata);
    const safetensors_file file(path);
    CHECK(file.metadata() == metadata);
    CHECK(file.tensors().size() == count);
    for (const tensor_source& t : tensors) {
      const tensor_entry& read = file.require(t.name, t.shape);
      CHECK(read.type == t.type);
      REQUIRE(read.bytes == t.bytes);
      CHECK(std::equal(read.data, read.data + read.bytes, t.data));
    }
  }
  CHECK(folder.files() == 1);
}

TEST_CASE("A file is replaced as a whole, and a writer that cannot finish leaves the old one alone",
          "[safetensors]") {
  const temporary_folder folder;
  const std::string path = folder.file("t.safetensors");
  write_safetensors(path, {}, {{"version", "old"}});
  const std::vector<std::byte> data(3);
  CHECK_THROWS_AS(write_safetensors(path, {source("a", tensor_type::f32, {1}, data)}, {}), argument_error);
  CHECK(safetensors_file(path).metadata().at("version") == "old");
  write_safetensors(path, {}, {{"version", "new"}});
  CHECK(safetensors_file(path).metadata().at("version") == "new");
  CHECK(folder.files() == 1);
}

TEST_CASE("write_safetensors() refuses what could not be read back, naming the tensor", "[safetensors]") {
  const temporary_folder folder;
  const std::string path = folder.file("t.safetensors");
  const std::vector<std::byte> data(4);
  const auto good = source("a", tensor_type::u8, {4}, data);
  const auto refuse = [&](std::vector<tensor_source> tensors, const char* says) {
    CAPTURE(says);
    CHECK_THROWS_AS(write_safetensors(path, tensors, {}), argument_error);
    CHECK_THROWS_WITH(write_safetensors(path, tensors, {}), Contains(says) && Contains(path));
  };
  refuse({good, good}, "'a'");
  refuse({source("__metadata__", tensor_type::u8, {4}, data)}, "__metadata__");
  refuse({source("b", tensor_type::u8, {5}, data)}, "'b'");
  refuse({source("b", tensor_type::u8, {-4}, data)}, "'b'");
  refuse({source("b", tensor_type::u8, {-2, -2}, data)}, "'b'");
  refuse({source("b", tensor_type::u8, {std::numeric_limits<std::int64_t>::max(), 4}, data)}, "'b'");
  refuse({source("b", tensor_type::f64, {std::int64_t{1} << 61}, {})}, "'b'");
  refuse({source("b", static_cast<tensor_type>(77), {4}, data)}, "'b'");
  refuse({source("b\xff", tensor_type::u8, {4}, data)}, "UTF-8");
  auto null = good;
  null.data = nullptr;
  refuse({null}, "no data");
  CHECK_THROWS_AS(write_safetensors(path, {}, {{"k", "\xff"}}), argument_error);
  CHECK(folder.files() == 0);
}

TEST_CASE("A path that cannot be written is an io_failure naming it, and leaves nothing behind",
          "[safetensors]") {
  const temporary_folder folder;
  const std::string nowhere = folder.file("no/such/folder/t.safetensors");
  CHECK_THROWS_AS(write_safetensors(nowhere, {}, {}), io_failure);
  CHECK_THROWS_WITH(write_safetensors(nowhere, {}, {}), Contains(nowhere) && Contains("No such file"));
  const std::string occupied = folder.file("folder");
  std::filesystem::create_directories(occupied + "/inside");
  CHECK_THROWS_AS(write_safetensors(occupied, {}, {}), io_failure);  // the rename fails
  CHECK(folder.files() == 1);
}

TEST_CASE("elements() is the product of the shape, and -1 for one that cannot be", "[safetensors]") {
  tensor_entry t;
  CHECK(t.elements() == 1);
  t.shape = {3, 0, 5};
  CHECK(t.elements() == 0);
  t.shape = {3, 5};
  CHECK(t.elements() == 15);
  t.shape = {-1};
  CHECK(t.elements() == -1);
  t.shape = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  CHECK(t.elements() == -1);
}
