// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/top_k/top_k.cuh>

#include "cuda/core/error.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace detail {
namespace {

status check_rows(const select_row* rows, std::int32_t num_rows, stream_ref stream, fault* error) noexcept {
  if (num_rows < 0) return refuse(status::bad_argument, "num_rows", 0, num_rows, error);
  if (stream.is_host()) return refuse(status::unsupported, "stream", -1, -1, error);
  if (num_rows > 0 && rows == nullptr) return refuse(status::null_data, "rows", -1, -1, error);
  return status::ok;
}

}  // namespace
}  // namespace detail

std::size_t top_k_workspace_bytes(std::int32_t num_rows, std::int64_t max_count) noexcept {
  return top_k::workspace_bytes(num_rows, max_count);
}

status select_top_k(const select_row* rows, std::int32_t num_rows, std::int64_t max_count, workspace scratch,
                    stream_ref stream, fault* error) noexcept {
  if (const status s = detail::check_rows(rows, num_rows, stream, error); s != status::ok) return s;
  if (max_count < 0 || max_count > 0x7fffffff) {
    return detail::refuse(status::bad_argument, "max_count", 0x7fffffff, max_count, error);
  }
  if (num_rows > 65535) return detail::refuse(status::bad_argument, "num_rows", 65535, num_rows, error);
  if (num_rows == 0) return status::ok;
  const std::size_t bytes = top_k_workspace_bytes(num_rows, max_count);
  if (scratch.bytes < bytes) {
    return detail::refuse(status::workspace_small, "scratch", static_cast<std::int64_t>(bytes),
                          static_cast<std::int64_t>(scratch.bytes), error);
  }
  if (bytes > 0 && scratch.data == nullptr)
    return detail::refuse(status::null_data, "scratch", -1, -1, error);
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(scratch.data) % 16 != 0) {
    return detail::refuse(status::bad_argument, "scratch", 16, -1, error);
  }
  return detail::check(
      top_k::launch_top_k(top_k::row_table{rows}, num_rows, max_count, scratch.data, stream.cuda()), "top_k",
      error);
}

status select_above(const select_row* rows, std::int32_t num_rows, stream_ref stream, fault* error) noexcept {
  if (const status s = detail::check_rows(rows, num_rows, stream, error); s != status::ok) return s;
  if (num_rows == 0) return status::ok;
  return detail::check(top_k::launch_above(top_k::row_table{rows}, num_rows, stream.cuda()), "select_above",
                       error);
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
