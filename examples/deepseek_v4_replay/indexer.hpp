// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/indexer/dual_encoder.hpp>

#include "content.hpp"
#include "device.hpp"

namespace replay {

/// The memory indexer at its published size, with random weights.
flashmemory::dual_encoder_config random_indexer(std::int64_t max_positions);

/// The directions that index keys of planted entries have. In a layer that no retriever taps they are random, and level
/// 2's queries are made to look for them. In a target layer, whose keys both levels score, each is the direction that
/// the random encoder's heads, weighted by their gates, look for when the hidden state asks for the topic, as far as
/// that does not depend on the position.
/// \returns [csa_layers, topics, 128], elements about 1
device_array<float> make_directions(const flashmemory::dual_encoder_config& config, std::int32_t topics);

}  // namespace replay
