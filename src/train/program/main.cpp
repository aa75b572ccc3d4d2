// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <exception>
#include <new>

#include "src/train/program/commands.hpp"
#include "src/train/program/config_file.hpp"

int main(int argc, char** argv) {
  CLI::App app("Trains the memory indexer of flashmemory from recordings of an engine's decoding.");
  app.require_subcommand(1);
  indexer_program::add_config_option(app);
  indexer_program::add_train(app);
  indexer_program::add_calibrate(app);
  indexer_program::add_report(app);
  indexer_program::add_show(app);
  indexer_program::add_export(app);
  indexer_program::add_import(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr,
               "flashmemory_train_indexer: out of memory; --memory, --rank, --heads and --windows say how "
               "much is held\n");
    return 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "flashmemory_train_indexer: {}\n", e.what());
    return 1;
  }
  return 0;
}
