// SPDX-License-Identifier: MIT
#include "model.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <flashmemory/io/safetensors.hpp>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "kernels.hpp"

namespace tinylm {
namespace {

model_config load_config(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be opened", path));
  try {
    const auto json = nlohmann::json::parse(file);
    model_config c;
    c.layers = json.at("num_hidden_layers");
    c.hidden = json.at("hidden_size");
    c.intermediate = json.at("intermediate_size");
    c.heads = json.at("num_attention_heads");
    c.kv_heads = json.at("num_key_value_heads");
    c.head_dim = json.at("head_dim");
    c.vocabulary = json.at("vocab_size");
    c.max_positions = json.at("max_position_embeddings");
    c.rope_theta = json.at("rope_theta");
    c.norm_eps = json.at("rms_norm_eps");
    if (!json.at("tie_word_embeddings").get<bool>()) throw std::runtime_error("needs a tied embedding");
    for (const std::int32_t width : {c.hidden, c.intermediate, c.query_width(), c.kv_width(), c.head_dim}) {
      if (width <= 0 || width % row_granule != 0) {
        throw std::runtime_error(fmt::format("width {} is not a multiple of {}", width, row_granule));
      }
    }
    if (c.layers <= 0 || c.vocabulary <= 0 || c.max_positions <= 0 || c.heads % c.kv_heads != 0) {
      throw std::runtime_error("the extents do not make a model");
    }
    return c;
  } catch (const std::exception& e) {
    throw std::runtime_error(fmt::format("{}: {}", path, e.what()));
  }
}

/// Several matrices of the file, one below the other.
projection stack(const flashmemory::safetensors_file& file, std::initializer_list<std::string> names,
                 std::int64_t cols) {
  projection p;
  p.cols = cols;
  for (const auto& name : names) {
    const auto* tensor = file.find(name);
    const std::int64_t rows = tensor != nullptr && !tensor->shape.empty() ? tensor->shape[0] : 0;
    const auto& entry = file.require(name, {rows, cols});
    if (entry.type != flashmemory::tensor_type::bf16) {
      throw std::runtime_error(fmt::format("{}: {} is not BF16", file.name(), name));
    }
    const std::size_t at = p.narrow.size();
    p.narrow.resize(at + static_cast<std::size_t>(rows * cols));
    std::memcpy(p.narrow.data() + at, entry.data, entry.bytes);
    const auto floats = flashmemory::to_floats(file, entry);
    p.wide.insert(p.wide.end(), floats.begin(), floats.end());
    p.rows += rows;
  }
  return p;
}

void expect_rows(const projection& p, std::int64_t rows, const std::string& what) {
  if (p.rows != rows)
    throw std::runtime_error(fmt::format("{} has {} rows instead of {}", what, p.rows, rows));
}

}  // namespace

void model::rotate(float* head, std::int64_t position) const noexcept {
  const std::int64_t half = config.head_dim / 2;
  const float* cos = rope_cos.data() + position * half;
  const float* sin = rope_sin.data() + position * half;
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

model load_model(const std::string& folder) {
  model m;
  m.config = load_config(folder + "/config.json");
  const auto& c = m.config;
  const flashmemory::safetensors_file file(folder + "/model.safetensors");
  const auto vector = [&](const std::string& name) {
    return flashmemory::to_floats(file, file.require(name, {c.hidden}));
  };
  m.embedding = stack(file, {"model.embed_tokens.weight"}, c.hidden);
  expect_rows(m.embedding, c.vocabulary, "the embedding");
  m.final_norm = vector("model.norm.weight");
  for (std::int32_t l = 0; l < c.layers; ++l) {
    const std::string at = fmt::format("model.layers.{}.", l);
    layer_weights w;
    w.attention_norm = vector(at + "input_layernorm.weight");
    w.mlp_norm = vector(at + "post_attention_layernorm.weight");
    w.qkv = stack(
        file,
        {at + "self_attn.q_proj.weight", at + "self_attn.k_proj.weight", at + "self_attn.v_proj.weight"},
        c.hidden);
    w.output = stack(file, {at + "self_attn.o_proj.weight"}, c.query_width());
    w.gate_up = stack(file, {at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight"}, c.hidden);
    w.down = stack(file, {at + "mlp.down_proj.weight"}, c.intermediate);
    expect_rows(w.qkv, c.query_width() + 2 * c.kv_width(), at + "self_attn");
    expect_rows(w.output, c.hidden, at + "self_attn.o_proj");
    expect_rows(w.gate_up, 2 * c.intermediate, at + "mlp");
    expect_rows(w.down, c.hidden, at + "mlp.down_proj");
    m.layers.push_back(std::move(w));
  }

  const std::int64_t half = c.head_dim / 2;
  m.rope_cos.resize(static_cast<std::size_t>(c.max_positions * half));
  m.rope_sin.resize(m.rope_cos.size());
  for (std::int64_t i = 0; i < half; ++i) {
    // In float, step by step as the model was trained: at large positions double would be another rotation.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.head_dim);
    const float frequency = 1.0f / std::pow(static_cast<float>(c.rope_theta), exponent);
    for (std::int64_t p = 0; p < c.max_positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      m.rope_cos[static_cast<std::size_t>(p * half + i)] = std::cos(angle);
      m.rope_sin[static_cast<std::size_t>(p * half + i)] = std::sin(angle);
    }
  }
  return m;
}

}  // namespace tinylm
