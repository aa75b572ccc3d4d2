// SPDX-License-Identifier: MIT
// Whether llama.cpp through flashmemory, everything resident, generates what llama.cpp generates.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <flashmemory/io/output_file.hpp>
#include <nlohmann/json.hpp>

#include "../tinylm/option_ranges.hpp"
#include "program_options.hpp"
#include "text_file.hpp"

namespace llama_flashmemory {

namespace {

struct check_options {
  program_options shared;
  std::string text;
  int prompts = 20;
  int tokens = 256;
  std::vector<std::int64_t> lengths{27, 64, 129, 540, 1087, 2048, 4096};
  std::string json;
};

/// One prompt's generation in an engine.
struct generated {
  std::vector<llama_token> tokens;
  std::vector<float> at_parting;  ///< logits of the step whose token is not the reference's
};

/// Generates greedily. With a reference: up to the first token that is not its own.
generated generate(runner& engine, const text_model& model, const std::vector<llama_token>& prompt, int count,
                   const std::vector<llama_token>* reference) {
  generated g;
  engine.prompt(prompt);
  for (int i = 0; i < count; ++i) {
    const float* logits = engine.logits();
    g.tokens.push_back(greedy(logits, model.vocabulary()));
    if (reference != nullptr && g.tokens.back() != (*reference)[static_cast<std::size_t>(i)]) {
      g.at_parting.assign(logits, logits + model.vocabulary());
      break;
    }
    if (i + 1 < count) engine.step(g.tokens.back());
  }
  engine.shorten(0);
  return g;
}

/// How far apart an engine's own two candidates are where it parts from the reference: a small gap is rounding.
nlohmann::json parting(const generated& g, const std::vector<llama_token>& reference) {
  nlohmann::json out;
  out["equal"] = g.at_parting.empty() ? g.tokens.size() : g.tokens.size() - 1;
  if (g.at_parting.empty()) return out;
  const auto other = static_cast<std::size_t>(reference[g.tokens.size() - 1]);
  out["gap"] = g.at_parting[static_cast<std::size_t>(g.tokens.back())] - g.at_parting[other];
  return out;
}

void run(const check_options& o) {
  if (!o.json.empty()) flashmemory::check_output_file(o.json);
  const text_model model(o.shared.model);
  std::string words;
  for (const auto& p : read_paragraphs(o.text)) words += p + "\n\n";
  const auto text = model.tokens(words);
  auto settings = o.shared.runners(model, "full");
  settings.context = std::min<std::int64_t>(settings.context,
                                            *std::max_element(o.lengths.begin(), o.lengths.end()) + o.tokens);
  const auto reference = make_plain(model, settings);
  auto other_kernel = settings;
  other_kernel.flash_attention = false;
  const auto control = make_plain(model, other_kernel);
  const auto ours = make_adapted(model, settings);

  nlohmann::json report;
  double equal_ours = 0, equal_control = 0, all = 0;
  float widest = 0, widest_control = 0;
  for (int p = 0; p < o.prompts; ++p) {
    const auto length = static_cast<std::size_t>(
        std::min(o.lengths[static_cast<std::size_t>(p) % o.lengths.size()], settings.context - o.tokens));
    const std::size_t start =
        static_cast<std::size_t>(p) * 7919 % (text.size() - std::min(length, text.size() - 1));
    auto prompt = model.prompt_frame().before;
    const auto more =
        static_cast<std::ptrdiff_t>(std::min(length - std::min(prompt.size(), length), text.size() - start));
    prompt.insert(prompt.end(), text.begin() + static_cast<std::ptrdiff_t>(start),
                  text.begin() + static_cast<std::ptrdiff_t>(start) + more);
    const auto expected = generate(*reference, model, prompt, o.tokens, nullptr).tokens;
    const auto mine = parting(generate(*ours, model, prompt, o.tokens, &expected), expected);
    const auto theirs = parting(generate(*control, model, prompt, o.tokens, &expected), expected);
    report["prompts"].push_back(
        {{"tokens", prompt.size()}, {"flashmemory", mine}, {"llama.cpp, other kernel", theirs}});
    all += o.tokens;
    equal_ours += mine["equal"].get<double>();
    equal_control += theirs["equal"].get<double>();
    widest = std::max(widest, mine.value("gap", 0.0f));
    widest_control = std::max(widest_control, theirs.value("gap", 0.0f));
    fmt::print("prompt of {:5} tokens: {:3} of {} equal{}; llama.cpp without flash attention: {:3}{}\n",
               prompt.size(), mine["equal"].get<int>(), o.tokens,
               mine.contains("gap") ? fmt::format(" (gap {:.3f})", mine["gap"].get<float>()) : "",
               theirs["equal"].get<int>(),
               theirs.contains("gap") ? fmt::format(" (gap {:.3f})", theirs["gap"].get<float>()) : "");
    std::fflush(stdout);
  }
  report["model"] = o.shared.model.substr(o.shared.model.find_last_of('/') + 1);
  report["tokens_a_prompt"] = o.tokens;
  report["equal"] = {{"flashmemory", equal_ours / all}, {"llama.cpp, other kernel", equal_control / all}};
  report["widest_gap"] = {{"flashmemory", widest}, {"llama.cpp, other kernel", widest_control}};
  fmt::print(
      "equal tokens: {:.1f} % through flashmemory, {:.1f} % by llama.cpp's other kernel; widest gap at a "
      "parting {:.3f} and {:.3f}\n",
      100 * equal_ours / all, 100 * equal_control / all, widest, widest_control);
  if (!o.json.empty()) flashmemory::write_file(o.json, report.dump(1) + "\n");
}

}  // namespace

void add_check_command(CLI::App& app) {
  auto o = std::make_shared<check_options>();
  auto* command =
      app.add_subcommand("check", "compares greedy tokens with llama.cpp's own, everything resident");
  add_shared_options(*command, o->shared);
  command->add_option("--text", o->text, "text file that prompts are cut from")->required();
  command->add_option("--prompts", o->prompts, "how many")
      ->check(tinylm::within(1, 10000))
      ->capture_default_str();
  command->add_option("--tokens", o->tokens, "generated after each")
      ->check(tinylm::within(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--lengths", o->lengths, "tokens of the prompts, in turn")
      ->delimiter(',')
      ->check(tinylm::count(1));
  command->add_option("--json", o->json, "file for the report");
  command->callback([o] { run(*o); });
}

}  // namespace llama_flashmemory
