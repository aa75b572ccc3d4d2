// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <flashmemory/train/label/attention_mass.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <map>
#include <vector>

#include "engine.hpp"

namespace tinylm {

/// Shows one sequence's forward passes to a flashmemory recorder: hidden states of all layers for the key
/// encoders' averages, those of chosen tokens as queries, and the attention that other chosen tokens pay. The
/// sequence must have everything resident, so that what is paid is what a full model pays.
class document_recorder {
 public:
  /// \param skip_sink, skip_recent  attention to so many first chunks, and to so many newest complete ones and what
  ///     follows them, is left out: no label asks about chunks that are resident anyway
  /// \param queries   positions of recorded query tokens, ascending; `attended` those whose attention is
  ///     recorded, likewise
  document_recorder(flashmemory::train::recorder& to, flashmemory::train::recording_id id,
                    const flashmemory::train::attention_mass_options& options,
                    std::vector<std::int64_t> queries, std::vector<std::int64_t> attended,
                    std::int32_t skip_sink = 0, std::int32_t skip_recent = 0);

  /// For served_sequence::on_layer. After the last layer of a pass its tokens go to the recorder.
  void on_layer(const served_sequence& sequence, const layer_pass& pass);

 private:
  void finish_pass();
  void forget_resident(std::int64_t position, flashmemory::train::token_attention& paid) const;

  flashmemory::train::recorder& to_;
  flashmemory::train::recording_id id_;
  flashmemory::train::attention_mass_options options_;
  std::vector<std::int64_t> queries_, attended_;
  std::int32_t skip_sink_, skip_recent_;

  // of the pass that is under way
  std::map<std::int64_t, std::vector<std::vector<float>>> rows_;  ///< position -> per query tap its row
  std::vector<std::int64_t> positions_;
  std::vector<flashmemory::train::token_attention> paid_;
};

}  // namespace tinylm
