// SPDX-License-Identifier: MIT
#include <flashmemory/memory.hpp>
#include <new>

namespace flashmemory {
inline namespace v0 {

memory_resource default_memory() noexcept {
  memory_resource memory;
  memory.allocate = [](void*, std::size_t bytes, std::size_t alignment) {
    return ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
  };
  memory.deallocate = [](void*, void* pointer, std::size_t, std::size_t alignment) {
    ::operator delete(pointer, std::align_val_t(alignment));
  };
  return memory;
}

}  // namespace v0
}  // namespace flashmemory
