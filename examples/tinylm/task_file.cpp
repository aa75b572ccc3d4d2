// SPDX-License-Identifier: MIT
#include "task_file.hpp"

#include <fmt/format.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace tinylm {

std::vector<task_record> read_tasks(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  std::vector<task_record> tasks;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    try {
      const auto json = nlohmann::json::parse(line);
      task_record t;
      t.id = json.at("id");
      t.task = json.at("task");
      t.length = json.at("length");
      t.prompt_tokens = json.value("prompt_tokens", std::int64_t{0});
      t.max_new_tokens = json.at("max_new_tokens");
      t.prompt = json.at("prompt");
      t.answers = json.at("answers").get<std::vector<std::string>>();
      for (const auto& range : json.value("need", nlohmann::json::array())) {
        const auto [answer_begin, answer_end, prompt_begin, prompt_end] =
            range.get<std::array<std::int64_t, 4>>();
        t.need.push_back({answer_begin, answer_end, prompt_begin, prompt_end});
      }
      if (t.max_new_tokens < 1 || t.answers.empty()) throw std::runtime_error("no answer is asked for");
      tasks.push_back(std::move(t));
    } catch (const std::exception& e) {
      throw std::runtime_error(fmt::format("{}:{}: {}", path, number, e.what()));
    }
  }
  if (file.bad()) throw std::runtime_error(fmt::format("{}: cannot be read", path));
  if (tasks.empty()) throw std::runtime_error(fmt::format("{}: holds no tasks", path));
  return tasks;
}

}  // namespace tinylm
