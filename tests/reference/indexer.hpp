// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <limits>
#include <vector>

/// The dual encoder in double precision, one loop per line of the formula; rounds where the formula rounds.
namespace flashmemory::reference {

inline double e4m3_value(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

/// By search over all finite values: the nearest, the even one of two.
inline std::uint8_t e4m3_nearest(double value) {
  if (std::isnan(value)) return 0x7f;
  std::uint8_t best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double error = std::fabs(e4m3_value(static_cast<std::uint8_t>(code)) - std::fabs(value));
    const double best_error = std::fabs(e4m3_value(best) - std::fabs(value));
    if (error < best_error || (error == best_error && code % 2 == 0)) best = static_cast<std::uint8_t>(code);
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

/// To 8 significant bits, ties to even (normal range only).
inline double bf16(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent;
  const double fraction = std::frexp(static_cast<double>(static_cast<float>(value)), &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

inline std::vector<double> hadamard(const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = 0; j < x.size(); ++j) y[i] += std::popcount(i & j) % 2 ? -x[j] : x[j];
    y[i] /= std::sqrt(static_cast<double>(x.size()));
  }
  return y;
}

inline std::vector<double> multiply(const std::vector<float>& matrix, const std::vector<double>& x) {
  std::vector<double> y(matrix.size() / x.size());
  for (std::size_t r = 0; r < y.size(); ++r) {
    for (std::size_t c = 0; c < x.size(); ++c) y[r] += static_cast<double>(matrix[r * x.size() + c]) * x[c];
  }
  return y;
}

/// The formula without any rounding.
inline double yarn_frequency(const rope_options& o, int i) {
  const double pi = std::acos(-1.0);
  const auto c = [&](double n) {
    return 64 * std::log(static_cast<double>(o.original_length) / (2 * pi * n)) / (2 * std::log(o.base));
  };
  const double low = std::max(std::floor(c(o.beta_fast)), 0.0);
  const double high = std::min(std::ceil(c(o.beta_slow)), 31.0);
  const double f = std::pow(o.base, -2.0 * i / 64);
  const double ramp = i < low ? 0 : i >= high ? 1 : (i - low) / (high - low);
  return f * (1 - ramp) + f / o.factor * ramp;
}

/// The same frequency where every step is rounded to float, as the published scorer's table is made. The
/// double result of a product, quotient or sum of floats rounds to the float result.
inline float yarn_frequency_float(const rope_options& o, int i) {
  const double pi = std::acos(-1.0);
  const auto c = [&](double n) {
    return 64 * std::log(static_cast<double>(o.original_length) / (2 * pi * n)) / (2 * std::log(o.base));
  };
  const double low = std::max(std::floor(c(o.beta_fast)), 0.0);
  const double high = std::min(std::ceil(c(o.beta_slow)), 31.0);
  const auto rounded = [](double v) { return static_cast<double>(static_cast<float>(v)); };
  const double f = rounded(1 / rounded(std::pow(o.base, 2.0 * i / 64)));
  const double ramp = i < low ? 0 : i >= high ? 1 : rounded((i - low) / (high - low));
  const double kept = rounded(1 - ramp);
  const double stretched = rounded(rounded(f / o.factor) * rounded(1 - kept));
  return static_cast<float>(stretched + rounded(f * kept));
}

struct encoded_query {
  std::vector<std::vector<double>> heads;  // [heads][128]
  std::vector<double> gates;
};

inline encoded_query encode_query(const dual_encoder_config& c, const retriever_weights& w,
                                  const std::vector<float>& hidden, std::int64_t position) {
  const std::vector<double> x(hidden.begin(), hidden.end());
  std::vector<double> a = multiply(w.wq_a, x);
  double mean = 0;
  for (const double v : a) mean += v * v / static_cast<double>(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = a[i] / std::sqrt(mean + static_cast<double>(c.q_norm_eps)) * static_cast<double>(w.q_norm[i]);
  }
  const std::vector<double> flat = multiply(w.wq_b, a);
  const auto round = [&](double v) { return c.bf16_rounding ? bf16(v) : v; };
  encoded_query out;
  for (std::int32_t h = 0; h < c.heads; ++h) {
    std::vector<double> q(flat.begin() + h * 128, flat.begin() + (h + 1) * 128);
    for (double& v : q) v = round(v);
    if (c.rope.dim == 64) {
      const auto p = static_cast<float>(std::min(position, c.rope.max_positions - 1));
      for (int i = 0; i < 32; ++i) {
        const float angle = p * yarn_frequency_float(c.rope, i);
        const double cosine = std::cos(static_cast<double>(angle));
        const double sine = std::sin(static_cast<double>(angle));
        double& u = q[static_cast<std::size_t>(64 + 2 * i)];
        double& v = q[static_cast<std::size_t>(65 + 2 * i)];
        const double turned = u * cosine - v * sine;
        v = round(u * sine + v * cosine);
        u = round(turned);
      }
    }
    out.heads.push_back(hadamard(q));
  }
  out.gates = multiply(w.weights_proj, x);
  for (double& g : out.gates) g /= std::sqrt(128.0) * std::sqrt(static_cast<double>(c.heads));
  return out;
}

/// \param key 128 e4m3 bytes and the scale
inline double key_logit(const encoded_query& q, const std::byte* key, double offset) {
  float scale;
  std::memcpy(&scale, key + 128, sizeof scale);
  double logit = 0;
  for (std::size_t h = 0; h < q.heads.size(); ++h) {
    double dot = 0;
    for (std::size_t d = 0; d < 128; ++d) {
      dot += q.heads[h][d] * e4m3_value(static_cast<std::uint8_t>(key[d])) * static_cast<double>(scale);
    }
    logit += q.gates[h] * (dot < 0 ? 0 : dot);
  }
  return logit + offset;
}

/// One key before it is quantised: wk of the window's mean, transformed.
inline std::vector<double> key_vector(const std::vector<float>& wk, const float* rows, std::int32_t window,
                                      std::int64_t width) {
  std::vector<double> mean(static_cast<std::size_t>(width));
  for (std::int32_t w = 0; w < window; ++w) {
    for (std::size_t i = 0; i < mean.size(); ++i) {
      mean[i] += static_cast<double>(rows[w * width + static_cast<std::int64_t>(i)]) / window;
    }
  }
  return hadamard(multiply(wk, mean));
}

inline double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

inline double combine(ensemble how, const std::vector<double>& logits) {
  double largest = logits[0];
  long double yes = 0;
  long double no = 0;
  for (const double z : logits) {
    largest = std::max(largest, z);
    yes += 1 / (1 + std::exp(-static_cast<long double>(z)));
    no += 1 / (1 + std::exp(static_cast<long double>(z)));
  }
  return how == ensemble::max ? largest : static_cast<double>(std::log(yes / no));
}

}  // namespace flashmemory::reference
