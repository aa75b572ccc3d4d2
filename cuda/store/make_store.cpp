// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "cuda/core/device_guard.hpp"
#include "cuda/store/device_tier.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

std::unique_ptr<tiered_chunk_store> make_store(const store_options& options, const device_options& device) {
  return detail::make_store(options, device, nullptr, nullptr, nullptr);
}

std::unique_ptr<tiered_chunk_store> make_store(const store_options& options, const device_options& device,
                                               std::unique_ptr<backing_store> backing) {
  if (!backing) throw argument_error(status::null_data, "cuda::make_store: the backing store is null");
  return detail::make_store(options, device, std::move(backing), nullptr, nullptr);
}

slot_range slots_of(const tiered_chunk_store& store) noexcept {
  const auto& impl = flashmemory::detail::store_access::of(store);
  return {impl.slots.first_slab(), impl.chunk_bytes, impl.slots.first_slab_slots()};
}

namespace detail {

std::unique_ptr<tiered_chunk_store> make_store(
    const store_options& options, const device_options& device, std::unique_ptr<backing_store> backing,
    std::unique_ptr<transfer> (*wrap)(std::unique_ptr<transfer>, void*), void* context) {
  validate(options.geometry);
  auto tier = std::make_unique<device_tier>(options.geometry, device);
  const device_guard guard(device.device);
  std::unique_ptr<transfer> copies = make_transfer(device);
  if (wrap) copies = wrap(std::move(copies), context);
  tier->use(std::move(copies));
  return std::make_unique<tiered_chunk_store>(std::move(tier), options, std::move(backing));
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
