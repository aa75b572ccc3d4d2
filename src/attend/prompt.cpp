// SPDX-License-Identifier: MIT
#include "src/attend/prompt.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "src/attend/plan.hpp"
#include "src/core/parallel.hpp"
#include "src/store/fast_memory.hpp"

namespace flashmemory {
inline namespace v0 {
namespace detail {
namespace {

constexpr std::size_t line = 64;

std::size_t lines(std::size_t bytes) noexcept { return saturating_add(bytes, line - 1) / line * line; }

constexpr std::int64_t block_rows = cpu::attend::prompt_rows;

std::int64_t row_blocks(const attend_call& call, const attend_unit& rows) noexcept {
  return (std::int64_t{rows.tokens} * call.group + block_rows - 1) / block_rows;
}

/// Block `index` of a unit, the longest ones first.
prompt_block block_of(const attend_call& call, const attend_unit& rows, std::int64_t index) noexcept {
  const std::int64_t heads = call.geometry.kv_heads, total = std::int64_t{rows.tokens} * call.group;
  prompt_block block;
  block.unit = &rows;
  block.head = index % heads;
  block.first = (row_blocks(call, rows) - 1 - index / heads) * block_rows;
  block.rows = std::int32_t(std::min<std::int64_t>(block_rows, total - block.first));
  return block;
}

/// Calls f(task, lane) for every task, on as many lanes as there is scratch for.
template <class F>
void in_lanes(const thread_hook& threads, std::int64_t tasks, std::int32_t lanes, const F& f) noexcept {
  std::atomic<std::int64_t> next{0};
  parallel_for(threads, std::int32_t(std::min<std::int64_t>(tasks, lanes)), [&](std::int32_t lane) {
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) f(task, lane);
  });
}

/// Where a call works.
struct prompt_work {
  char* base;
  const prompt_layout& layout;
  std::int64_t state_floats;

  float* lane_state(std::int32_t lane) const noexcept {
    return reinterpret_cast<float*>(base + layout.lanes + std::size_t(lane) * layout.lane_bytes);
  }
  float* lane_work(std::int32_t lane) const noexcept { return lane_state(lane) + state_floats; }
  float* block_state(std::int64_t block) const noexcept {
    return reinterpret_cast<float*>(base + layout.states) + block * state_floats;
  }
};

/// The chunks of one item that is streamed, wave by wave, ascending.
class wave_reader {
 public:
  wave_reader(const attend_call& call, const chunk_reader& reader, const prompt_unit& unit,
              const attend_options& options, resident_chunk* list, std::byte* slots) noexcept
      : call_(call),
        reader_(reader),
        unit_(unit),
        options_(options),
        list_(list),
        slots_(slots),
        layer_bytes_(chunk_layout(call.geometry).layer_bytes()),
        layer_offset_(chunk_layout(call.geometry).key_offset(call.layer, 0)),
        entries_(call.geometry.entries_for(unit.rows.position + unit.rows.tokens)),
        num_slots_(wave_slots(call.geometry)),
        next_(unit.own) {
    if (unit.rows.chunk_count > 0) next_ = std::min(next_, unit.rows.chunks[0].id);
  }

  /// Fills the list with the next wave. A wave ends between blocks of entries, so that it does not matter where.
  status fill(std::int64_t* count) noexcept {
    std::int64_t used = 0, entries = 0;
    *count = 0;
    while (next_ < unit_.end) {
      const bool between = entries % cpu::attend::block_entries == 0;
      if (between && (used + chunks_to_boundary() > num_slots_ || *count + chunks_to_boundary() > wave_list))
        break;
      resident_chunk chunk;
      bool there = false;
      if (const status s = find(&chunk, &used, &there); s != status::ok) return s;
      if (!there) continue;
      list_[(*count)++] = chunk;
      entries += chunk.entries;
    }
    return status::ok;
  }

 private:
  std::int64_t chunks_to_boundary() const noexcept {
    return cpu::attend::block_entries /
           std::gcd(cpu::attend::block_entries, call_.geometry.entries_per_chunk);
  }

  /// The next chunk, if it is attended to.
  status find(resident_chunk* chunk, std::int64_t* used, bool* there) noexcept {
    const chunk_id id = next_++;
    while (at_ < unit_.rows.chunk_count && unit_.rows.chunks[at_].id < id) ++at_;
    chunk->id = id;
    *there = true;
    if (at_ < unit_.rows.chunk_count && unit_.rows.chunks[at_].id == id) {
      chunk->entries = unit_.rows.chunks[at_].entries;
      chunk->data = unit_.rows.chunks[at_].data + layer_offset_;
      return status::ok;
    }
    *there = id >= unit_.own;
    if (!*there) {
      if (at_ < unit_.rows.chunk_count)
        next_ = std::min(unit_.rows.chunks[at_].id, unit_.own);
      else
        next_ = unit_.own;
      return status::ok;
    }
    const std::int64_t per_chunk = call_.geometry.entries_per_chunk;
    chunk->entries = std::int32_t(std::min(per_chunk, entries_ - id * per_chunk));
    chunk->data = reader_.layer_address(unit_.sequence, id, call_.layer);
    if (chunk->data != nullptr) return status::ok;
    std::byte* const slot = slots_ + std::size_t(*used) * layer_bytes_;
    const status s =
        reader_.read_layer(unit_.sequence, id, call_.layer, view<std::byte, 1>(slot, layer_bytes_));
    if (s == status::ok) {
      chunk->data = slot;
      ++*used;
      return s;
    }
    fault f = reader_.last_fault();
    if (f.code != s || f.chunk != id) f = {};
    f.code = s;
    if (f.what == nullptr || f.what[0] == 0) f.what = "chunk that is not resident";
    f.sequence = unit_.sequence.index;
    f.chunk = id;
    f.layer = call_.layer;
    if (!options_.leave_out_unreadable || (s != status::io_error && s != status::corrupt_chunk))
      return refuse(options_, f);
    reader_.note(f);
    if (options_.left_out != nullptr) ++*options_.left_out;
    *there = false;
    return status::ok;
  }

  const attend_call& call_;
  const chunk_reader& reader_;
  const prompt_unit& unit_;
  const attend_options& options_;
  resident_chunk* list_;
  std::byte* slots_;
  std::size_t layer_bytes_, layer_offset_;
  std::int64_t entries_, num_slots_;
  chunk_id next_;
  std::int64_t at_ = 0;
};

/// Reads and adds wave after wave; writes nothing of the caller's.
status add_waves(const attend_call& call, const chunk_reader& reader, const prompt_unit& unit,
                 const attend_options& options, const prompt_work& work, std::int32_t lanes) noexcept {
  auto* const list = reinterpret_cast<resident_chunk*>(work.base + work.layout.list);
  wave_reader waves(call, reader, unit, options, list,
                    reinterpret_cast<std::byte*>(work.base + work.layout.slots));
  attend_unit rows = unit.rows;
  rows.chunks = list;
  rows.layer_only = true;
  for (bool first = true;; first = false) {
    if (const status s = waves.fill(&rows.chunk_count); s != status::ok) return s;
    if (rows.chunk_count == 0 && !first) return status::ok;
    in_lanes(options.threads, unit.tasks, lanes, [&](std::int64_t task, std::int32_t lane) {
      prompt_block block = block_of(call, rows, task);
      block.begins = first;
      block.ends = false;
      run_prompt_block(call, block, work.block_state(unit.first_state + task), work.lane_work(lane));
    });
  }
}

}  // namespace

std::int64_t wave_slots(const kv_geometry& geometry) noexcept {
  const std::int64_t block = cpu::attend::block_entries;
  return std::max<std::int64_t>(32, block / std::gcd(block, std::int64_t{geometry.entries_per_chunk}));
}

prompt_layout::prompt_layout(const kv_geometry& geometry, std::int32_t query_heads, std::int64_t items,
                             std::int64_t rows, bool streamed, std::int32_t concurrency,
                             std::size_t start) noexcept {
  const auto times = [](std::size_t a, std::size_t b) { return saturating_multiply(a, b); };
  const std::size_t state_bytes =
      std::size_t(cpu::attend::prompt_state_floats(geometry.value_dim)) * sizeof(float);
  units = start;
  list = saturating_add(units, lines(times(std::size_t(items), sizeof(prompt_unit))));
  slots = states = lanes = list;
  if (streamed) {
    slots = saturating_add(list, lines(wave_list * sizeof(resident_chunk)));
    states =
        saturating_add(slots, times(std::size_t(wave_slots(geometry)), chunk_layout(geometry).layer_bytes()));
    const std::int64_t group = query_heads / geometry.kv_heads;
    // Rows of each item and head begin a block of their own.
    const std::size_t blocks =
        times(times(std::size_t(rows), std::size_t(group)) / block_rows + std::size_t(items),
              std::size_t(geometry.kv_heads));
    lanes = saturating_add(states, lines(times(blocks, state_bytes)));
  }
  lane_bytes =
      lines(state_bytes + std::size_t(cpu::attend::prompt_work_floats(geometry.key_dim, geometry.value_dim)) *
                              sizeof(float));
  bytes = saturating_add(lanes, times(std::size_t(concurrency), lane_bytes));
}

prompt_unit plan_prompt(const attend_call& call, const attend_unit& rows, sequence_handle sequence,
                        attend_reach reach) noexcept {
  const kv_geometry& g = call.geometry;
  const std::int64_t per_chunk = g.entries_per_chunk;
  prompt_unit unit;
  unit.rows = rows;
  unit.sequence = sequence;
  unit.end = chunk_id((g.entries_for(rows.position + rows.tokens) + per_chunk - 1) / per_chunk);
  unit.own = reach == attend_reach::everything
                 ? 0
                 : std::min(unit.end, chunk_id(g.entries_for(rows.position) / per_chunk));
  const auto first_of = [&](chunk_id id) {
    return std::lower_bound(rows.chunks, rows.chunks + rows.chunk_count, id,
                            [](const resident_chunk& chunk, chunk_id wanted) { return chunk.id < wanted; });
  };
  unit.streamed = first_of(unit.end) - first_of(unit.own) != unit.end - unit.own;
  unit.tasks = row_blocks(call, rows) * g.kv_heads;
  return unit;
}

status run_prompts(const attend_call& call, const chunk_reader& reader, const prompt_unit* units,
                   std::int64_t count, const attend_options& options, char* base, const prompt_layout& layout,
                   std::int32_t lanes) noexcept {
  const prompt_work work = {base, layout, cpu::attend::prompt_state_floats(call.geometry.value_dim)};
  if (options.left_out != nullptr) *options.left_out = 0;
  // What has to be read comes first, so that nothing has been written when that fails.
  for (std::int64_t u = 0; u < count; ++u) {
    if (!units[u].streamed) continue;
    if (const status s = add_waves(call, reader, units[u], options, work, lanes); s != status::ok) return s;
  }
  for (std::int64_t u = 0; u < count; ++u) {
    const prompt_unit& unit = units[u];
    if (!unit.streamed) continue;
    attend_unit rows = unit.rows;
    rows.chunk_count = 0;
    in_lanes(options.threads, unit.tasks, lanes, [&](std::int64_t task, std::int32_t lane) {
      prompt_block block = block_of(call, rows, task);
      block.begins = false;
      run_prompt_block(call, block, work.block_state(unit.first_state + task), work.lane_work(lane));
    });
  }
  std::int64_t tasks = 0;
  for (std::int64_t u = 0; u < count; ++u) tasks += units[u].streamed ? 0 : units[u].tasks;
  in_lanes(options.threads, tasks, lanes, [&](std::int64_t task, std::int32_t lane) {
    const prompt_unit* unit = units;
    for (; unit->streamed || task >= unit->tasks; ++unit) task -= unit->streamed ? 0 : unit->tasks;
    run_prompt_block(call, block_of(call, unit->rows, task), work.lane_state(lane), work.lane_work(lane));
  });
  return status::ok;
}

}  // namespace detail
}  // namespace v0
}  // namespace flashmemory
