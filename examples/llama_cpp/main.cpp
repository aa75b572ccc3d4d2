// SPDX-License-Identifier: MIT
#include <cstdio>
#include <new>

#include "program_options.hpp"

int main(int argc, char** argv) {
  CLI::App app{"llama.cpp, unpatched, that keeps its memory in flashmemory.", "llama_flashmemory"};
  app.set_version_flag("--version", std::string("llama_flashmemory, with flashmemory ") +
                                        flashmemory::version() + " and llama.cpp " + llama_version() +
                                        " (tested: " + llama_flashmemory::tested_llama_version + ")");
  app.require_subcommand(1);
  llama_flashmemory::add_chat_command(app);
  llama_flashmemory::add_bench_command(app);
  llama_flashmemory::add_check_command(app);
  llama_flashmemory::add_widen_command(app);
  try {
    llama_flashmemory::start_llama();
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const llama_flashmemory::command_failed& e) {
    std::fprintf(stderr, "llama_flashmemory: %s\n", e.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "llama_flashmemory: out of memory: a shorter --context needs less\n");
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "llama_flashmemory: %s\n", e.what());
    return 2;
  }
  return 0;
}
