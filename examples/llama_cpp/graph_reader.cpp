// SPDX-License-Identifier: MIT
#include "graph_reader.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace llama_flashmemory {

namespace fm = flashmemory;

namespace {

[[noreturn]] void refuse(const std::string& tensor, const std::string& reason) {
  throw fm::error(fm::status::unsupported, "tensor '" + tensor + "': " + reason);
}

std::int64_t row_at(const ggml_tensor* cells, std::int64_t i) {
  const char* const at = static_cast<const char*>(cells->data) + i * static_cast<std::int64_t>(cells->nb[0]);
  if (cells->type == GGML_TYPE_I64) {
    std::int64_t cell = 0;
    std::memcpy(&cell, at, sizeof cell);
    return cell;
  }
  std::int32_t cell = 0;
  std::memcpy(&cell, at, sizeof cell);
  return cell;
}

}  // namespace

fm::dtype element_type(ggml_type type, const char* what) {
  if (type == GGML_TYPE_F16) return fm::dtype::f16;
  if (type == GGML_TYPE_BF16) return fm::dtype::bf16;
  if (type == GGML_TYPE_F32) return fm::dtype::f32;
  refuse(what, std::string("is ") + ggml_type_name(type) +
                   "; ask llama.cpp for f16, bf16 or f32 (type_k, type_v): its cache is small here, the "
                   "store is what holds the context");
}

graph_reader::graph_reader(std::int32_t layers)
    : keys_(static_cast<std::size_t>(layers)), values_(static_cast<std::size_t>(layers)) {}

void graph_reader::begin() noexcept {
  std::fill(keys_.begin(), keys_.end(), nullptr);
  std::fill(values_.begin(), values_.end(), nullptr);
}

void graph_reader::note(const ggml_tensor* node) {
  if (node->op != GGML_OP_SET_ROWS || node->src[2] == nullptr) return;
  const graph_name name = read_name(node->src[2]->name);
  if (name.role != graph_role::key_cache && name.role != graph_role::value_cache) return;
  auto& place = name.role == graph_role::key_cache ? keys_ : values_;
  if (static_cast<std::size_t>(name.layer) >= place.size())
    refuse(node->src[2]->name, "the model has only " + std::to_string(place.size()) + " layers");
  place[static_cast<std::size_t>(name.layer)] = node;
}

fm::const_tensor<3> graph_reader::rows(const ggml_tensor* written, const char* cache, std::int32_t layer,
                                       std::int64_t heads, std::int64_t tokens,
                                       std::vector<std::byte>& gathered) {
  const std::string name = cache + std::to_string(layer);
  if (written == nullptr) refuse(name, "is missing: nothing of this pass was written there");
  const ggml_tensor* const cells = written->src[1];
  if (cells->type != GGML_TYPE_I64 && cells->type != GGML_TYPE_I32)
    refuse(name, "its rows are not told by integers");
  if (cells->ne[0] != tokens)
    refuse(name, "got " + std::to_string(cells->ne[0]) + " rows in a pass of " + std::to_string(tokens) +
                     " tokens (is flash attention off?)");
  const fm::dtype type = element_type(written->type, name.c_str());
  if (written->ne[0] % heads != 0)
    refuse(name, "its rows do not fall into " + std::to_string(heads) + " heads");
  const auto* const data = static_cast<const std::byte*>(written->data);
  const std::size_t bytes = static_cast<std::size_t>(written->ne[0]) * fm::size_of(type);
  const std::int64_t first = row_at(cells, 0);
  bool in_a_row = true;
  for (std::int64_t i = 1; i < tokens && in_a_row; ++i) in_a_row = row_at(cells, i) == first + i;
  fm::const_tensor<3> out(data + static_cast<std::size_t>(first) * written->nb[1], type, tokens, heads,
                          written->ne[0] / heads);
  out.stride[0] = static_cast<std::int64_t>(written->nb[1] / fm::size_of(type));
  if (in_a_row) return out;
  // A ring that has come round, or holes: the store wants one stride.
  gathered.resize(std::max(gathered.size(), static_cast<std::size_t>(tokens) * bytes));
  for (std::int64_t i = 0; i < tokens; ++i)
    std::memcpy(gathered.data() + static_cast<std::size_t>(i) * bytes,
                data + static_cast<std::size_t>(row_at(cells, i)) * written->nb[1], bytes);
  return fm::const_tensor<3>(gathered.data(), type, tokens, heads, written->ne[0] / heads);
}

attention_node graph_reader::read(const ggml_tensor* output, std::int32_t layer) {
  const ggml_tensor* const attention = output->view_src != nullptr ? output->view_src : output;
  if (attention->op != GGML_OP_FLASH_ATTN_EXT)
    refuse(output->name, std::string("comes from ") + ggml_op_name(attention->op) +
                             ", not from flash attention, which the adapter asks for");
  const ggml_tensor* const q =
      attention->src[0];  // [dim, tokens, heads]: still whole, nothing was computed since
  const ggml_tensor* const k = attention->src[1];
  if (q->ne[3] != 1 || k->ne[3] != 1)
    refuse(output->name, "sequences lie in streams of their own; the adapter asks for one (kv_unified)");
  if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float))
    refuse(output->name, "its queries are not rows of f32");
  float constants[3];  // scale, max_bias, soft cap, as ggml_flash_attn_ext() lays them down
  std::memcpy(constants, attention->op_params, sizeof constants);
  if (constants[1] != 0)
    refuse(output->name, "its logits carry ALiBi's bias, which the adapter does not add");

  attention_node node;
  const std::int64_t tokens = q->ne[1], heads = q->ne[2];
  node.q = fm::const_tensor<3>(q->data, fm::dtype::f32, tokens, heads, q->ne[0]);
  node.q.stride[0] = static_cast<std::int64_t>(q->nb[1] / sizeof(float));
  node.q.stride[1] = static_cast<std::int64_t>(q->nb[2] / sizeof(float));
  const auto at = static_cast<std::size_t>(layer);
  if (at >= keys_.size())
    refuse(output->name, "the model has only " + std::to_string(keys_.size()) + " layers");
  node.k = rows(keys_[at], "cache_k_l", layer, k->ne[2], tokens, gathered_keys_);
  node.v = rows(values_[at], "cache_v_l", layer, k->ne[2], tokens, gathered_values_);
  if (node.k.shape[2] != q->ne[0]) refuse(output->name, "queries and keys differ in length");
  if (output->type != GGML_TYPE_F32 || output->ne[0] != heads * node.v.shape[2] || output->ne[1] != tokens)
    refuse(output->name, "is not one f32 row a token");
  node.out = fm::tensor<3>(output->data, fm::dtype::f32, tokens, heads, node.v.shape[2]);
  node.scale = constants[0];
  node.soft_cap = constants[2];
  if (const ggml_tensor* const sinks = attention->src[4])
    node.sinks = fm::view<const float, 1>(static_cast<const float*>(sinks->data), sinks->ne[0]);
  node.mask = attention->src[3];
  return node;
}

}  // namespace llama_flashmemory
