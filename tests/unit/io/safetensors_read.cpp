// SPDX-License-Identifier: MIT
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <flashmemory/io/safetensors.hpp>
#include <fstream>
#include <utility>

#include "tests/catch.hpp"
#include "tests/unit/io/safetensors_support.hpp"

namespace fm = flashmemory;
using namespace flashmemory;
using namespace flashmemory_test;
using Catch::Matchers::Contains;

namespace {
const std::string two_tensors =
    R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
    R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
}

TEST_CASE("A safetensors file gives its tensors in the order of their offsets, and its metadata",
          "[safetensors]") {
  const auto image = image_of(two_tensors, 12);
  const safetensors_file file(image.data(), image.size(), "x");
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.tensors()[0].type == tensor_type::u8);
  CHECK(file.tensors()[0].shape == std::vector<std::int64_t>{4});
  CHECK(file.tensors()[0].data == image.data() + 8 + two_tensors.size());
  CHECK(file.tensors()[0].bytes == 4);
  CHECK(file.tensors()[1].name == "b");
  CHECK(file.tensors()[1].elements() == 2);
  CHECK(file.tensors()[1].data == file.tensors()[0].data + 4);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"k", "v"}});
  CHECK(file.name() == "x");
  CHECK(file.find("b") == &file.tensors()[1]);
  CHECK(file.find("c") == nullptr);
  CHECK(&file.require("b", {2, 1}) == file.find("b"));
}

TEST_CASE("require() refuses a missing tensor and another shape, naming file and tensor", "[safetensors]") {
  const auto image = image_of(two_tensors, 12);
  const safetensors_file file(image.data(), image.size(), "some/file");
  CHECK_THROWS_WITH(file.require("c", {}), Contains("some/file") && Contains("'c'"));
  CHECK_THROWS_WITH(file.require("b", {1, 2}),
                    Contains("some/file") && Contains("'b'") && Contains("[2, 1]"));
  CHECK_THROWS_AS(file.require("b", {2}), format_error);
}

TEST_CASE("Every element type has the format's name and size", "[safetensors]") {
  const std::pair<const char*, std::size_t> types[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  for (const auto& [name, bytes] : types) {
    CAPTURE(name);
    const auto image = image_of(std::string(R"({"t":{"dtype":")") + name +
                                    R"(","shape":[3],"data_offsets":[0,)" + std::to_string(3 * bytes) + "]}}",
                                3 * bytes);
    const safetensors_file file(image.data(), image.size(), "x");
    REQUIRE(file.tensors().size() == 1);
    CHECK(std::string(to_string(file.tensors()[0].type)) == name);
    CHECK(size_of(file.tensors()[0].type) == bytes);
  }
  CHECK(size_of(static_cast<tensor_type>(99)) == 0);
  CHECK(std::string(to_string(static_cast<tensor_type>(-1))) == "?");
}

TEST_CASE("Scalars, empty tensors, padded headers and files without tensors are accepted", "[safetensors]") {
  CHECK(refusal(image_of("{}", 0)).empty());
  CHECK(refusal(image_of("{}      ", 0)).empty());
  CHECK(refusal(image_of(R"({"__metadata__":{}})", 0)).empty());
  CHECK(refusal(image_of(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4)).empty());
  CHECK(refusal(image_of(R"({"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},)"
                         R"("f":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                         R"("g":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})",
                         1))
            .empty());
}

TEST_CASE("Malformed safetensors files are refused, naming file and tensor or field", "[safetensors]") {
  struct bad {
    const char* header;
    std::size_t payload;
    const char* says;
  };
  const bad table[] = {
      {"", 0, "'{'"},
      {" {}", 0, "'{'"},
      {"[]", 0, "'{'"},
      {"null", 0, "'{'"},
      {"{", 0, "JSON"},
      {"{}x", 0, "JSON"},
      {"{}{}", 0, "JSON"},
      {R"({"a":)", 0, "JSON"},
      {"{\"\xff\":1}", 0, "JSON"},
      {"{'a':1}", 0, "JSON"},
      {R"({"a":1})", 0, "'a'"},
      {R"({"a":null})", 0, "'a'"},
      {R"({"a":[]})", 0, "'a'"},
      {R"({"a":"x"})", 0, "'a'"},
      {R"({"a":true})", 0, "'a'"},
      {R"({"a":1.5})", 0, "'a'"},
      {R"({"a":-1})", 0, "'a'"},
      {R"({"a":{}})", 0, "no dtype"},
      {R"({"a":{"dtype":"U8"}})", 0, "no shape"},
      {R"({"a":{"dtype":"U8","shape":[0]}})", 0, "no data_offsets"},
      {R"({"a":{"shape":[0],"data_offsets":[0,0]}})", 0, "no dtype"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", 0, "'x'"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0, "twice"},
      {R"({"a":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}})", 0, "twice"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"data_offsets":[0,0]}})", 0, "twice"},
      {R"({"a":{"dtype":"U-9","shape":[0],"data_offsets":[0,0]}})", 0, "'U-9'"},
      {R"({"a":{"dtype":"9U","shape":[0],"data_offsets":[0,0]}})", 0, "'9U'"},
      {R"({"a":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[0,4]}})", 4, "F8_E8M0 [3] takes 3 bytes"},
      {R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,3]}})", 3, "F4 [4] takes 2 bytes"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, "F4 [3] takes 12 bits"},
      {R"({"a":{"dtype":"C64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"NEW","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"u8","shape":[0],"data_offsets":[0,0]}})", 0, "'u8'"},
      {R"({"a":{"dtype":"","shape":[0],"data_offsets":[0,0]}})", 0, "unknown dtype"},
      {R"({"a":{"dtype":8,"shape":[0],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":["U8"],"shape":[0],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":0,"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":"0","data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":{},"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[[0]],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":["0"],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[null],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "negative"},
      {R"({"a":{"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]}})", 1, "negative"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999999],"data_offsets":[0,0]}})", 0, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, "too large"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1, "takes 2 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1]}})", 1, "takes 4 bytes"},
      {R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,0]}})", 0, "takes 1 bytes"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[]}})", 1, "two numbers"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "two numbers"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "more than two"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":["0",1]}})", 1, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}})", 1, "negative"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e0]}})", 1, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":0}})", 1, "'a'"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "backwards"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "beyond"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,18446744073709551615]}})", 1,
       "beyond"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551615]}})", 1, "beyond"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "hole"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "1 bytes follow"},
      {R"({})", 1, "1 bytes follow"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})", 1, "hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "overlap"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "hole"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "twice"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__ 'k'"},
      {R"({"__metadata__":{"k":null}})", 0, "__metadata__ 'k'"},
      {R"({"__metadata__":{"k":{}}})", 0, "__metadata__ 'k'"},
      {R"({"__metadata__":{"k":["v"]}})", 0, "__metadata__ 'k'"},
      {R"({"__metadata__":{"k":"v","k":"v"}})", 0, "twice"},
      {R"({"__metadata__":"v"})", 0, "__metadata__"},
      {R"({"__metadata__":[]})", 0, "__metadata__"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
  };
  for (const bad& one : table) {
    CAPTURE(one.header, one.payload);
    const std::string message = refusal(image_of(one.header, one.payload));
    CHECK_THAT(message, Contains("the-file"));
    CHECK_THAT(message, Contains(one.says));
  }
}

TEST_CASE("A file cut short at any length is refused", "[safetensors]") {
  auto image = image_of(two_tensors, 12);
  REQUIRE(refusal(image).empty());
  while (!image.empty()) {
    image.pop_back();
    CAPTURE(image.size());
    CHECK_THAT(refusal(image), Contains("the-file"));
  }
}

TEST_CASE("A file with trailing bytes is refused", "[safetensors]") {
  auto image = image_of(two_tensors, 12);
  image.push_back(std::byte{0});
  CHECK_THAT(refusal(image), Contains("follow the last tensor"));
}

TEST_CASE("A header length beyond the file or the limit is refused before anything is read",
          "[safetensors]") {
  auto image = image_of("{}", 0);
  for (const std::uint64_t length : {std::uint64_t{3}, std::uint64_t{100'000'001}, std::uint64_t{1} << 63,
                                     ~std::uint64_t{0}, ~std::uint64_t{7}}) {
    CAPTURE(length);
    std::memcpy(image.data(), &length, sizeof length);
    CHECK_THAT(refusal(image), Contains("header of " + std::to_string(length)));
  }
}

TEST_CASE("Nesting as deep as the file is long costs no stack", "[safetensors]") {
  const std::string deep = R"({"a":{"dtype":"U8","shape":)" + std::string(3'000'000, '[');
  CHECK_THAT(refusal(image_of(deep, 0)), Contains("'a'"));
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += R"({"a":)";
  CHECK_THAT(refusal(image_of(objects, 0)), Contains("'a'"));
}

TEST_CASE("A hostile name is shortened and made printable in messages", "[safetensors]") {
  const std::string message = refusal(image_of("{\"\\u0007" + std::string(5000, 'n') + "\":1}", 0));
  CHECK(message.size() < 300);
  CHECK_THAT(message, Contains("?nnn"));
}

TEST_CASE("A file is the same as its image; what cannot be opened is an io_failure naming it",
          "[safetensors]") {
  const temporary_folder folder;
  const std::string path = folder.file("two.safetensors");
  write_bytes(path, image_of(two_tensors, 12));
  safetensors_file file(path);
  CHECK(file.tensors().size() == 2);
  CHECK(file.tensors()[1].data[7] == std::byte{11});
  const safetensors_file moved = std::move(file);
  CHECK(moved.tensors()[1].data[7] == std::byte{11});

  CHECK_THROWS_AS(safetensors_file(folder.file("none")), io_failure);
  CHECK_THROWS_WITH(safetensors_file(folder.file("none")),
                    Contains(folder.file("none")) && Contains("No such"));
  CHECK_THROWS_AS(safetensors_file(folder.path()), io_failure);
  write_bytes(folder.file("empty"), {});
  CHECK_THROWS_AS(safetensors_file(folder.file("empty")), format_error);
  CHECK_THROWS_WITH(safetensors_file(folder.file("empty")), Contains(folder.file("empty")));
}

TEST_CASE("to_floats() converts f32, bf16 and f16 from unaligned data and refuses other types",
          "[safetensors]") {
  std::string header = R"({"p":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},)"
                       R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[9,13]},)"
                       R"("h":{"dtype":"F16","shape":[3],"data_offsets":[13,19]}})";
  auto image = image_of(header, 19);
  std::byte* data = image.data() + 8 + header.size();
  const float f[] = {1.5f, -0.1f};
  const std::uint16_t b[] = {0x3fc0, 0xc000};
  const std::uint16_t h[] = {0x3e00, 0xc000, 0x0001};
  std::memcpy(data + 1, f, 8);
  std::memcpy(data + 9, b, 4);
  std::memcpy(data + 13, h, 6);
  const safetensors_file file(image.data(), image.size(), "x");
  CHECK(to_floats(file, *file.find("f")) == std::vector<float>{1.5f, -0.1f});
  CHECK(to_floats(file, *file.find("b")) == std::vector<float>{1.5f, -2.0f});
  CHECK(to_floats(file, *file.find("h")) == std::vector<float>{1.5f, -2.0f, 0x1p-24f});
  CHECK_THROWS_WITH(to_floats(file, *file.find("p")), Contains("'p'") && Contains("U8"));
}

TEST_CASE("to_floats() refuses NaN and Inf in every type, unless told not to", "[safetensors]") {
  const auto [type, bytes, bits] =
      GENERATE(table<std::string, std::size_t, std::uint32_t>({{"F32", 4, 0x7f800000u},
                                                               {"F32", 4, 0xffc00000u},
                                                               {"BF16", 2, 0xff80u},
                                                               {"BF16", 2, 0x7fc1u},
                                                               {"F16", 2, 0x7c00u},
                                                               {"F16", 2, 0xfe00u}}));
  CAPTURE(type, bits);
  const std::string header =
      R"({"t":{"dtype":")" + type + R"(","shape":[2],"data_offsets":[0,)" + std::to_string(2 * bytes) + "]}}";
  auto image = image_of(header, 2 * bytes);
  std::memset(image.data() + 8 + header.size(), 0, bytes);
  std::memcpy(image.data() + 8 + header.size() + bytes, &bits, bytes);
  const safetensors_file file(image.data(), image.size(), "x");
  CHECK_THROWS_WITH(to_floats(file, *file.find("t")), Contains("'t'") && Contains("element 1"));
  const auto values = to_floats(file, *file.find("t"), false);
  CHECK(values[0] == 0);
  CHECK(!std::isfinite(values[1]));
}

TEST_CASE("A type that is not read makes its tensors useless, not the file", "[safetensors]") {
  struct kind {
    const char* type;
    const char* shape;
    int bytes;
  };
  for (const kind& k :
       {kind{"F8_E8M0", "[4]", 4}, kind{"F8_E4M3FNUZ", "[2,2]", 4}, kind{"F8_E5M2FNUZ", "[4]", 4},
        kind{"F4", "[2,8]", 8}, kind{"F6_E2M3", "[4]", 3}, kind{"F6_E3M2", "[8]", 6}, kind{"C64", "[2]", 16},
        kind{"A_TYPE_OF_2030", "[3]", 5}}) {
    CAPTURE(k.type);
    const std::string header =
        std::string(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":")") + k.type +
        R"(","shape":)" + k.shape + R"(,"data_offsets":[4,)" + std::to_string(4 + k.bytes) + "]}}";
    const auto image = image_of(header, std::size_t(4 + k.bytes));
    const fm::safetensors_file file(image.data(), image.size(), "the-file");
    CHECK(fm::to_floats(file, file.require("w", {1})).size() == 1);
    const fm::tensor_entry& x = *file.find("x");
    CHECK(x.type == fm::tensor_type::other);
    CHECK(x.type_name == k.type);
    CHECK(x.bytes == std::size_t(k.bytes));
    try {
      fm::to_floats(file, x);
      FAIL("converted");
    } catch (const fm::format_error& e) {
      CHECK_THAT(e.what(), Contains("'x' is " + std::string(k.type)));
    }
  }
}

TEST_CASE("Names are printed as they are, but for what a terminal or a log would act upon", "[safetensors]") {
  const auto image = image_of("{}", 0);
  const fm::safetensors_file file(image.data(), image.size(), "the-file");
  const auto message = [&](const std::string& name) {
    try {
      file.require(name, {1});
    } catch (const fm::format_error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  for (const char* name :
       {"layers.0.wq", "\u6a21\u578b.\u5c42.0.\u91cd\u307f", "na\u00efve \"q\"", "\U0001f600"}) {
    CAPTURE(name);
    CHECK_THAT(message(name), Contains("'" + std::string(name) + "'"));
  }
  struct harmful {
    const char* name;
    const char* shown;
  };
  for (const harmful& h :
       {harmful{"a\x1b[31mb", "'a?[31mb'"}, harmful{"a\nb", "'a?b'"}, harmful{"a\x7f", "'a?'"},
        harmful{"a\xc2\x9b", "'a?'"}, harmful{"a\u202eb", "'a?b'"}, harmful{"a\u2028b", "'a?b'"},
        harmful{"\xff\xfe", "'\?\?'"}, harmful{"\xc0\xaf", "'\?\?'"}, harmful{"\xed\xa0\x80", "'\?\?\?'"},
        harmful{"\xf4\x90\x80\x80", "'\?\?\?\?'"}, harmful{"\xe6\xa8", "'\?\?'"}}) {
    CAPTURE(h.shown);
    CHECK_THAT(message(h.name), Contains(h.shown));
  }
  std::string many;  // cut between characters
  for (int i = 0; i < 100; ++i) many += "\u6a21";
  CHECK_THAT(message(many), Contains(many.substr(0, 120) + "...'"));
}

TEST_CASE("A file that others shorten, replace or leave sparse does no harm", "[safetensors]") {
  temporary_folder folder;
  const std::string path = folder.file("f");
  const std::vector<float> values(1 << 18, 1.0f);
  fm::tensor_source t;
  t.name = "w";
  t.shape = {1 << 18};
  t.data = reinterpret_cast<const std::byte*>(values.data());
  t.bytes = 1 << 20;
  fm::write_safetensors(path, {t}, {});
  SECTION("shortened while it is open") {
    const fm::safetensors_file file(path);
    std::filesystem::resize_file(path, 4096);
    CHECK(fm::to_floats(file, file.require("w", {1 << 18})) == values);
  }
  SECTION("beyond 4 GiB, with a hole that costs nothing") {
    const std::uint64_t hole = std::uint64_t{5} << 30;
    std::string header = R"({"a":{"dtype":"U8","shape":[5,1073741824],"data_offsets":[0,)" +
                         std::to_string(hole) + R"(]},"b":{"dtype":"F32","shape":[1],"data_offsets":[)" +
                         std::to_string(hole) + "," + std::to_string(hole + 4) + "]}}";
    const std::uint64_t length = header.size();
    {
      std::ofstream out(path, std::ios::binary | std::ios::trunc);
      out.write(reinterpret_cast<const char*>(&length), 8);
      out << header;
      out.seekp(std::streamoff(8 + length + hole));
      const float one = 1.5f;
      out.write(reinterpret_cast<const char*>(&one), 4);
    }
    rusage before, after;
    ::getrusage(RUSAGE_SELF, &before);
    const fm::safetensors_file file(path);
    ::getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_maxrss - before.ru_maxrss < 16 << 10);  // KiB
    CHECK(fm::to_floats(file, file.require("b", {1})) == std::vector<float>{1.5f});
    CHECK(file.find("a")->data[hole - 1] == std::byte{0});
  }
}
