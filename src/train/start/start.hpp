// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <flashmemory/train/start/start.hpp>

#include "src/train/learn/examples.hpp"
#include "src/train/learn/model.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace detail {

using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using vector = Eigen::VectorXd;

/// Second moments of what one retriever reads, over the training documents.
struct moments {
  matrix queries;     ///< E[x x^T]
  vector query_mean;  ///< E[x]
  matrix keys;        ///< E[(f - mean of the document)(...)^T]
  matrix needed;  ///< of pairs of a query and a key that it needed, weighed by the label: E[x (f - mean)^T]
  double pairs = 0;  ///< sum of those weights
};

/// \throws argument_error if nothing is needed anywhere
std::vector<moments> collect_moments(const document_source& source, const dual_encoder_config& architecture,
                                     const model_taps& taps, const start_options& options,
                                     example_store& examples);

/// m^-1/2 of a symmetric positive semi-definite matrix whose eigenvalues are raised by ridge * their mean.
matrix inverse_root(const matrix& m, double ridge);

/// Improves z = (left x)^T map (right f) by gradient steps on `map` alone, chunk = max over its keys. Convex but
/// for that maximum: no factors, hence no saddle.
void refine_bilinear(const document_source& source, const model_taps& taps, std::size_t retriever,
                     const encoder_shape& shape, const start_options& options, example_store& examples,
                     const matrix& left, const matrix& right, matrix& map);

/// Fills a retriever whose score is x^T query^T key f, from factors with at most 128 rows each.
/// \param gate  c with c . x about 1
void use_factors(const dual_encoder_config& architecture, const matrix& query, const matrix& key,
                 const vector& gate, double noise, std::uint64_t seed, retriever_weights& out);

/// Fits gates and offset by logistic regression over some training documents.
void fit_scale(const document_source& source, const start_options& options, example_store& examples,
               dual_encoder_config& config);

}  // namespace detail
}  // namespace train
}  // namespace v0
}  // namespace flashmemory
