// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdint>
#include <flashmemory/io/output_file.hpp>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.hpp"
#include "option_ranges.hpp"
#include "tasks.hpp"

namespace tinylm {
namespace {

struct tasks_options {
  std::string data = default_data_folder();
  std::string text;
  std::string part = "0:1";
  std::string out;
  std::vector<std::int64_t> lengths{4096, 8192, 16384};
  std::vector<std::string> kinds;
  std::int64_t per_task = 8;
  std::uint64_t seed = 1;
  bool odd = false;
};

void run_tasks(const tasks_options& options) {
  flashmemory::check_output_file(options.out);
  const tokenizer words(options.data + "/tokenizer.json");
  const task_maker maker(words, options.text.empty() ? options.data + "/prose.txt" : options.text,
                         options.data + "/words.txt", options.seed, text_part_from(options.part));
  // Written at the end: nothing is left behind if a length does not fit.
  std::string lines;
  std::int64_t tasks = 0, tokens = 0;
  for (const std::int64_t length : options.lengths) {
    for (const std::string& kind : options.kinds) {
      for (std::int64_t i = 0; i < options.per_task; ++i) {
        const made_task task = maker.make(task_kind_from(kind), length, i, options.odd);
        lines += to_json_line(task) + '\n';
        ++tasks;
        tokens += task.record.prompt_tokens;
      }
    }
  }
  flashmemory::write_file(options.out, lines);
  fmt::print("{} prompts of {} tokens in {}\n", tasks, tokens, options.out);
}

}  // namespace

void add_tasks_command(CLI::App& app) {
  auto options = std::make_shared<tasks_options>();
  std::set<std::string> names;
  for (const task_kind kind : all_task_kinds()) {
    options->kinds.emplace_back(to_string(kind));
    names.emplace(to_string(kind));
  }
  auto* command = app.add_subcommand("tasks", "Write retrieval tasks over a text, for eval");
  command->add_option("--out", options->out, "JSONL file to write")->required();
  command->add_option("--lengths", options->lengths, "Context lengths; a prompt has 256 tokens less")
      ->delimiter(',')
      ->check(within<std::int64_t>(512, 1 << 30))
      ->capture_default_str();
  command->add_option("--tasks", options->kinds, "Kinds of task")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  command->add_option("--per-task", options->per_task, "Prompts of each kind and length")
      ->check(count(1))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Same seed, same file")->capture_default_str();
  command->add_option("--text", options->text, "Text to hide things in [prose.txt of the data folder]")
      ->check(CLI::ExistingFile);
  command->add_option("--text-part", options->part, "Only this part of it, A:B as fractions of its tokens")
      ->capture_default_str();
  command->add_flag("--odd", options->odd, "Random prompt lengths below that, no multiples of 64");
  command->add_option("--data", options->data, "Folder of tokenizer, words and text")->capture_default_str();
  command->callback([options] { run_tasks(*options); });
}

}  // namespace tinylm
