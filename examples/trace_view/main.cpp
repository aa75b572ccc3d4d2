// SPDX-License-Identifier: MIT
// Shows what a selector did: a trace of a run becomes one page, or a drawing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <flashmemory/io/output_file.hpp>
#include <fstream>
#include <iostream>

#include "page.hpp"
#include "picture.hpp"

namespace {

using namespace trace_view;

trace load(const std::string& path) try {
  if (path == "-") return read_trace(std::cin);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw bad_trace("is a folder");
  std::ifstream in(path, std::ios::binary);
  if (!in) throw bad_trace("cannot be opened");
  return read_trace(in);
} catch (const bad_trace& e) {
  throw bad_trace(fmt::format("{}: {}", path, e.what()));
}

int run(int argc, char** argv) {
  CLI::App app{"Turns a trace of flashmemory's selections into a page or a drawing.", "trace_view"};
  std::string path, html, svg;
  std::int64_t wanted = -1;
  app.add_option("trace", path, "JSON lines that selection_trace wrote; - is standard input")->required();
  app.add_option("--html", html, "write a page that needs nothing else");
  app.add_option("--svg", svg, "write a drawing of one sequence");
  app.add_option("--sequence", wanted,
                 "which of them --svg draws, counted in order of appearance from 0; without it the one with "
                 "the most refreshes")
      ->check(CLI::NonNegativeNumber);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  if (html.empty() && svg.empty()) {
    fmt::print(stderr, "trace_view: neither --html nor --svg: there is nothing to do\n");
    return 2;
  }
  if (!html.empty() && html == svg) {
    fmt::print(stderr, "trace_view: --html and --svg name the same file\n");
    return 2;
  }
  for (const std::string& file : {html, svg})
    if (!file.empty()) flashmemory::check_output_file(file);

  const trace t = load(path);
  std::vector<timeline> lines;
  for (const auto& s : t.sequences) lines.push_back(make_timeline(s, t.tokens_per_chunk));
  std::size_t most = 0;
  for (std::size_t i = 1; i < lines.size(); ++i)
    if (lines[i].spans.size() > lines[most].spans.size()) most = i;
  if (lines.empty() || lines[most].spans.empty())
    throw bad_trace(path + ": has no refresh that came into force");
  if (t.cut) fmt::print(stderr, "trace_view: {}: the last line is not whole, and is left out\n", path);
  if (wanted >= static_cast<std::int64_t>(lines.size()))
    throw bad_trace(
        fmt::format("{}: has {} sequences, --sequence {} is none of them", path, lines.size(), wanted));
  if (!html.empty()) flashmemory::write_file(html, page(t, lines));
  if (!svg.empty()) {
    const std::size_t one = wanted < 0 ? most : static_cast<std::size_t>(wanted);
    flashmemory::write_file(svg, picture(t, t.sequences[one], lines[one]));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "trace_view: {}\n", e.what());
    return 2;
  }
}
