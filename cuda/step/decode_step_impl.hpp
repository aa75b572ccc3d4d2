// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/cuda/decode_step.hpp>
#include <memory>
#include <vector>

#include "cuda/core/append_target.hpp"
#include "cuda/core/blocks.hpp"
#include "cuda/select/device_level1.hpp"
#include "cuda/step/table_words.hpp"
#include "src/select/selector_impl.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

namespace detail {

inline constexpr std::int64_t append_target_words = 2;
static_assert(sizeof(append_target) == 16 && offsetof(append_target, entry) == 8 &&
                  offsetof(append_target, row) == 12,
              "targets are written word by word");

}  // namespace detail

/// Words of the tables: those of chunk_tables, then per row its place and its position, then the targets of entries and
/// of index keys.
struct decode_step::impl {
  impl(tiered_chunk_store& store, selector* select, const decode_step_options& options);

  tiered_chunk_store& store;
  selector* select;
  detail::device_level1* level1;  ///< of the selector, or null
  const context& device;
  decode_step_options options;
  kv_geometry geometry;
  chunk_layout layout;
  std::int32_t entries_per_row, index_keys_per_row;
  std::int64_t first_word, targets_at, key_targets_at;

  std::unique_ptr<chunk_tables> tables;
  detail::table_words* words = nullptr;
  attend_plan plan;
  detail::memory_block scratch, counters, nan_keys;
  std::vector<batch_item> live;          ///< of the open step
  std::vector<std::uint8_t> observed;    ///< [kinds of taps, layers]: observed in the steps
  std::vector<std::uint8_t> keys_given;  ///< per lane: append_index_keys() is part of the steps
  bool open = false;
  fault last_fault;

  const std::int64_t* device_places() const noexcept {
    return reinterpret_cast<const std::int64_t*>(words->device() + first_word);
  }
  const std::int64_t* device_positions() const noexcept { return device_places() + options.rows; }
  const append_target* device_targets() const noexcept {
    return reinterpret_cast<const append_target*>(words->device() + targets_at);
  }
  const append_target* device_key_targets(std::int32_t lane) const noexcept {
    return reinterpret_cast<const append_target*>(words->device() + key_targets_at) +
           std::int64_t{lane} * options.rows * index_keys_per_row;
  }

  unsigned long long* nan_counter() const noexcept {
    return level1 != nullptr ? level1->nan_counter() : nan_keys.as<unsigned long long>();
  }
  /// Whether the steps write index keys: 0 none, 1 of all lanes, -1 of some.
  int brings_index_keys() const noexcept;
  status check_items(batch items) noexcept;
  void set_row_words(std::int64_t row, std::int64_t place, std::int64_t position) noexcept;
  void set_target(std::int64_t at, const std::byte* chunk, std::int64_t entry, std::int64_t row) noexcept;
  void set_entry_targets(std::int64_t row, const batch_item* item, const resident_set& set) noexcept;
  void set_key_targets(std::int64_t row, const batch_item* item) noexcept;
  void advance(flashmemory::detail::served_sequence& s, const batch_item& item) const noexcept;
  status check_layer(std::int32_t layer, stream_ref stream) noexcept;
  status observe(std::int32_t layer, tap_kind kind, const char* name, const_tensor<3> rows,
                 stream_ref stream) noexcept;

  /// Of one call: what it finds wrong is told to the store, the one place to look; a call that finds nothing leaves
  /// last_fault as it was.
  class noted {
   public:
    explicit noted(impl& im) noexcept : im_(im), before_(im.last_fault) { im.last_fault = fault{}; }
    noted(const noted&) = delete;
    noted& operator=(const noted&) = delete;
    ~noted() {
      if (im_.last_fault.code == status::ok)
        im_.last_fault = before_;
      else
        im_.store.note(im_.last_fault);
    }

   private:
    impl& im_;
    fault before_;
  };
};

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
