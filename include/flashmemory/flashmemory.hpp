// SPDX-License-Identifier: MIT
#pragma once

/// \file
/// Everything an engine needs on the CPU backend.

#include <flashmemory/attend/deepseek_v4.hpp>
#include <flashmemory/attend/deepseek_v4_resident.hpp>
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/batch.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/indexer/dual_encoder.hpp>
#include <flashmemory/indexer/indexer.hpp>
#include <flashmemory/indexer/pooled_keys.hpp>
#include <flashmemory/select/policy.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/select/trace.hpp>
#include <flashmemory/self_test.hpp>
#include <flashmemory/session.hpp>
#include <flashmemory/status.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>

namespace flashmemory {
inline namespace v0 {

/// The version of the library that was linked, e.g. "0.1.0"; compare with the FLASHMEMORY_VERSION_* macros.
FLASHMEMORY_API const char* version() noexcept;

}  // namespace v0
}  // namespace flashmemory
