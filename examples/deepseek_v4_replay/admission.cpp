// SPDX-License-Identifier: MIT
#include "admission.hpp"

#include <flashmemory/cuda/store.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/store/backing_store.hpp>

namespace replay {

namespace fm = flashmemory;

namespace {

/// Keeps nothing. Only for sequences that stay empty.
class no_backing final : public fm::backing_store {
 public:
  fm::status write(std::int64_t, std::size_t, const void*, std::size_t, int* os_error) noexcept override {
    *os_error = 0;
    return fm::status::io_error;
  }
  fm::status read(std::int64_t, std::size_t, void*, std::size_t, int* os_error) const noexcept override {
    *os_error = 0;
    return fm::status::io_error;
  }
  bool needs_verification() const noexcept override { return false; }
};

/// Whether a store of `fast_bytes` admits `count` sequences.
bool admits(const engine_options& options, std::size_t fast_bytes, std::int64_t count) {
  fm::store_options s;
  s.geometry = store_geometry(options);
  s.fast_bytes = fast_bytes;
  s.backing_bytes = std::size_t(count * s.geometry.chunks_for(options.context)) *
                    fm::chunk_layout(s.geometry).chunk_bytes();
  s.max_sequences = static_cast<std::int32_t>(count);
  try {
    const auto store = fm::cuda::make_store(s, {}, {}, std::make_unique<no_backing>());
    for (std::int64_t i = 0; i < count; ++i) store->open(sequence_options_of(options));
    return true;
  } catch (const fm::admission_error&) {
    return false;
  }
}

}  // namespace

std::int64_t admitted_sequences(const engine_options& options, const device_bytes& bytes,
                                std::size_t gpu_bytes) {
  const std::size_t beside = bytes.caches + bytes.scratch;
  const auto fits = [&](std::int64_t count) {
    const std::size_t engine = bytes.level1 + beside * std::size_t(count);
    return engine < gpu_bytes && admits(options, gpu_bytes - engine, count);
  };
  if (bytes.fixed() >= gpu_bytes) return 0;
  // From what they should take; the store has the last word.
  auto count = static_cast<std::int64_t>((gpu_bytes - bytes.fixed()) / bytes.per_sequence());
  while (count > 0 && !fits(count)) --count;
  while (fits(count + 1)) ++count;
  return count;
}

}  // namespace replay
