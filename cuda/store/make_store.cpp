// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "cuda/core/device_guard.hpp"
#include "cuda/store/device_tier.hpp"
#include "src/store/impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {

std::unique_ptr<tiered_chunk_store> make_store(const store_options& options, const context& device,
                                               const device_store_options& how,
                                               std::unique_ptr<backing_store> backing) {
  return detail::make_store(options, device, how, std::move(backing), nullptr, nullptr);
}

const context& context_of(const tiered_chunk_store& store) {
  const auto* device =
      static_cast<const context*>(flashmemory::detail::store_access::of(store).tier->device());
  if (device == nullptr)
    throw argument_error(status::unsupported, "the store was not made by cuda::make_store()");
  return *device;
}

slot_range slots_of(const tiered_chunk_store& store) noexcept {
  const auto& impl = flashmemory::detail::store_access::of(store);
  return {impl.slots.first_slab(), impl.chunk_bytes, impl.slots.first_slab_slots()};
}

namespace detail {

std::unique_ptr<tiered_chunk_store> make_store(
    const store_options& options, const context& device, const device_store_options& how,
    std::unique_ptr<backing_store> backing,
    std::unique_ptr<transfer> (*wrap)(std::unique_ptr<transfer>, void*), void* argument) {
  validate(options.geometry);
  auto tier = std::make_unique<device_tier>(options.geometry, device, how);
  const device_guard guard(device.ordinal);
  std::unique_ptr<transfer> copies = make_transfer(how);
  if (wrap) copies = wrap(std::move(copies), argument);
  tier->use(std::move(copies));
  return std::make_unique<tiered_chunk_store>(std::move(tier), options, std::move(backing));
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
