// SPDX-License-Identifier: MIT
#include "pass_trace.hpp"

namespace llama_flashmemory {

namespace fm = flashmemory;

pass_trace::pass_trace(const std::string& path, const fm::chunk_reader& store, const std::string& title,
                       const llama_vocab* vocabulary, std::int32_t max_sequences, std::int32_t query_heads)
    : store_(store),
      vocabulary_(vocabulary),
      query_heads_(query_heads),
      lines_(path, store, title),
      sequences_(static_cast<std::size_t>(max_sequences)) {}

void pass_trace::token(llama_seq_id sequence, const fm::batch_item& item, std::int64_t position,
                       llama_token token, bool decoding) {
  char piece[256];
  const int bytes = llama_token_to_piece(vocabulary_, token, piece, sizeof(piece), 0, true);
  const std::string text(piece, static_cast<std::size_t>(bytes > 0 ? bytes : 0));
  written& w = sequences_[static_cast<std::size_t>(sequence)];
  const std::int64_t per_chunk = store_.geometry().tokens_per_chunk();
  w.chunks.resize(static_cast<std::size_t>(position / per_chunk) + 1);
  w.chunks.back() += text;
  w.tokens = position + 1;
  if (w.tokens % per_chunk == 0) lines_.chunk_text(item.sequence, position / per_chunk, w.chunks.back());
  if (decoding) lines_.token_text(item.sequence, position, text);
}

void pass_trace::copied(llama_seq_id from, llama_seq_id to, fm::sequence_handle handle) {
  const written& w = sequences_[static_cast<std::size_t>(to)] = sequences_[static_cast<std::size_t>(from)];
  for (std::size_t c = 0; c < w.chunks.size(); ++c)
    lines_.chunk_text(handle, static_cast<std::int64_t>(c), w.chunks[c]);
}

void pass_trace::shortened(llama_seq_id sequence, std::int64_t tokens) {
  written& w = sequences_[static_cast<std::size_t>(sequence)];
  const std::int64_t per_chunk = store_.geometry().tokens_per_chunk();
  w.chunks.resize(static_cast<std::size_t>((tokens + per_chunk - 1) / per_chunk));
  // Where the cut is within a chunk is not known in bytes; the chunk begins anew.
  if (tokens % per_chunk != 0) w.chunks.back().clear();
  w.tokens = tokens;
}

fm::view<float, 2> pass_trace::room(std::int64_t rows) {
  lse_.resize(static_cast<std::size_t>(rows * query_heads_));
  return fm::view<float, 2>(lse_.data(), rows, query_heads_);
}

void pass_trace::attended(fm::batch items, std::int32_t layer, fm::const_tensor<3> q,
                          const fm::attend_options& options) {
  mass_.resize(static_cast<std::size_t>(items.shape[0]));
  std::int64_t row = 0;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const fm::batch_item& item = items(i);
    auto& mass = mass_[static_cast<std::size_t>(i)];
    const std::int64_t end = item.position + item.num_tokens;
    if (layer == 0) mass.assign(static_cast<std::size_t>(store_.geometry().chunks_for(end)), 0.0f);
    fm::const_tensor<3> rows = q;
    rows.data = static_cast<const float*>(q.data) + row * q.stride[0];
    rows.shape[0] = item.num_tokens;
    fm::view<const float, 2> lse(options.lse.data + row * options.lse.stride[0], item.num_tokens,
                                 query_heads_);
    const fm::view<float, 1> out(mass.data(), static_cast<std::int64_t>(mass.size()));
    // A fault costs a shade of a picture.
    static_cast<void>(fm::chunk_attention_mass(store_, item, layer, rows, lse, options, out, layer > 0));
    if (layer + 1 == store_.geometry().layers) lines_.attention_mass(item.sequence, end - 1, out);
    row += item.num_tokens;
  }
}

}  // namespace llama_flashmemory
