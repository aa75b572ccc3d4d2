// SPDX-License-Identifier: MIT
#include "graph_names.hpp"

#include <charconv>

namespace llama_flashmemory {

graph_name read_name(std::string_view name) noexcept {
  struct known {
    std::string_view prefix;
    graph_role role;
  };
  constexpr known names[] = {{"attn_norm-", graph_role::attention_input},
                             {"kqv_out-", graph_role::attention_output},
                             {"cache_k_l", graph_role::key_cache},
                             {"cache_v_l", graph_role::value_cache}};
  for (const known& k : names) {
    if (name.substr(0, k.prefix.size()) != k.prefix) continue;
    const char* const first = name.data() + k.prefix.size();
    const char* const last = name.data() + name.size();
    graph_name read;
    const auto [end, fault] = std::from_chars(first, last, read.layer);
    const std::string_view rest(end, static_cast<std::size_t>(last - end));
    if (fault != std::errc() || read.layer < 0 || !(rest.empty() || rest.substr(0, 2) == " (")) return {};
    read.role = k.role;
    return read;
  }
  return {};
}

}  // namespace llama_flashmemory
