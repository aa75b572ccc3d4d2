// SPDX-License-Identifier: MIT
#include <cstdio>
#include <flashmemory/flashmemory.hpp>
#include <new>

#include "commands.hpp"

std::string tinylm::default_data_folder() { return TINYLM_DATA; }

int main(int argc, char** argv) {
  CLI::App app{"A small language model that keeps its memory in flashmemory.", "tinylm"};
  app.set_version_flag("--version", std::string("tinylm, with flashmemory ") + flashmemory::version());
  app.require_subcommand(1);
  tinylm::add_ask_command(app);
  tinylm::add_tasks_command(app);
  tinylm::add_eval_command(app);
#if TINYLM_RECORD
  tinylm::add_record_command(app);
#endif
  tinylm::add_check_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const tinylm::command_failed& e) {
    std::fprintf(stderr, "tinylm: %s\n", e.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "tinylm: out of memory: shorter contexts (--tokens, --lengths) need less\n");
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "tinylm: %s\n", e.what());
    return 2;
  }
  return 0;
}
