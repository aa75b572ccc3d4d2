// SPDX-License-Identifier: MIT
#include "caches.hpp"

namespace replay {

namespace fm = flashmemory;
namespace v4 = fm::cuda::deepseek_v4;

namespace {
constexpr std::int64_t dim = v4::entry_dim;
constexpr std::int32_t hca_page = 64;
}  // namespace

std::int32_t engine_caches::hca_pages(std::int64_t max_tokens) noexcept {
  return static_cast<std::int32_t>((max_tokens / model::hca_tokens + hca_page - 1) / hca_page);
}

std::size_t engine_caches::bytes_per_row(std::int64_t max_tokens) noexcept {
  const std::int64_t pages = hca_pages(max_tokens);
  const std::int64_t bytes = model::layers * v4::page_bytes(model::window) +
                             model::hca_layers * pages * v4::page_bytes(hca_page) +
                             (model::window + pages * hca_page + model::layers + model::hca_layers + 1) * 4;
  return static_cast<std::size_t>(bytes);
}

std::size_t engine_caches::bytes_per_row() const noexcept { return bytes_per_row(max_tokens_); }

engine_caches::engine_caches(std::int32_t rows, std::int64_t max_tokens)
    : rows_(rows), max_tokens_(max_tokens), hca_capacity_(hca_pages(max_tokens) * hca_page) {
  const std::int64_t all_rows = rows;
  window_pages_ =
      device_array<std::byte>(std::size_t(model::layers * all_rows * v4::page_bytes(model::window)));
  hca_pages_ = device_array<std::byte>(
      std::size_t(model::hca_layers * all_rows * (hca_capacity_ / hca_page) * v4::page_bytes(hca_page)));
  window_list_ = device_array<std::int32_t>(std::size_t(all_rows * model::window));
  hca_list_ = device_array<std::int32_t>(std::size_t(all_rows * hca_capacity_));
  window_places_ = device_array<std::int32_t>(std::size_t(model::layers * all_rows));
  hca_places_ = device_array<std::int32_t>(std::size_t(model::hca_layers * all_rows));
  hca_counts_ = device_array<std::int32_t>(std::size_t(rows));
  entries_ = device_array<bfloat16>(std::size_t((model::layers + model::hca_layers) * all_rows * dim));
}

v4::page_pool engine_caches::window_pool() const noexcept {
  v4::page_pool pool;
  pool.pages = window_pages_.data();
  pool.page_stride = v4::page_bytes(model::window);
  pool.num_pages = std::int64_t{model::layers} * rows_;
  pool.entries_per_page = model::window;
  return pool;
}

v4::page_pool engine_caches::hca_pool() const noexcept {
  v4::page_pool pool;
  pool.pages = hca_pages_.data();
  pool.page_stride = v4::page_bytes(hca_page);
  pool.num_pages = std::int64_t{model::hca_layers} * rows_ * (hca_capacity_ / hca_page);
  pool.entries_per_page = hca_page;
  return pool;
}

void engine_caches::fill(std::uint64_t seed, const device_stream& stream) {
  constexpr std::int64_t at_once = 65536;
  const device_array<bfloat16> values(std::size_t(at_once * dim));
  const device_array<std::int32_t> places{std::size_t(at_once)};
  const auto fill_pool = [&](const v4::page_pool& pool) {
    const std::int64_t count = pool.num_pages * pool.entries_per_page;
    for (std::int64_t first = 0; first < count; first += at_once) {
      const std::int64_t n = std::min(at_once, count - first);
      fill_noise(values.data(), n * dim, seed + std::uint64_t(first), stream.get());
      fill_iota(places.data(), n, static_cast<std::int32_t>(first), stream.get());
      must(v4::append_entries(pool, fm::const_tensor<2>(values.data(), fm::dtype::bf16, n, dim),
                              fm::view<const std::int32_t, 1>(places.data(), n), stream.ref()),
           "append_entries");
    }
    seed += 0x1000000000u;
  };
  fill_pool(window_pool());
  fill_pool(hca_pool());
  fill_iota(window_list_.data(), std::int64_t{rows_} * model::window, 0, stream.get());
  fill_iota(hca_list_.data(), std::int64_t{rows_} * hca_capacity_, 0, stream.get());
  must(cudaMemsetAsync(hca_counts_.data(), 0, hca_counts_.bytes(), stream.get()));
  stream.wait();
}

void engine_caches::make_entries(std::uint64_t seed, const device_stream& stream) {
  fill_noise(entries_.data(), std::int64_t(entries_.size()), seed, stream.get());
}

void engine_caches::append(const std::int64_t* positions, const device_stream& stream) {
  place_step({window_places_.data(), hca_places_.data(), hca_counts_.data()}, positions, rows_, hca_capacity_,
             stream.get());
  const std::int64_t windows = std::int64_t{model::layers} * rows_,
                     hcas = std::int64_t{model::hca_layers} * rows_;
  must(v4::append_entries(window_pool(), fm::const_tensor<2>(entries_.data(), fm::dtype::bf16, windows, dim),
                          fm::view<const std::int32_t, 1>(window_places_.data(), windows), stream.ref()),
       "append to the windows");
  must(v4::append_entries(hca_pool(),
                          fm::const_tensor<2>(entries_.data() + windows * dim, fm::dtype::bf16, hcas, dim),
                          fm::view<const std::int32_t, 1>(hca_places_.data(), hcas), stream.ref()),
       "append to the HCA caches");
}

v4::entry_source engine_caches::window(std::int32_t layer) const noexcept {
  v4::entry_source s;
  s.pool = window_pool();
  s.pool.pages += std::int64_t{layer} * rows_ * s.pool.page_stride;
  s.pool.num_pages = rows_;
  s.entries = fm::view<const std::int32_t, 2>(window_list_.data(), rows_, model::window);
  return s;
}

v4::entry_source engine_caches::hca(std::int32_t index) const noexcept {
  v4::entry_source s;
  s.pool = hca_pool();
  s.pool.num_pages /= model::hca_layers;
  s.pool.pages += index * s.pool.num_pages * s.pool.page_stride;
  s.entries = fm::view<const std::int32_t, 2>(hca_list_.data(), rows_, hca_capacity_);
  s.counts = fm::view<const std::int32_t, 1>(hca_counts_.data(), rows_);
  return s;
}

}  // namespace replay
