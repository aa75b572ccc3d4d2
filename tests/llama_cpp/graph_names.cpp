// SPDX-License-Identifier: MIT
#include "graph_names.hpp"

#include "tests/catch.hpp"

using namespace llama_flashmemory;

TEST_CASE("the names of the tensors that the adapter reads say what they are and of which layer",
          "[llama_cpp]") {
  struct {
    const char* name;
    graph_role role;
    int layer;
  } const cases[] = {{"attn_norm-0", graph_role::attention_input, 0},
                     {"kqv_out-29", graph_role::attention_output, 29},
                     {"cache_k_l7", graph_role::key_cache, 7},
                     {"cache_v_l17", graph_role::value_cache, 17},
                     {"cache_k_l7 (reshaped)", graph_role::key_cache, 7},
                     {"kqv_out-2 (view)", graph_role::attention_output, 2}};
  for (const auto& c : cases) {
    CAPTURE(c.name);
    CHECK(read_name(c.name).role == c.role);
    CHECK(read_name(c.name).layer == c.layer);
  }
}

TEST_CASE("a name that only begins like one of them is none", "[llama_cpp]") {
  for (const char* name :
       {"", "attn_norm", "attn_norm-", "attn_norm-x", "attn_norm-3b", "kqv_out--1", "cache_k_l",
        "cache_k_l99999999999", "my_attn_norm-3", "cache_kv_l3", "attn_norm_2-3", "kqv-3"}) {
    CAPTURE(name);
    CHECK(read_name(name).role == graph_role::none);
    CHECK(read_name(name).layer == -1);
  }
}
