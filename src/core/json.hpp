// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/config.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flashmemory {
inline namespace v0 {

// nlohmann's parser and writer, which every file that calls them compiles anew. Here one file does.

/// \throws nlohmann::json::exception
FLASHMEMORY_API nlohmann::json parse_json(std::string_view text);

/// Discarded where the text is not JSON.
FLASHMEMORY_API nlohmann::json json_or_discarded(std::string_view text);

/// On one line. \throws nlohmann::json::exception for text that is not UTF-8, where that is an error
FLASHMEMORY_API std::string json_text(
    const nlohmann::json& value,
    nlohmann::json::error_handler_t not_utf8 = nlohmann::json::error_handler_t::strict);
FLASHMEMORY_API std::string json_text(const nlohmann::ordered_json& value);

}  // namespace v0
}  // namespace flashmemory
