// SPDX-License-Identifier: MIT
#include "src/core/json.hpp"

namespace flashmemory {
inline namespace v0 {

nlohmann::json parse_json(std::string_view text) { return nlohmann::json::parse(text); }

nlohmann::json json_or_discarded(std::string_view text) {
  return nlohmann::json::parse(text, nullptr, false);
}

std::string json_text(const nlohmann::json& value, nlohmann::json::error_handler_t not_utf8) {
  return value.dump(-1, ' ', false, not_utf8);
}

std::string json_text(const nlohmann::ordered_json& value) { return value.dump(); }

}  // namespace v0
}  // namespace flashmemory
