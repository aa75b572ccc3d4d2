// SPDX-License-Identifier: MIT
#include "topics.hpp"

#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace replay {

topic_plan::topic_plan(const topic_rule& rule, std::int32_t first, std::int32_t end, std::uint64_t seed)
    : rule_(rule) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("planted topics: " + what);
  };
  require(rule.planted >= 1, "no chunk is planted");
  require(rule.drift >= 1 && rule.drift <= rule.planted, "the drift is not in [1, planted]");
  require(rule.topics >= 1, "there is no topic");
  require(first >= 0 && first <= end, "the candidates are no range");
  const std::int64_t needed = std::int64_t{rule.planted} + std::int64_t{rule.topics - 1} * rule.drift;
  require(needed <= end - first, std::to_string(needed) + " chunks are needed, " +
                                     std::to_string(end - first) + " of the prompt can be planted");
  const std::int32_t most = (rule.planted + rule.drift - 1) / rule.drift;
  require(most <= rule.chunk_entries, "a chunk would carry " + std::to_string(most) + " topics and has " +
                                          std::to_string(rule.chunk_entries) + " entries");

  order_.resize(static_cast<std::size_t>(end - first));
  std::iota(order_.begin(), order_.end(), first);
  // Not std::shuffle, whose result is the standard library's choice.
  std::mt19937_64 random(seed);
  for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
  places_.assign(static_cast<std::size_t>(end), -1);
  for (std::size_t i = 0; i < order_.size(); ++i)
    places_[static_cast<std::size_t>(order_[i])] = static_cast<std::int32_t>(i);
}

bool topic_plan::has(std::int32_t topic, std::int32_t chunk) const noexcept {
  if (chunk < 0 || chunk >= static_cast<std::int32_t>(places_.size())) return false;
  const std::int32_t place = places_[static_cast<std::size_t>(chunk)];
  return place >= topic * rule_.drift && place < topic * rule_.drift + rule_.planted && topic >= 0 &&
         topic < rule_.topics;
}

std::vector<std::int32_t> topic_plan::chunks_of(std::int32_t topic) const {
  const auto from = order_.begin() + std::ptrdiff_t{topic} * rule_.drift;
  return std::vector<std::int32_t>(from, from + rule_.planted);
}

}  // namespace replay
