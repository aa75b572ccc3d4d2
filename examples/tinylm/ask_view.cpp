// SPDX-License-Identifier: MIT
#include "ask_view.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace tinylm {
namespace {

constexpr int strip_width = 64;

std::string first_line(const std::string& text) {
  const auto begin = text.find_first_not_of(' ');
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find('\n', begin) - begin);
}

/// Anything a terminal might act on becomes '?'.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
  }
  return text;
}

}  // namespace

int terminal_columns() noexcept {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 100;
  return size.ws_col;
}

std::string resident_strip(const std::vector<flashmemory::chunk_id>& resident, std::int64_t chunks,
                           int width) {
  width = static_cast<int>(std::min<std::int64_t>(width, chunks));
  std::string strip;
  for (std::int64_t cell = 0; cell < width; ++cell) {
    const std::int64_t first = cell * chunks / width;
    const std::int64_t last = (cell + 1) * chunks / width;
    const auto there =
        std::count_if(resident.begin(), resident.end(), [&](auto c) { return c >= first && c < last; });
    strip += there == 0 ? '.' : there == last - first ? '#' : '+';
  }
  return strip;
}

std::string needle_strip(const std::vector<const needle*>& needles, std::int64_t tokens_per_chunk,
                         std::int64_t chunks, int width) {
  width = static_cast<int>(std::min<std::int64_t>(width, chunks));
  std::string strip(static_cast<std::size_t>(width), ' ');
  for (const needle* n : needles) {
    for (const std::int64_t token : {n->first_token, n->last_token}) {
      const std::int64_t chunk = token / tokens_per_chunk;
      std::int64_t cell = chunk * width / chunks;
      while ((cell + 1) * chunks / width <= chunk) ++cell;
      strip[static_cast<std::size_t>(cell)] = '^';
    }
  }
  strip.erase(strip.find_last_not_of(' ') + 1);
  return strip;
}

ask_view::ask_view(std::int32_t label_width, bool terminal)
    : look_(stdout_style()), label_width_(label_width), terminal_(terminal) {}

void ask_view::question(std::size_t number, std::size_t count, const std::string& text) {
  fmt::print("\n{} {}\n", look_.bold(fmt::format("[{}/{}]", number, count)), look_.bold(printable(text)));
}

std::string ask_view::text_line(const answer_state& answer, bool done, int width) const {
  std::string text = printable(first_line(answer.run->text));
  const auto room = static_cast<std::size_t>(std::max(10, width - label_width_ - 4));
  if (!done && text.size() > room) text = "..." + text.substr(text.size() - room + 3);
  std::string line =
      fmt::format("  {} {}", look_.accent(fmt::format("{:<{}}", answer.cell->label(), label_width_)), text);
  if (done && !answer.expected->empty()) {
    const auto all = static_cast<int>(answer.expected->size());
    line += "  " + (answer.right == all ? look_.good("right")
                                        : look_.bad(fmt::format("{} of {} right", answer.right, all)));
  }
  return line;
}

std::string ask_view::state_line(const answer_state& answer) const {
  const auto& run = *answer.run;
  if (run.footprints.empty()) return "";
  const auto& f = run.footprints.back();
  const double seconds = run.seconds();
  const double speed = seconds > 0 ? static_cast<double>(run.step_seconds.size()) / seconds : 0;
  return fmt::format("  {:<{}} {} of {} chunks resident, {} of {} ({:.1f} %), {:.0f} tok/s", "", label_width_,
                     f.resident_chunks, f.chunks, bytes_text(static_cast<double>(f.total())),
                     bytes_text(static_cast<double>(f.everything)), 100 * f.fraction(), speed);
}

void ask_view::growing(const answer_state& answer) {
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && now - last_ < std::chrono::milliseconds(30)) return;
  last_ = now;
  const int width = terminal_columns();
  fmt::print("\r\x1b[K{}\n\x1b[K{}\x1b[1A\r", text_line(answer, false, width),
             look_.dim(state_line(answer).substr(0, static_cast<std::size_t>(width - 1))));
  std::fflush(stdout);
  drawn_ = true;
}

void ask_view::finished(const answer_state& answer) {
  if (drawn_) fmt::print("\r\x1b[J");
  drawn_ = false;
  fmt::print("{}\n{}\n", text_line(answer, true, 0), look_.dim(state_line(answer)));
  if (!answer.cell->full() && !answer.run->footprints.empty()) {
    const std::int64_t chunks = answer.run->footprints.back().chunks;
    fmt::print("  {:<{}} {}\n", "", label_width_,
               look_.dim(fmt::format("|{}|", resident_strip(answer.resident, chunks, strip_width))));
    if (!answer.expected->empty()) {
      fmt::print("  {:<{}}  {}\n", "", label_width_,
                 look_.good(needle_strip(*answer.expected, 64, chunks, strip_width)));
    }
  }
  std::fflush(stdout);
}

}  // namespace tinylm
