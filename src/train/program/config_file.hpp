// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>

namespace indexer_program {

/// Gives `app` an option --config that every subcommand takes: a TOML or INI file with options of the subcommand that
/// runs, or of several in sections of their names. The command line wins. A file that is not there and an option that
/// does not exist are errors. To be called before subcommands are added.
void add_config_option(CLI::App& app);

}  // namespace indexer_program
