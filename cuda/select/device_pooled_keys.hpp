// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/select/key_encoders.hpp"
#include "cuda/select/pooled_keys.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {

/// pooled_keys_indexer on the device. Sequences that are due are scored in groups, as many as scratch of bounded size has
/// room for.
class device_pooled_keys final : public library_indexer {
 public:
  /// \throws as pooled_keys_indexer's constructor
  explicit device_pooled_keys(const pooled_keys_config& config);

  std::unique_ptr<key_encoders> make_encoders(const memory_resource& memory) const override;
  void reserve(const device_indexer_capacity& capacity) override;
  std::size_t table_bytes(std::int32_t max_sequences) const noexcept override;
  status fill_table(const device_scoring& call, fault* error) noexcept override;
  status score(const device_scoring& call, stream_ref stream, fault* error) noexcept override;

 private:
  void upload_tables(const context& device);

  pooled_keys_config config_;
  pooled_problem problem_;
  std::int32_t group_ = 1;  ///< sequences at a time
  memory_block tables_, scratch_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
