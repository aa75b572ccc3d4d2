// SPDX-License-Identifier: MIT
#include "src/train/program/config_file.hpp"

#include <memory>
#include <vector>

namespace indexer_program {
namespace {

/// What stands outside sections is the running subcommand's.
class subcommand_config : public CLI::ConfigTOML {
 public:
  explicit subcommand_config(const CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> read = CLI::ConfigTOML::from_config(input);
    const auto running = app_.get_subcommands();
    for (CLI::ConfigItem& item : read) {
      if (item.parents.empty() && !running.empty()) item.parents.push_back(running.front()->get_name());
    }
    return read;
  }

 private:
  const CLI::App& app_;
};

}  // namespace

void add_config_option(CLI::App& app) {
  app.fallthrough();
  app.set_config("--config", "", "Read options from a TOML or INI file");
  app.config_formatter(std::make_shared<subcommand_config>(app));
  app.allow_config_extras(CLI::config_extras_mode::error);
}

}  // namespace indexer_program
