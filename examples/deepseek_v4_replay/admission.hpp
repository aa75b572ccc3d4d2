// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "engine.hpp"

namespace replay {

/// How many sequences of `options` fit into `gpu_bytes` of device memory: so many that a store with what the rest of the
/// engine leaves of it admits them, and does not admit one more. The store allocates for real, on the device; its
/// backing store is one that holds nothing, so that the host's memory is no limit here.
/// \param bytes  what the engine needs besides the store: per_sequence() less the store's part, and fixed()
std::int64_t admitted_sequences(const engine_options& options, const device_bytes& bytes,
                                std::size_t gpu_bytes);

}  // namespace replay
