// SPDX-License-Identifier: MIT
#include "src/train/start/start.hpp"

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <flashmemory/error.hpp>
#include <flashmemory/io/safetensors.hpp>

#include "src/core/format.hpp"
#include "src/train/learn/gemm.hpp"
#include "src/train/record/random.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

using detail::matrix;
using detail::vector;

constexpr std::int64_t dim = index_key_dim;

void check(const dual_encoder_config& c, const start_options& o) {
  const auto need = [](bool good, const char* field, auto value, const char* wanted) {
    if (good) return;
    throw argument_error(status::bad_argument,
                         formatted("start: {} is {}, expected {}", field, value, wanted));
  };
  validate(o.labels);
  validate(o.windows);
  validate(o.loss);
  need(c.hidden > 0, "hidden", c.hidden, "a positive number");
  need(c.rank > 0, "rank", c.rank, "a positive number");
  need(c.heads > 0, "heads", c.heads, "a positive number");
  need(o.kind == start_kind::random || c.heads % 2 == 0, "heads", c.heads,
       "an even number, for pairs of sign");
  need(std::isfinite(o.ridge) && o.ridge > 0, "ridge", o.ridge, "a number > 0");
  need(o.convex_steps >= 0, "convex_steps", o.convex_steps, "steps >= 0");
  need(std::isfinite(o.convex_rate) && o.convex_rate > 0, "convex_rate", o.convex_rate, "a number > 0");
  need(std::isfinite(o.noise) && o.noise >= 0, "noise", o.noise, "a number >= 0");
  need(o.windows_per_document > 0, "windows_per_document", o.windows_per_document, "a positive number");
  need(o.tokens_per_step > 0, "tokens_per_step", o.tokens_per_step, "a positive number");
}

std::vector<float> normals(detail::random_stream& random, std::int64_t count, double scale) {
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& v : out) v = static_cast<float>(random.normal() * scale);
  return out;
}

void randomise(const dual_encoder_config& c, std::uint64_t seed, std::uint64_t stream, bool keys,
               retriever_weights& w) {
  detail::random_stream random(seed, stream);
  const double by_hidden = 1 / std::sqrt(static_cast<double>(c.hidden));
  w.wq_a = normals(random, std::int64_t{c.rank} * c.hidden, by_hidden);
  w.q_norm.assign(static_cast<std::size_t>(c.rank), 1.0f);
  w.wq_b = normals(random, std::int64_t{c.heads} * dim * c.rank, 1 / std::sqrt(static_cast<double>(c.rank)));
  w.weights_proj = normals(random, std::int64_t{c.heads} * c.hidden, by_hidden);
  w.wk = keys ? normals(random, dim * c.hidden, by_hidden) : std::vector<float>();
  w.logit_offset = 0;
}

matrix read_matrix(const safetensors_file& file, const std::string& name, std::int64_t columns) {
  const tensor_entry* tensor = file.find(name);
  if (!tensor || tensor->shape.size() != 2 || tensor->shape[1] != columns) {
    throw format_error(status::bad_shape,
                       formatted("{}: no tensor '{}' of {} columns", file.name(), name, columns));
  }
  const std::vector<float> values = to_floats(file, *tensor);
  return Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(values.data(), tensor->shape[0],
                                                                         columns)
      .cast<double>();
}

// The ridge estimate of c with c . x about 1.
vector gate_of(const detail::moments& m) {
  matrix s = m.queries;
  s.diagonal().array() += 1e-3 * s.diagonal().mean();
  return s.ldlt().solve(m.query_mean);
}

struct factors {
  matrix query;  // [<= 128, hidden]
  matrix key;    // [<= 128, hidden]
};

// x^T left map right f in at most 128 dimensions.
factors factorise(const matrix& left, const matrix& map, const matrix& right) {
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(map, Eigen::ComputeThinU | Eigen::ComputeThinV);
  const auto rank = std::min<Eigen::Index>(dim, svd.singularValues().size());
  const vector root = svd.singularValues().head(rank).cwiseSqrt();
  factors f;
  f.query = root.asDiagonal() * svd.matrixU().leftCols(rank).transpose() * left;
  f.key = root.asDiagonal() * svd.matrixV().leftCols(rank).transpose() * right;
  return f;
}

factors from_attention(const start_options& o, const dual_encoder_config& c, std::size_t retriever) {
  if (o.heads.empty() || (o.heads.size() != 1 && o.heads.size() != c.retrievers.size())) {
    throw argument_error(status::bad_argument, formatted("start: {} attention heads for {} retrievers",
                                                         o.heads.size(), c.retrievers.size()));
  }
  const attention_head& head = o.heads[o.heads.size() == 1 ? 0 : retriever];
  const safetensors_file file(o.tensors);
  const matrix q = read_matrix(file, head.queries, c.hidden);
  const matrix k = read_matrix(file, head.keys, c.hidden);
  if (head.head_dim < 1 || head.head_dim > dim || head.head < 0 || head.kv_head < 0 ||
      (std::int64_t{head.head} + 1) * head.head_dim > q.rows() ||
      (std::int64_t{head.kv_head} + 1) * head.head_dim > k.rows()) {
    throw argument_error(status::out_of_range,
                         formatted("start: head {} / {} of {} values is not in '{}', '{}'", head.head,
                                   head.kv_head, head.head_dim, head.queries, head.keys));
  }
  return {q.middleRows(std::int64_t{head.head} * head.head_dim, head.head_dim),
          k.middleRows(std::int64_t{head.kv_head} * head.head_dim, head.head_dim)};
}

factors from_embeddings(const start_options& o, const dual_encoder_config& c, const detail::moments& m) {
  const matrix e = read_matrix(safetensors_file(o.tensors), o.embedding, c.hidden);
  const matrix centred = e.rowwise() - e.colwise().mean();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(centred.transpose() * centred);
  const auto rank = std::min<Eigen::Index>(dim, c.hidden);
  factors f;
  f.key = solver.eigenvectors().rightCols(rank).rowwise().reverse().transpose();  // largest variance first
  // Ridge regression of the needed key's code on the hidden state.
  matrix s = m.queries;
  s.diagonal().array() += o.ridge * s.diagonal().mean();
  f.query = (s.ldlt().solve(m.needed * f.key.transpose())).transpose();
  return f;
}

}  // namespace

namespace detail {

matrix inverse_root(const matrix& m, double ridge) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(m);
  vector values = solver.eigenvalues().cwiseMax(0);
  const double raise = ridge * values.mean();
  values = (values.array() + std::max(raise, 1e-30)).rsqrt();
  return solver.eigenvectors() * values.asDiagonal() * solver.eigenvectors().transpose();
}

void use_factors(const dual_encoder_config& c, const matrix& query, const matrix& key, const vector& gate,
                 double noise, std::uint64_t seed, retriever_weights& out) {
  random_stream random(seed, 0);
  const auto scaled = [](const matrix& m) {
    const double rms = std::sqrt(m.squaredNorm() / static_cast<double>(m.size()));
    return matrix(m * (rms > 0 ? 1.0 / 16 / rms : 1));
  };
  const matrix a = scaled(query);
  const matrix b = scaled(key);
  const Eigen::Index rank = c.rank;
  // [rank, hidden] and what is left for the heads, [128, rank].
  matrix first = matrix::Zero(rank, c.hidden);
  matrix second = matrix::Zero(dim, rank);
  if (rank == c.hidden) {
    first.setIdentity();
    second.topRows(a.rows()) = a;
  } else {
    const Eigen::Index used = std::min(rank, a.rows());
    first.topRows(used) = a.topRows(used);
    second.topLeftCorner(used, used).setIdentity();
  }
  const double deviation = std::sqrt(second.squaredNorm() / static_cast<double>(second.size()));
  const auto store = [](const matrix& m, std::vector<float>& to) {
    for (Eigen::Index i = 0; i < m.size(); ++i) to.push_back(static_cast<float>(m.data()[i]));
  };
  out.wq_a.clear();
  store(first, out.wq_a);
  out.q_norm.assign(static_cast<std::size_t>(rank), 1.0f);
  out.wq_b.clear();
  out.weights_proj.clear();
  for (std::int32_t h = 0; h < c.heads; ++h) {
    const double sign = h % 2 == 0 ? 1 : -1;
    matrix head = sign * second;
    for (Eigen::Index i = 0; i < head.size(); ++i) head.data()[i] += noise * deviation * random.normal();
    store(head, out.wq_b);
    const double scale = sign * std::sqrt(static_cast<double>(dim) * c.heads) / (0.5 * c.heads);
    for (Eigen::Index i = 0; i < c.hidden; ++i)
      out.weights_proj.push_back(static_cast<float>(scale * gate[i]));
  }
  matrix wk = matrix::Zero(dim, c.hidden);
  wk.topRows(b.rows()) = b;
  out.wk.clear();
  store(wk, out.wk);
  out.logit_offset = 0;
}

}  // namespace detail

dual_encoder_config start_indexer(const document_source& source, dual_encoder_config c,
                                  const start_options& o) {
  check(c, o);
  const detail::serial_blas one_thread;
  const std::int64_t tokens_per_chunk =
      std::int64_t{o.windows.entries_per_chunk} * o.windows.tokens_per_entry;
  const detail::model_taps taps(c, source.geometry(), tokens_per_chunk);
  for (std::size_t r = 0; r < c.retrievers.size(); ++r) {
    randomise(c, o.seed, r, taps.trains_keys, c.retrievers[r]);
  }
  detail::example_store examples(source, o.labels, o.windows, o.memory_budget,
                                 &source.geometry().keys[taps.stream.front()]);
  if (o.kind != start_kind::random) {
    if (!taps.trains_keys) {
      throw argument_error(status::unsupported, "start: only the random start fits keys of the model's own");
    }
    const std::vector<detail::moments> all = detail::collect_moments(source, c, taps, o, examples);
    const detail::encoder_shape shape = detail::shape_of(c, true);
    for (std::size_t r = 0; r < c.retrievers.size(); ++r) {
      factors f;
      if (o.kind == start_kind::bilinear) {
        const matrix left = detail::inverse_root(all[r].queries, o.ridge);
        const matrix right = detail::inverse_root(all[r].keys, o.ridge);
        matrix map = left * all[r].needed * right;
        if (o.convex_steps > 0) {
          detail::refine_bilinear(source, taps, r, shape, o, examples, left, right, map);
        }
        f = factorise(left, map, right);
      } else if (o.kind == start_kind::attention) {
        f = from_attention(o, c, r);
      } else {
        f = from_embeddings(o, c, all[r]);
      }
      detail::use_factors(c, f.query, f.key, gate_of(all[r]), o.noise, o.seed + r, c.retrievers[r]);
    }
  }
  detail::fit_scale(source, o, examples, c);
  return c;
}

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
