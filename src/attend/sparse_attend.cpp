// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <flashmemory/attend/sparse_attend.hpp>

#include "src/attend/call.hpp"
#include "src/attend/plan.hpp"
#include "src/attend/prompt.hpp"
#include "src/core/parallel.hpp"
#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace {

using namespace detail;

template <int Rank>
bool contiguous(const const_tensor<Rank>& t) noexcept {
  std::int64_t step = 1;
  for (int d = Rank - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.stride[d] != step) return false;
    step *= t.shape[d];
  }
  return true;
}

/// Exact for contiguous tensors; views into larger buffers may interleave, so only their start is compared.
bool overlap(const const_tensor<3>& a, const const_tensor<3>& b) noexcept {
  const auto bytes = [](const const_tensor<3>& t) {
    return std::size_t(t.shape[0] * t.shape[1] * t.shape[2]) * size_of(t.type);
  };
  const char* first = static_cast<const char*>(a.data);
  const char* second = static_cast<const char*>(b.data);
  if (!contiguous(a) || !contiguous(b)) return first == second;
  return first < second + bytes(b) && second < first + bytes(a);
}

/// Only a default view means all entries; a list without any, whose data may be null, means none.
bool has_list(const attend_options& options) noexcept {
  const view<const std::int32_t, 2>& list = options.entries;
  return list.data != nullptr || list.shape[0] != 0 || list.shape[1] != 0;
}

/// The tensors that go with q: their extents and types.
status check_tensors(batch items, const const_tensor<3>& q, const tensor<3>& out,
                     const attend_options& options, const attend_call& call) noexcept {
  std::int64_t rows = 0;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    if (const status s = check_tokens(items(i), options); s != status::ok) return s;
    rows += items(i).num_tokens;
  }
  if (q.shape[0] != rows) return refuse(options, status::bad_shape, "tokens of q", rows, q.shape[0]);
  if (out.type != dtype::f32 && out.type != dtype::bf16 && out.type != dtype::f16) {
    return refuse(options, status::bad_dtype, "out");
  }
  const std::int64_t expected[] = {q.shape[0], q.shape[1], call.geometry.value_dim};
  const char* const names[] = {"tokens of out", "query heads of out", "last extent of out"};
  for (int d = 0; d < 3; ++d) {
    if (out.shape[d] != expected[d]) {
      return refuse(options, status::bad_shape, names[d], expected[d], out.shape[d]);
    }
  }
  if (q.data == nullptr) return refuse(options, status::null_data, "q");
  if (out.data == nullptr) return refuse(options, status::null_data, "out");
  if (overlap(q, out)) return refuse(options, status::bad_argument, "out overlaps q");
  if (options.sink_logits.data != nullptr && options.sink_logits.shape[0] != q.shape[1]) {
    return refuse(options, status::bad_shape, "heads of sink_logits", q.shape[1],
                  options.sink_logits.shape[0]);
  }
  if (options.lse.data != nullptr) {
    if (options.lse.shape[0] != q.shape[0]) {
      return refuse(options, status::bad_shape, "rows of lse", q.shape[0], options.lse.shape[0]);
    }
    if (options.lse.shape[1] != q.shape[1]) {
      return refuse(options, status::bad_shape, "query heads of lse", q.shape[1], options.lse.shape[1]);
    }
  }
  if (has_list(options)) {
    const view<const std::int32_t, 2>& list = options.entries;
    if (list.shape[0] != q.shape[0]) {
      return refuse(options, status::bad_shape, "rows of entries", q.shape[0], list.shape[0]);
    }
    if (list.shape[1] < 0) return refuse(options, status::bad_shape, "k of entries", 0, list.shape[1]);
    if (list.shape[1] > 0 && list.data == nullptr) return refuse(options, status::null_data, "entries");
  }
  return status::ok;
}

/// Gives every row of an item a unit and a list of its own, in place of the item's unit.
status split_by_row(const attend_options& options, const batch_item& item, const attend_unit& whole,
                    attend_call& call) noexcept {
  for (std::int32_t t = 0; t < whole.tokens; ++t) {
    attend_unit& unit = call.units[call.unit_count++];
    unit = whole;
    unit.tokens = 1;
    unit.position = whole.position + t;
    unit.first_token = whole.first_token + t;
    unit.first_row = whole.first_row + t;
    static constexpr std::int32_t none = -1;
    unit.list = options.entries.shape[1] > 0 ? &options.entries(unit.first_token, 0) : &none;
    unit.list_stride = options.entries.stride[1];
    unit.list_count = options.entries.shape[1];
    const std::int64_t least = (unit.list_count + attend_split_entries - 1) / attend_split_entries;
    unit.splits = std::clamp<std::int64_t>(least, 1, most_splits(call.geometry, whole.chunk_count));
    unit.split_length = (unit.list_count + unit.splits - 1) / unit.splits;
    if (const status s = check_list(call, unit, item, options); s != status::ok) return s;
  }
  return status::ok;
}

/// Whether an item is served by the kernel for prompts: by what is asked for, not by what is resident.
bool is_prompt(const batch_item& item, const attend_options& options) noexcept {
  if (item.empty() || has_list(options)) return false;
  return item.num_tokens > most_decode_tokens || options.reach == attend_reach::everything;
}

/// What of a call each kernel serves.
struct shares {
  std::int64_t rows = 0;  ///< of decoding and empty items
  std::int64_t prompt_rows = 0, prompts = 0;
};

shares shares_of(batch items, const attend_options& options) noexcept {
  shares s;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const bool prompt = is_prompt(items(i), options);
    (prompt ? s.prompt_rows : s.rows) += items(i).num_tokens;
    s.prompts += prompt;
  }
  return s;
}

/// Describes all items in the workspace; nothing of the caller's is written before it returns ok.
/// \param prompts  room for those of shares_of(); \param[out] streamed  whether one of them is
status plan_items(const chunk_reader& reader, batch items, const attend_options& options, attend_call& call,
                  prompt_unit* prompts, bool* streamed) noexcept {
  std::int64_t token = 0, row = 0, states = 0;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    attend_unit unit;
    unit.first_token = token;
    unit.first_row = row;
    if (item.empty()) {
      row += item.num_tokens;
      token += unit.tokens = item.num_tokens;
      if (unit.tokens > 0) call.units[call.unit_count++] = unit;
      continue;
    }
    if (const status s = check_item(reader, item, call.layer, options, unit); s != status::ok) return s;
    token += item.num_tokens;
    if (is_prompt(item, options)) {
      *prompts = plan_prompt(call, unit, item.sequence, options.reach);
      if (prompts->streamed) {
        prompts->first_state = states;
        states += prompts->tasks;
        *streamed = true;
      }
      ++prompts;
      continue;
    }
    row += item.num_tokens;
    call.max_splits = std::max(call.max_splits, most_splits(call.geometry, unit.chunk_count));
    if (!has_list(options)) {
      call.units[call.unit_count++] = unit;
    } else if (const status s = split_by_row(options, item, unit, call); s != status::ok) {
      return s;
    }
  }
  return status::ok;
}

void run(const attend_call& call, const thread_hook& threads) noexcept {
  std::int64_t tasks = 0, partials = 0;
  for (std::int64_t u = 0; u < call.unit_count; ++u) {
    attend_unit& unit = call.units[u];
    unit.first_task = tasks;
    tasks += call.parts(unit) * unit.splits;
    partials += unit.tokens * call.query_heads * unit.splits;
  }
  parallel_for(threads, static_cast<std::int32_t>(tasks),
               [&](std::int32_t task) { run_attend_task(call, task); });

  // Waking threads for less than this takes longer than the work.
  constexpr std::int64_t few_elements = 16384;
  const bool few = partials * call.geometry.value_dim <= few_elements;
  const std::int32_t heads = call.geometry.kv_heads;
  parallel_for(few ? serial_threads() : threads, static_cast<std::int32_t>(call.unit_count * heads),
               [&](std::int32_t i) { join_attend_splits(call, call.units[i / heads], i % heads); });
}

status attend(const chunk_reader& reader, batch items, std::int32_t layer, const const_tensor<3>& q,
              const tensor<3>& out, const attend_options& options, stream_ref stream) noexcept {
  if (!stream.is_host()) return refuse(options, status::unsupported, "stream: this is the CPU backend");
  attend_call call;
  if (const status s = check_call(reader, layer, q, options, call); s != status::ok) return s;
  if (items.shape[0] < 0) return refuse(options, status::bad_shape, "items", 0, items.shape[0]);
  if (items.shape[0] > 0 && items.data == nullptr) return refuse(options, status::null_data, "items");
  if (items.shape[0] == 0 && q.shape[0] == 0) return status::ok;
  if (const status s = check_tensors(items, q, out, options, call); s != status::ok) return s;

  const workspace& scratch = options.scratch;
  if (scratch.data == nullptr) return refuse(options, status::null_data, "scratch");
  const auto too_small = [&](std::size_t bytes) {
    return refuse(options, status::workspace_small, "scratch", std::int64_t(bytes),
                  std::int64_t(scratch.bytes));
  };
  // Units come first: one row of a decoding item has one at most. What lies behind them needs the items' splits.
  const shares share = shares_of(items, options);
  const attend_layout least(call.geometry, call.query_heads, share.rows, 1);
  const auto prompts_after = [&](const attend_layout& rows, bool streamed, std::int32_t lanes) {
    return prompt_layout(call.geometry, call.query_heads, share.prompts, share.prompt_rows, streamed,
                         share.prompts > 0 ? lanes : 0, rows.end);
  };
  constexpr std::size_t to_align = 63;
  if (const std::size_t bytes = prompts_after(least, false, 1).bytes + to_align; bytes > scratch.bytes)
    return too_small(bytes);
  char* const base =
      static_cast<char*>(scratch.data) + (-reinterpret_cast<std::uintptr_t>(scratch.data) & 63);
  call.units = reinterpret_cast<attend_unit*>(base);
  // Prompts' units are planned at the scratch's end, and move once it is known what lies before them.
  auto* const planned = reinterpret_cast<prompt_unit*>(base + prompts_after(least, false, 1).units);
  bool streamed = false;
  if (const status s = plan_items(reader, items, options, call, planned, &streamed); s != status::ok)
    return s;
  const attend_layout layout(call.geometry, call.query_heads, share.rows, call.max_splits);
  const prompt_layout prompts = prompts_after(layout, streamed, 1);
  if (prompts.bytes + to_align > scratch.bytes) return too_small(prompts.bytes + to_align);
  auto* const units = reinterpret_cast<prompt_unit*>(base + prompts.units);
  std::memmove(units, planned, std::size_t(share.prompts) * sizeof(prompt_unit));
  const std::int32_t lanes = std::int32_t(
      std::clamp<std::size_t>(1 + (scratch.bytes - to_align - prompts.bytes) / prompts.lane_bytes, 1,
                              std::size_t(std::max(options.threads.concurrency, 1))));

  call.out = out;
  call.sinks = options.sink_logits;
  call.lse = options.lse;
  call.states = reinterpret_cast<cpu::attend::softmax_state*>(base + layout.states);
  call.sums = reinterpret_cast<float*>(base + layout.sums);
  if (share.prompts > 0) {
    const status s = run_prompts(call, reader, units, share.prompts, options, base, prompts, lanes);
    if (s != status::ok) return s;
  }
  run(call, options.threads);
  return status::ok;
}

status mass_of(const chunk_reader& reader, const batch_item& item, std::int32_t layer,
               const const_tensor<3>& q, view<const float, 2> lse, const attend_options& options,
               view<float, 1> mass, bool accumulate) noexcept {
  attend_call call;
  if (const status s = check_call(reader, layer, q, options, call); s != status::ok) return s;
  if (has_list(options)) {
    return refuse(options, status::unsupported, "entries: mass of level-2 subsets");
  }
  if (const status s = check_tokens(item, options); s != status::ok) return s;
  attend_unit unit;
  if (const status s = check_item(reader, item, layer, options, unit); s != status::ok) return s;
  if (q.shape[0] != unit.tokens) {
    return refuse(options, status::bad_shape, "tokens of q", unit.tokens, q.shape[0]);
  }
  if (lse.shape[0] != q.shape[0]) {
    return refuse(options, status::bad_shape, "rows of lse", q.shape[0], lse.shape[0]);
  }
  if (lse.shape[1] != q.shape[1]) {
    return refuse(options, status::bad_shape, "query heads of lse", q.shape[1], lse.shape[1]);
  }
  sequence_info info;
  if (const status s = reader.info(item.sequence, &info); s != status::ok) {
    return refuse(options, s, "sequence");
  }
  const std::int64_t chunks = call.geometry.chunks_for(info.tokens);
  const std::int64_t resident_end = unit.chunk_count > 0 ? unit.chunks[unit.chunk_count - 1].id + 1 : 0;
  if (mass.shape[0] < std::max(chunks, resident_end)) {
    return refuse(options, status::bad_shape, "chunks of mass", std::max(chunks, resident_end),
                  mass.shape[0]);
  }
  if (q.data == nullptr) return refuse(options, status::null_data, "q");
  if (lse.data == nullptr) return refuse(options, status::null_data, "lse");
  if (mass.data == nullptr) return refuse(options, status::null_data, "mass");

  if (!accumulate) {
    for (std::int64_t c = 0; c < mass.shape[0]; ++c) mass(c) = 0;
  }
  call.units = &unit;
  call.unit_count = 1;
  parallel_for(options.threads, static_cast<std::int32_t>(unit.chunk_count), [&](std::int32_t i) {
    float& to = mass(unit.chunks[i].id);
    const float found = attend_chunk_mass(call, lse, i);
    if (!(found <= to)) to = found;  // larger or NaN
  });
  return status::ok;
}

/// Runs `call` with options whose error is always there, so that the reader can take note of it.
template <class Call>
status noted(const chunk_reader& reader, const attend_options& options, const Call& call) noexcept {
  fault why;
  attend_options mine = options;
  mine.error = &why;
  const status code = call(mine);
  if (code == status::ok) return code;
  reader.note(why);
  if (options.error != nullptr) *options.error = why;
  return code;
}

}  // namespace

std::size_t attend_workspace_bytes(const kv_geometry& geometry, std::int32_t query_heads, std::int64_t rows,
                                   std::int64_t max_resident_chunks, const prompt_extent& prompts) noexcept {
  if (geometry.kv_heads <= 0 || geometry.entries_per_chunk <= 0 || geometry.key_dim <= 0 ||
      geometry.value_dim <= 0 || query_heads <= 0 || rows < 0 || max_resident_chunks < 0 ||
      prompts.rows < 0 || (rows == 0 && prompts.rows == 0)) {
    return 0;
  }
  const attend_layout layout(geometry, query_heads, rows, most_splits(geometry, max_resident_chunks));
  if (prompts.rows == 0) return layout.bytes;
  const std::size_t bytes =
      prompt_layout(geometry, query_heads, std::max<std::int64_t>(prompts.items, 1), prompts.rows,
                    prompts.streamed, std::max(prompts.concurrency, 1), layout.end)
          .bytes;
  return saturating_add(bytes, layout.bytes - layout.end);
}

status sparse_attend(const chunk_reader& reader, batch items, std::int32_t layer, const_tensor<3> q,
                     tensor<3> out, const attend_options& options, stream_ref stream) noexcept {
  return noted(reader, options,
               [&](const attend_options& o) { return attend(reader, items, layer, q, out, o, stream); });
}

status chunk_attention_mass(const chunk_reader& reader, const batch_item& item, std::int32_t layer,
                            const_tensor<3> q, view<const float, 2> lse, const attend_options& options,
                            view<float, 1> mass, bool accumulate) noexcept {
  return noted(reader, options, [&](const attend_options& o) {
    return mass_of(reader, item, layer, q, lse, o, mass, accumulate);
  });
}

}  // namespace v0
}  // namespace flashmemory
