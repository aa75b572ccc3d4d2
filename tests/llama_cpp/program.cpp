// SPDX-License-Identifier: MIT
// The llama_flashmemory program as a user meets it.
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/catch.hpp"
#include "tests/support/temporary_folder.hpp"

using Catch::Contains;

namespace {

struct workplace {
  int run(const std::string& arguments) const {
    const std::string command =
        std::string(LLAMA_PROGRAM) + " " + arguments + " >" + at("out") + " 2>" + at("err") + " </dev/null";
    const int ended = std::system(command.c_str());
    return WIFEXITED(ended) ? WEXITSTATUS(ended) : 1000;  // a signal
  }
  std::string at(const std::string& name) const { return folder.file(name); }
  std::string text(const std::string& name) const {
    std::ifstream file(at(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(at(name), std::ios::binary) << content;
  }
  flashmemory_test::temporary_folder folder;
};

const std::string smollm2 = std::string(LLAMA_MODELS) + "/SmolLM2-135M-Instruct.Q4_1.gguf";

std::string paragraphs(int count) {
  std::string out;
  for (int i = 0; i < count; ++i)
    out += "The keeper of hall " + std::to_string(i) +
           " walked slowly to the window and wrote down what the river did.\n\n";
  return out;
}

}  // namespace

TEST_CASE("options out of range are told by name before anything is loaded", "[llama_cpp]") {
  const workplace w;
  const struct {
    const char *arguments, *says;
  } cases[] = {{"chat --model x --threads 0", "--threads: 0 is not from 1"},
               {"chat --model x --policy best", "--policy: best not in"},
               {"chat --model x --budget 13.5", "13.5 % is 0.135"},
               {"chat --model x --budget nan", "--budget: nan is not"},
               {"chat --model x --interval 0", "--interval: 0 is not from 1"},
               {"chat --model x --cache q4", "--cache: q4 not in"},
               {"bench --model x", "--text is required"},
               {"bench --text x", "--model is required"}};
  for (const auto& c : cases) {
    CAPTURE(c.arguments);
    CHECK(w.run(c.arguments) != 0);
    CHECK_THAT(w.text("err") + w.text("out"), Contains(c.says));
  }
}

TEST_CASE("a model that is none, or not there, is told by its name", "[llama_cpp]") {
  const workplace w;
  w.write("none.gguf", "no model at all");
  w.write("cut.gguf", std::string("GGUF\3\0\0\0", 8));
  CHECK(w.run("chat --model " + w.at("missing.gguf")) == 2);
  CHECK_THAT(w.text("err"), Contains("missing.gguf: cannot be read"));
  CHECK(w.run("chat --model " + w.at("none.gguf")) == 2);
  CHECK_THAT(w.text("err"), Contains("none.gguf: is no GGUF"));
  CHECK(w.run("chat --model " + w.at("cut.gguf")) == 2);
  CHECK_THAT(w.text("err"), Contains("cut.gguf: llama.cpp cannot load it: "));
}

TEST_CASE("both sides answer over a document, and a session goes on", "[llama_cpp]") {
  if (!std::filesystem::exists(smollm2)) {
    WARN("skipped: no model " << smollm2);
    return;
  }
  const workplace w;
  w.write("document", paragraphs(40));
  const std::string ask =
      "chat --model " + smollm2 + " --document " + w.at("document") + " --context 1024 --answer 12 ";
  REQUIRE(w.run(ask + "--needles 1 --policy full") == 0);
  CHECK_THAT(w.text("out"),
             Contains("flashmemory, full") && Contains("llama.cpp") && Contains("1 of 1 right"));
  REQUIRE(w.run(ask + "--needles 0 --policy quest --budget 0.6 --question 'Who walked?' --session " +
                w.at("session")) == 0);
  CHECK_THAT(w.text("out"), Contains("tokens are saved"));
  REQUIRE(w.run("chat --model " + smollm2 +
                " --context 1024 --answer 4 --policy quest --budget 0.6 --question 'And then?' --session " +
                w.at("session")) == 0);
  CHECK_THAT(w.text("out"), Contains("tokens are there again") && Contains("tokens are saved"));
  CHECK(w.run("chat --model " + smollm2 + " --context 8193") == 2);
  CHECK_THAT(w.text("err"), Contains("8193") && Contains("8192"));
  CHECK(w.run(ask + "--tokens 1000") == 2);
  CHECK_THAT(w.text("err"), Contains("leaves no room"));
  CHECK(w.run(ask + "--cache q8_0") == 2);
  CHECK_THAT(w.text("err"), Contains("type_k") && Contains("q8_0"));
}

TEST_CASE("what is left of a model that was cut is refused by its name", "[llama_cpp]") {
  if (!std::filesystem::exists(smollm2)) {
    WARN("skipped: no model " << smollm2);
    return;
  }
  const workplace w;
  std::filesystem::copy_file(smollm2, w.at("half.gguf"));
  std::filesystem::resize_file(w.at("half.gguf"), std::filesystem::file_size(smollm2) / 2);
  CHECK(w.run("chat --model " + w.at("half.gguf")) == 2);
  CHECK_THAT(w.text("err"), Contains("half.gguf: llama.cpp cannot load it: "));
}
