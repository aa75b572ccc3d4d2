// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/c/flashmemory.h>

#include <atomic>
#include <cstdint>

#include "src/c/faults.hpp"

namespace flashmemory {
inline namespace v0 {
namespace c {

enum class kind : std::uint32_t { none, store, indexer, selector, attention };

/// What a handle leads to. Nothing of it is ever freed, so that any number may be looked up.
struct slot {
  static constexpr std::int32_t empty = INT32_MIN, changing = -1;

  std::atomic<std::int32_t> state{empty};    ///< calls that read it now, or one of the above
  std::atomic<std::uint32_t> generation{0};  ///< another one whenever it is taken
  std::atomic<std::int32_t> dependants{0};   ///< objects that stand on it
  kind what = kind::none;
  void* object = nullptr;
};

/// Takes a free slot for `object` and makes its handle.
/// \returns null if there is none
void* make_handle(kind what, void* object, slot** place = nullptr) noexcept;

/// The slot that a handle leads to, if it is one of this library's, open, and of this kind; else null, and the fault is
/// noted. It may be closed by another thread at any time until it is held.
slot* find(const void* handle, kind what, const char* name) noexcept;

/// Holds an object for the time of a call: alone, if it is changed.
class hold {
 public:
  /// \param name  of the argument, for the fault
  /// \param wanted  without it nothing is held, which is no fault
  hold(const void* handle, kind what, const char* name, bool alone, bool wanted = true) noexcept;
  /// Of an object that another one stands on, which therefore is open.
  hold(slot* parent, const char* name, bool alone, bool wanted = true) noexcept;
  ~hold() { release(); }
  hold(const hold&) = delete;
  hold& operator=(const hold&) = delete;

  explicit operator bool() const noexcept { return slot_ != nullptr; }
  /// Why not, if not.
  fm_status why() const noexcept { return why_; }
  slot* place() const noexcept { return slot_; }

  template <class T>
  T& as() const noexcept {
    return *static_cast<T*>(slot_->object);
  }

  /// Frees the slot of an object that is held alone, whose handle from then on is a closed one.
  /// \returns FM_IN_USE if others stand on it
  fm_status close(const char* name) noexcept;

 private:
  void take(slot* s, const char* name, bool alone) noexcept;
  void release() noexcept;

  slot* slot_ = nullptr;
  bool alone_ = false;
  fm_status why_ = FM_OK;
};

}  // namespace c
}  // namespace v0
}  // namespace flashmemory
