// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/attention_mass.hpp>
#include <flashmemory/train/recorder.hpp>
#include <map>
#include <vector>

#include "engine.hpp"

namespace tinylm {

/// Shows one sequence's forward passes to a flashmemory recorder: hidden states of all layers for the key
/// encoders' averages, those of chosen tokens as queries, and the attention that other chosen tokens pay. The
/// sequence must have everything resident, so that what is paid is what a full model pays.
class document_recorder {
 public:
  /// \param queries   positions of recorded query tokens, ascending; `attended` those whose attention is
  ///     recorded, likewise
  document_recorder(flashmemory::train::recorder& to, flashmemory::train::recording_id id,
                    const flashmemory::train::attention_mass_options& options,
                    std::vector<std::int64_t> queries, std::vector<std::int64_t> attended);

  /// For served_sequence::on_layer. After the last layer of a pass its tokens go to the recorder.
  void on_layer(const served_sequence& sequence, const layer_pass& pass);

 private:
  void finish_pass();

  flashmemory::train::recorder& to_;
  flashmemory::train::recording_id id_;
  flashmemory::train::attention_mass_options options_;
  std::vector<std::int64_t> queries_, attended_;

  // of the pass that is under way
  std::map<std::int64_t, std::vector<std::vector<float>>> rows_;  ///< position -> per query tap its row
  std::vector<std::int64_t> positions_;
  std::vector<flashmemory::train::token_attention> paid_;
};

}  // namespace tinylm
