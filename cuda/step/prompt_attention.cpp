// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <flashmemory/cuda/prompt_attend.hpp>
#include <flashmemory/cuda/prompt_attention.hpp>
#include <flashmemory/error.hpp>
#include <vector>

#include "cuda/core/blocks.hpp"
#include "cuda/core/error.hpp"
#include "cuda/store/transfer.hpp"

namespace flashmemory {
inline namespace v0 {
namespace cuda {
namespace {

constexpr char no_address[] = "chunk without an address, and prompt_attention_options::staged is false";

/// A stream of its own, without the legacy stream's ordering.
class own_stream {
 public:
  own_stream() {
    detail::ask(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of copies");
  }
  own_stream(const own_stream&) = delete;
  own_stream& operator=(const own_stream&) = delete;
  ~own_stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const noexcept { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

const prompt_attention_options& checked(const prompt_attention_options& o) {
  const auto require = [](bool holds, const char* field, const char* wanted, std::int64_t found) {
    if (!holds)
      throw argument_error(
          status::bad_argument,
          fmt::format("prompt_attention_options::{} must be {}, it is {}", field, wanted, found));
  };
  constexpr std::int64_t most = std::int64_t{1} << 31;
  validate(o.geometry);
  require(o.max_tokens >= 1 && o.max_tokens < most, "max_tokens", "in [1, 2^31)", o.max_tokens);
  require(o.max_items >= 1 && o.max_items <= 65535, "max_items", "in [1, 65535]", o.max_items);
  require(o.max_chunks >= 1 && o.max_chunks < most / o.max_items, "max_chunks",
          "at least 1, below 2^31 / max_items", o.max_chunks);
  require(o.calls_ahead >= 2 && o.calls_ahead <= 64, "calls_ahead", "in [2, 64]", o.calls_ahead);
  return o;
}

prompt_shape shape_of(const prompt_attention_options& o) {
  prompt_shape shape;
  shape.geometry = o.geometry;
  shape.query_heads = o.query_heads;
  shape.max_items = o.max_items;
  shape.max_tokens = o.max_tokens;
  shape.max_chunks = o.max_chunks;
  return shape;
}

}  // namespace

struct prompt_attention::impl {
  impl(const context& device, const prompt_attention_options& o);

  status attend(const chunk_reader& reader, batch items, std::int32_t layer, const const_tensor<3>& q,
                const tensor<3>& out, const attend_options& options, stream_ref stream, fault* why) noexcept;

  /// One item, and what of it is where.
  struct piece {
    const batch_item* item = nullptr;
    std::int64_t first_token = 0;
    resident_set set;
    chunk_id end = 0, own = 0;  ///< chunks [own, end) are attended to wherever they are
    bool streamed = false;
  };
  status look(const chunk_reader& reader, batch items, std::int32_t layer, const attend_options& options,
              fault* why) noexcept;

  // Tables of a call lie in one part of a ring of pinned memory and of as much device memory.
  status begin_tables(fault* why) noexcept;
  prompt_row* rows() const noexcept { return reinterpret_cast<prompt_row*>(host_part()); }
  std::byte* host_part() const noexcept { return pinned_tables.as<std::byte>() + part * part_bytes; }
  template <class T>
  const T* on_device(const T* host) const noexcept {
    return reinterpret_cast<const T*>(device_tables.as<std::byte>() + part * part_bytes +
                                      (reinterpret_cast<const std::byte*>(host) - host_part()));
  }
  const std::byte** next_pointers() const noexcept {
    return reinterpret_cast<const std::byte**>(host_part() + pointers_at) + listed;
  }
  chunk_id* next_ids() const noexcept { return reinterpret_cast<chunk_id*>(host_part() + ids_at) + listed; }
  void list(prompt_row& row, chunk_id id, const std::byte* chunk) noexcept {
    next_pointers()[0] = chunk;
    next_ids()[0] = id;
    ++listed;
    ++row.count;
  }
  prompt_row row_of(const piece& p, std::int64_t entries) const noexcept;

  status send(std::int64_t first, std::int64_t count, cudaStream_t with, fault* why) noexcept;
  /// One launch over rows [first, first + count), which have been sent.
  status launch(std::int64_t first, std::int64_t count, bool begins, bool ends, const const_tensor<3>& q,
                const tensor<3>& out, const attend_options& options, stream_ref stream, fault* why) noexcept;
  status stream_piece(const chunk_reader& reader, const piece& p, std::int32_t layer,
                      const const_tensor<3>& q, const tensor<3>& out, const attend_options& options,
                      stream_ref stream, fault* why) noexcept;
  status fetch(const chunk_reader& reader, const piece& p, chunk_id id, std::int32_t layer,
               const attend_options& options, bool* there, fault* why) noexcept;
  status begin_wave(fault* why) noexcept;

  context device;
  prompt_attention_options o;
  chunk_layout layout;
  std::int64_t layer_bytes;
  std::int64_t wave_slots;
  prompt_plan plan;  ///< one for all launches, or two residencies would round differently
  own_stream copies;
  std::unique_ptr<detail::transfer> transfer;

  std::int64_t max_rows, max_listed;
  std::size_t pointers_at, ids_at, part_bytes;
  detail::memory_block pinned_tables, device_tables, waves, states, counters, staging;
  std::vector<detail::event> fences;  ///< of the parts: the call that used one is over
  detail::event wave_read[2], wave_there[2];
  std::vector<piece> pieces;
  std::vector<copy_span> spans;

  std::size_t part = 0;
  std::int64_t row = 0, listed = 0, sent = 0;  ///< of the call at hand: rows and list places used, and sent
  std::int64_t wave = 0;                       ///< waves so far, of all calls
  std::int64_t slots_used = 0;                 ///< of the wave at hand
  cudaStream_t stream = nullptr;               ///< of the call at hand
  std::int32_t current_layer = 0;
};

prompt_attention::impl::impl(const context& d, const prompt_attention_options& options)
    : device(d),
      o(checked(options)),
      layout(o.geometry),
      layer_bytes(std::int64_t(layout.layer_bytes())),
      wave_slots(
          std::clamp<std::int64_t>(std::int64_t(o.wave_bytes) / layer_bytes, 1, detail::max_group_spans)),
      plan(plan_prompt(shape_of(o), d.num_sms)) {
  device_store_options how;
  how.on_demand = recall_method::copy_engine;
  transfer = detail::make_transfer(how);
  max_rows = o.max_items * (2 + o.max_chunks / wave_slots);
  max_listed = o.max_items * o.max_chunks;
  const auto aligned = [](std::int64_t bytes) { return std::size_t((bytes + 255) / 256 * 256); };
  pointers_at = aligned(max_rows * std::int64_t(sizeof(prompt_row)));
  ids_at = pointers_at + aligned(max_listed * std::int64_t(sizeof(const std::byte*)));
  part_bytes = ids_at + aligned(max_listed * std::int64_t(sizeof(chunk_id)));
  using detail::block_kind;
  const std::size_t parts = std::size_t(o.calls_ahead), wave_size = std::size_t(2 * wave_slots * layer_bytes);
  pinned_tables = {block_kind::pinned, device.pinned, parts * part_bytes, "tables of prompts, staging"};
  device_tables = {block_kind::device, device.memory, parts * part_bytes, "tables of prompts"};
  waves = {block_kind::device, device.memory, wave_size, "waves of chunks"};
  states = {block_kind::device, device.memory, prompt_state_bytes(plan), "states of prompts"};
  counters = {block_kind::device, device.memory, std::size_t(attend_counters) * 4, "counters of prompts"};
  if (o.staged) staging = {block_kind::pinned, device.pinned, wave_size, "staging of waves"};
  detail::ask(cudaMemset(counters.as<void>(), 0, counters.bytes()), "counters of prompts");
  detail::ask(cudaDeviceSynchronize(), "counters of prompts");
  fences.reserve(parts);
  for (std::size_t i = 0; i < parts; ++i) fences.emplace_back();
  pieces.resize(std::size_t(o.max_items));
  spans.resize(std::size_t(wave_slots));
}

/// Looks at all items before anything is enqueued.
status prompt_attention::impl::look(const chunk_reader& reader, batch items, std::int32_t layer,
                                    const attend_options& options, fault* why) noexcept {
  const kv_geometry& g = o.geometry;
  std::int64_t token = 0;
  for (std::int64_t i = 0; i < items.shape[0]; ++i) {
    const batch_item& item = items(i);
    piece& p = pieces[std::size_t(i)];
    p = {};
    p.item = &item;
    p.first_token = token;
    token += item.num_tokens;
    const auto refuse = [&](status code, const char* what, std::int64_t expected, std::int64_t actual) {
      static_cast<void>(detail::refuse(code, what, expected, actual, why));
      why->sequence = item.sequence.index;
      why->layer = layer;
      return code;
    };
    if (item.num_tokens < (item.empty() ? 0 : 1))
      return refuse(status::bad_argument, "num_tokens", 1, item.num_tokens);
    if (item.position < 0) return refuse(status::bad_argument, "position", 0, item.position);
    if (item.empty()) continue;
    if (const status code = reader.resident(item.sequence, layer, &p.set); code != status::ok) {
      *why = reader.last_fault();
      return code;
    }
    if (item.num_tokens > p.set.tokens || item.position > p.set.tokens - item.num_tokens)
      return refuse(status::out_of_order, "K and V up to the last query", item.position + item.num_tokens,
                    p.set.tokens);
    const std::int64_t entries = g.entries_for(item.position + item.num_tokens), each = g.entries_per_chunk;
    p.end = chunk_id((entries + each - 1) / each);
    p.own = options.reach == attend_reach::everything
                ? 0
                : chunk_id(std::min<std::int64_t>(item.position / each, p.end));
    if (std::max<std::int64_t>(p.end, p.set.count) > o.max_chunks)
      return refuse(status::budget_exceeded, "max_chunks", o.max_chunks,
                    std::max<std::int64_t>(p.end, p.set.count));
    std::int64_t there = 0;
    for (std::int64_t c = 0; c < p.set.count; ++c) {
      const chunk_id id = p.set.chunks[c].id;
      there += id >= p.own && id < p.end;
    }
    p.streamed = there != p.end - p.own;
    if (!p.streamed || o.staged) continue;
    // What has no address would be found out too late.
    std::int64_t at = 0;
    for (chunk_id id = p.own; id < p.end; ++id) {
      while (at < p.set.count && p.set.chunks[at].id < id) ++at;
      if (at < p.set.count && p.set.chunks[at].id == id) continue;
      if (reader.layer_address(item.sequence, id, layer) != nullptr) continue;
      const status code = refuse(status::unsupported, no_address, -1, -1);
      why->chunk = id;
      return code;
    }
  }
  if (token > o.max_tokens)
    return detail::refuse(status::budget_exceeded, "max_tokens", o.max_tokens, token, why);
  return status::ok;
}

status prompt_attention::impl::begin_tables(fault* why) noexcept {
  const std::size_t next = (part + 1) % fences.size();
  const cudaError_t code = fences[next].wait(device.deadline);
  if (code == cudaErrorNotReady)
    return detail::refuse(status::timed_out, "tables of prompts: the device is calls_ahead behind",
                          o.calls_ahead, -1, why);
  if (code != cudaSuccess) return detail::check(code, "tables of prompts", why);
  part = next;
  row = listed = 0;
  return status::ok;
}

prompt_row prompt_attention::impl::row_of(const piece& p, std::int64_t entries) const noexcept {
  prompt_row r;
  r.chunks = on_device(next_pointers());
  r.ids = on_device(next_ids());
  r.entries = entries;
  r.position = p.item->position;
  r.first_token = p.first_token;
  r.tokens = p.item->num_tokens;
  return r;
}

status prompt_attention::impl::launch(std::int64_t first, std::int64_t count, bool begins, bool ends,
                                      const const_tensor<3>& q, const tensor<3>& out,
                                      const attend_options& options, stream_ref on, fault* why) noexcept {
  prompt_options mine;
  static_cast<attend_options&>(mine) = options;
  mine.state = {states.as<void>(), states.bytes()};
  mine.counters = counters.as<std::uint32_t>();
  mine.error = why;
  mine.first = begins;
  mine.last = ends;
  return prompt_attend(plan, view<const prompt_row, 1>(on_device(rows() + first), count), current_layer, q,
                       out, mine, on);
}

/// Sends rows [first, first + count), and what has been listed since the last time. With the copies of a wave, whose engine
/// they would otherwise wait for until the next wave has come.
status prompt_attention::impl::send(std::int64_t first, std::int64_t count, cudaStream_t with,
                                    fault* why) noexcept {
  const auto copy = [&](const void* from, std::size_t bytes) {
    return cudaMemcpyAsync(const_cast<std::byte*>(on_device(static_cast<const std::byte*>(from))), from,
                           bytes, cudaMemcpyHostToDevice, with);
  };
  cudaError_t code = copy(rows() + first, std::size_t(count) * sizeof(prompt_row));
  const std::int64_t fresh = listed - sent;
  if (code == cudaSuccess && fresh > 0)
    code = copy(next_pointers() - fresh, std::size_t(fresh) * sizeof(const std::byte*));
  if (code == cudaSuccess && fresh > 0)
    code = copy(next_ids() - fresh, std::size_t(fresh) * sizeof(chunk_id));
  sent = listed;
  return detail::check(code, "tables of prompts", why);
}

/// The wave's slots are free again, and so is what it is staged in.
status prompt_attention::impl::begin_wave(fault* why) noexcept {
  const auto buffer = std::size_t(wave % 2);
  slots_used = 0;
  cudaError_t code = cudaStreamWaitEvent(copies.get(), wave_read[buffer].get(), 0);
  if (code == cudaSuccess && o.staged) {
    code = wave_there[buffer].wait(device.deadline);
    if (code == cudaErrorNotReady) return detail::refuse(status::timed_out, "staging of a wave", -1, -1, why);
  }
  return detail::check(code, "a wave of chunks", why);
}

/// Brings one chunk's part into the next slot of the wave.
status prompt_attention::impl::fetch(const chunk_reader& reader, const piece& p, chunk_id id,
                                     std::int32_t layer, const attend_options& options, bool* there,
                                     fault* why) noexcept {
  const std::int64_t slot = wave % 2 * wave_slots + slots_used;
  const std::byte* from = reader.layer_address(p.item->sequence, id, layer);
  *there = true;
  if (from == nullptr && !o.staged) {  // it had one when all items were looked at
    const status code = detail::refuse(status::unsupported, no_address, -1, -1, why);
    why->sequence = p.item->sequence.index;
    why->chunk = id;
    return code;
  }
  if (from == nullptr) {
    std::byte* const to = staging.as<std::byte>() + slot * layer_bytes;
    const status code = reader.read_layer(p.item->sequence, id, layer, view<std::byte, 1>(to, layer_bytes));
    if (code != status::ok) {
      fault f = reader.last_fault();
      if (f.code != code || f.chunk != id) f = {};
      f.code = code;
      f.sequence = p.item->sequence.index;
      f.chunk = id;
      f.layer = layer;
      *why = f;
      if (!options.leave_out_unreadable || (code != status::io_error && code != status::corrupt_chunk))
        return code;
      reader.note(f);
      if (options.left_out != nullptr) ++*options.left_out;
      *there = false;
      return status::ok;
    }
    from = to;
  }
  spans[std::size_t(slots_used)] = copy_span{waves.as<std::byte>() + slot * layer_bytes, from};
  ++slots_used;
  return status::ok;
}

/// One item, wave after wave.
status prompt_attention::impl::stream_piece(const chunk_reader& reader, const piece& p, std::int32_t layer,
                                            const const_tensor<3>& q, const tensor<3>& out,
                                            const attend_options& options, stream_ref on,
                                            fault* why) noexcept {
  const std::int64_t layer_offset = std::int64_t(layout.key_offset(layer, 0));
  const std::int64_t entries = o.geometry.entries_for(p.item->position + p.item->num_tokens);
  chunk_id next = p.own;
  std::int64_t at = 0;
  if (p.set.count > 0) next = std::min(next, p.set.chunks[0].id);
  for (bool begins = true;; begins = false) {
    if (const status code = begin_wave(why); code != status::ok) return code;
    const std::int64_t first = row++;
    prompt_row r = row_of(p, entries);
    for (; next < p.end && slots_used < wave_slots; ++next) {
      while (at < p.set.count && p.set.chunks[at].id < next) ++at;
      if (at < p.set.count && p.set.chunks[at].id == next) {
        list(r, next, p.set.chunks[at].data);
        continue;
      }
      if (next < p.own) continue;
      bool there = false;
      const std::int64_t slot = wave % 2 * wave_slots + slots_used;
      if (const status code = fetch(reader, p, next, layer, options, &there, why); code != status::ok)
        return code;
      // The kernel looks for the layer behind the chunk's start, which a slot does not have.
      if (there) list(r, next, waves.as<std::byte>() + slot * layer_bytes - layer_offset);
    }
    rows()[first] = r;
    const bool ends = next >= p.end;
    const auto buffer = std::size_t(wave % 2);
    if (const status code = send(first, 1, copies.get(), why); code != status::ok) return code;
    cudaError_t code = cudaSuccess;
    if (slots_used > 0) {
      detail::copy_group group;
      group.spans = spans.data();
      group.count = group.whole_count = slots_used;
      group.bytes = std::size_t(layer_bytes);
      code = transfer->copy(group, copies.get());
    }
    if (code == cudaSuccess) code = wave_there[buffer].record(copies.get());
    if (code == cudaSuccess) code = cudaStreamWaitEvent(stream, wave_there[buffer].get(), 0);
    if (code != cudaSuccess) return detail::check(code, "copying a wave of chunks", why);
    if (const status launched = launch(first, 1, begins, ends, q, out, options, on, why);
        launched != status::ok)
      return launched;
    code = wave_read[buffer].record(stream);
    ++wave;
    if (code != cudaSuccess) return detail::check(code, "a wave of chunks", why);
    if (ends) return status::ok;
  }
}

status prompt_attention::impl::attend(const chunk_reader& reader, batch items, std::int32_t layer,
                                      const const_tensor<3>& q, const tensor<3>& out,
                                      const attend_options& options, stream_ref on, fault* why) noexcept {
  if (on.is_host())
    return detail::refuse(status::unsupported, "the host stream on the CUDA backend", -1, -1, why);
  if (items.shape[0] < 0 || items.shape[0] > o.max_items)
    return detail::refuse(status::budget_exceeded, "max_items", o.max_items, items.shape[0], why);
  if (items.shape[0] > 0 && items.data == nullptr)
    return detail::refuse(status::null_data, "items", -1, -1, why);
  if (items.shape[0] == 0) return status::ok;
  if (options.entries.data != nullptr)
    return detail::refuse(status::unsupported, "entries: level 2 on the CUDA backend", -1, -1, why);
  if (layer < 0 || layer >= o.geometry.layers)
    return detail::refuse(status::out_of_range, "layer", o.geometry.layers - 1, layer, why);
  const detail::device_guard guard(device.ordinal);
  stream = on.cuda();
  current_layer = layer;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess) cudaGetLastError();
  if (capturing != cudaStreamCaptureStatusNone)
    return detail::refuse(status::unsupported, "a stream that is being captured: see prompt_attend()", -1, -1,
                          why);
  if (options.left_out != nullptr) *options.left_out = 0;
  if (const status code = look(reader, items, layer, options, why); code != status::ok) return code;
  if (*why = reader.order(on); why->code != status::ok) return why->code;
  if (*why = reader.order(stream_ref(copies.get())); why->code != status::ok) return why->code;
  if (const status code = begin_tables(why); code != status::ok) return code;
  sent = 0;

  const auto num_items = std::size_t(items.shape[0]);
  const auto run = [&] {
    // What has to be streamed comes first: it is what can fail.
    for (std::size_t i = 0; i < num_items; ++i) {
      if (!pieces[i].streamed) continue;
      const status code = stream_piece(reader, pieces[i], layer, q, out, options, on, why);
      if (code != status::ok) return code;
    }
    const std::int64_t first = row;
    for (std::size_t i = 0; i < num_items; ++i) {
      const piece& p = pieces[i];
      if (p.streamed) continue;
      prompt_row r =
          row_of(p, p.item->empty() ? 0 : o.geometry.entries_for(p.item->position + p.item->num_tokens));
      for (std::int64_t c = 0; c < p.set.count && p.set.chunks[c].id < p.end; ++c)
        list(r, p.set.chunks[c].id, p.set.chunks[c].data);
      rows()[row++] = r;
    }
    if (row == first) return status::ok;
    if (const status code = send(first, row - first, stream, why); code != status::ok) return code;
    return launch(first, row - first, true, true, q, out, options, on, why);
  };
  const status code = run();
  const cudaError_t fenced = fences[part].record(stream);
  if (code != status::ok) return code;
  return detail::check(fenced, "tables of prompts", why);
}

prompt_attention::prompt_attention(const context& device, const prompt_attention_options& options) {
  const detail::device_guard guard(device.ordinal);
  impl_ = std::make_unique<impl>(device, options);
}

prompt_attention::~prompt_attention() = default;

const prompt_attention_options& prompt_attention::options() const noexcept { return impl_->o; }

std::size_t prompt_attention::device_bytes() const noexcept {
  return impl_->device_tables.bytes() + impl_->waves.bytes() + impl_->states.bytes() +
         impl_->counters.bytes();
}

std::size_t prompt_attention::pinned_bytes() const noexcept {
  return impl_->pinned_tables.bytes() + (impl_->o.staged ? impl_->staging.bytes() : 0);
}

status prompt_attention::attend(const chunk_reader& reader, batch items, std::int32_t layer,
                                const_tensor<3> q, tensor<3> out, const attend_options& options,
                                stream_ref stream) noexcept {
  fault why;
  const status code = impl_->attend(reader, items, layer, q, out, options, stream, &why);
  if (code == status::ok) return code;
  reader.note(why);
  if (options.error != nullptr) *options.error = why;
  return code;
}

}  // namespace cuda
}  // namespace v0
}  // namespace flashmemory
