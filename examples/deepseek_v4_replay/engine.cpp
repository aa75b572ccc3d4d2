// SPDX-License-Identifier: MIT
#include "engine.hpp"

#include <chrono>
#include <flashmemory/cuda/selector.hpp>
#include <flashmemory/cuda/store.hpp>
#include <flashmemory/select/trace.hpp>
#include <optional>

#include "level2.hpp"
#include "schedule.hpp"

namespace replay {

namespace fm = flashmemory;
namespace v4 = fm::cuda::deepseek_v4;

namespace {

constexpr std::int64_t dim = v4::entry_dim;
constexpr std::int64_t key_row = model::lightning_dim + 4;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::int64_t quota_of(const engine_options& o) {
  const fm::kv_geometry g = store_geometry(o);
  const std::int64_t chunks = g.chunks_for(o.context);
  return o.all_resident ? chunks : std::min(sequence_options_of(o).max_resident_chunks, chunks);
}

}  // namespace

fm::kv_geometry store_geometry(const engine_options& options) {
  fm::kv_geometry g;
  g.layers = model::csa_layers;
  g.kv_heads = 1;
  g.key_dim = v4::entry_dim;
  g.value_dim = v4::lightning_dim;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = model::chunk_entries;
  g.tokens_per_entry = model::csa_tokens;
  g.index_keys.lanes = options.all_resident ? 0 : model::retrievers;
  g.index_keys.tokens_per_key = model::csa_tokens;
  g.index_keys.layout = fm::index_key_layout::planar;
  g.format = fm::kv_format::deepseek_v4;
  return g;
}

fm::selection_policy selection_policy_of(const engine_options& options) {
  fm::selection_policy p;
  p.mode = options.all_resident ? fm::selection_mode::everything : fm::selection_mode::budget;
  p.interval = options.interval;
  p.budget_fraction = options.all_resident ? 0 : options.budget_fraction;
  return p;
}

fm::sequence_options sequence_options_of(const engine_options& options) {
  return fm::sequence_options_for(selection_policy_of(options), store_geometry(options), options.context);
}

std::size_t row_scratch_bytes(const engine_options& options) {
  const std::int64_t chunks = quota_of(options);
  return level2::bytes_per_row(chunks) + std::size_t(chunks) * sizeof(void*) + sizeof(fm::cuda::chunk_row);
}

struct engine::impl {
  struct row {
    fm::sequence_handle sequence;
    std::int64_t position = 0;  ///< of the token that the next step brings
    topic_plan plan;
    topic_schedule schedule;
    std::int64_t refreshes = 0;
    std::vector<fm::chunk_id> last_set{};  ///< what the last step attended to, and its topic
    std::int32_t last_topic = 0;
  };

  impl(const engine_options& o, const fm::dual_encoder_config& indexer, const planted_directions& d)
      : options(o), directions(d), caches(o.rows, o.context) {
    fm::store_options s;
    s.geometry = store_geometry(o);
    s.fast_bytes = o.gpu_bytes;
    s.backing_bytes =
        std::size_t(o.rows * s.geometry.chunks_for(o.context)) * fm::chunk_layout(s.geometry).chunk_bytes();
    s.max_sequences = o.rows;
    fm::cuda::context device;
    device.memory = device_memory.resource();
    device.pinned = o.pinned;
    fm::cuda::device_store_options how;
    how.pinned_slab_bytes = std::size_t{1} << 30;
    store = fm::cuda::make_store(s, device, how);
    const auto besides_the_store = [&] { return device_memory.in_use() - store->usage().fast_bytes; };
    const std::size_t before = besides_the_store();
    if (!o.all_resident) make_selector(indexer);
    const fm::sequence_options wanted = sequence_options_of(o);
    for (std::int32_t r = 0; r < o.rows; ++r) {
      row made{store->open(wanted), 0, plan_of(r), topic_schedule(o.interval, o.topics.topics)};
      if (select) select->attach(made.sequence);
      rows.push_back(std::move(made));
    }
    level1_bytes = besides_the_store() - before;
    make_step();
    make_tensors();
    second.emplace(store->geometry(), step->tables(), tensors.queries, tensors.weights);
  }

  topic_plan plan_of(std::int32_t r) const {
    // Not the sink, nor what is recent during the run.
    const auto end = static_cast<std::int32_t>(prompt_of(r) / store_geometry(options).tokens_per_chunk()) - 4;
    return topic_plan(options.topics, 1, end, std::uint64_t(r) + 1);
  }

  /// Rows are at different places of a chunk and of an entry.
  std::int64_t prompt_of(std::int32_t r) const noexcept { return options.prompt - r * 61 % 256; }

  void make_selector(const fm::dual_encoder_config& indexer) {
    fm::selector_options s;
    s.max_sequences = options.rows;
    s.apply = fm::apply_mode::overlapped;
    s.late = fm::late_policy::keep;
    s.concurrent_recalls =
        4;  // a refresh changes a tenth of a set, and the transition pool has room for a whole one
    if (!options.trace.empty()) {
      trace.emplace(options.trace, *store,
                    "DeepSeek-V4-Flash replay, " + std::to_string(options.context >> 10) + "K");
      s.events = trace->hook();
    }
    fm::cuda::device_selector_options device;
    device.rows = fm::dtype::bf16;
    select = fm::cuda::make_selector(*store, indexer, selection_policy_of(options), s, device);
  }

  void make_step() {
    fm::cuda::decode_step_options o;
    o.rows = options.rows;
    o.max_chunks = quota_of(options);
    step = std::make_unique<fm::cuda::decode_step>(*store, select.get(), o);
    csa_plan = v4::plan_attend({options.rows, model::heads, model::window + model::top_entries});
    hca_plan = v4::plan_attend({options.rows, model::heads, model::window + caches.hca_capacity()});
    window_plan = v4::plan_attend({options.rows, model::heads, model::window});
    scratch = device_array<std::byte>(
        std::max({v4::attend_workspace_bytes(csa_plan), v4::attend_workspace_bytes(hca_plan),
                  v4::attend_workspace_bytes(window_plan)}));
  }

  void make_tensors() {
    const auto n = std::size_t(options.rows);
    hidden = device_array<bfloat16>(model::retrievers * n * model::hidden);
    level2_queries =
        device_array<std::byte>(model::csa_layers * n * model::index_heads * model::lightning_dim);
    level2_weights = device_array<float>(model::csa_layers * n * model::index_heads);
    index_keys = device_array<bfloat16>(model::csa_layers * n * model::lightning_dim);
    index_rows = device_array<std::byte>(model::retrievers * n * key_row);
    tensors = {hidden.data(), level2_queries.data(), level2_weights.data(), index_keys.data(),
               index_rows.data()};
    entries = device_array<bfloat16>(model::csa_layers * n * dim);
    queries = device_array<bfloat16>(model::layers * n * model::heads * dim);
    out = device_array<bfloat16>(model::layers * n * model::heads * dim);
    fill_noise(queries.data(), std::int64_t(queries.size()), 5, stream.get());
    caches.fill(6, stream);
    stream.wait();
  }

  void prefill(const std::function<void(std::int64_t)>& progress);
  void append_piece(row& s, std::int32_t number, std::int64_t tokens,
                    const device_array<std::int32_t>& places);
  void attend(std::int32_t layer, const v4::attend_plan& plan, const v4::entry_source& selected);
  void enqueue();
  void launch();
  void make_inputs(std::uint64_t number);
  void look_at_refreshes();
  double planted_resident() const;
  void remember_set(row& s) const;
  double planted_picked() const;

  engine_options options;
  planted_directions directions;
  counted_device_memory device_memory;
  std::size_t level1_bytes = 0;  ///< of that memory, without the store's
  device_stream stream;
  engine_caches caches;
  std::unique_ptr<fm::tiered_chunk_store> store;
  std::optional<fm::selection_trace> trace;
  std::unique_ptr<fm::selector> select;
  std::unique_ptr<fm::cuda::decode_step> step;
  std::optional<level2> second;
  std::vector<row> rows;
  std::vector<fm::batch_item> items;
  v4::attend_plan csa_plan, hca_plan, window_plan;
  device_array<std::byte> scratch;
  step_tensors tensors;
  device_array<bfloat16> hidden, index_keys, entries, queries, out;
  device_array<std::byte> level2_queries, index_rows;
  device_array<float> level2_weights;
  device_array<bfloat16> piece_entries, piece_keys;
  device_array<std::byte> piece_rows;
  cudaGraphExec_t graph = nullptr;
  std::int64_t steps_done = 0;
};

void engine::impl::append_piece(row& s, std::int32_t number, std::int64_t tokens,
                                const device_array<std::int32_t>& places) {
  const fm::kv_geometry& g = store->geometry();
  const std::int64_t first = g.entries_for(s.position), count = g.entries_for(s.position + tokens) - first;
  const fm::batch_item item{s.sequence, s.position, static_cast<std::int32_t>(tokens)};
  for (std::int32_t layer = 0; layer < model::csa_layers; ++layer) {
    const std::uint64_t seed = (std::uint64_t(number) * 64 + std::uint64_t(layer)) << 40;
    const std::int32_t retriever = options.all_resident ? -1 : model::retriever_of(layer);
    fill_noise(piece_entries.data(), count * dim, seed + std::uint64_t(first), stream.get());
    fill_index_keys(piece_keys.data(), retriever >= 0 ? piece_rows.data() : nullptr, first, count, layer,
                    options.topics, places.data(), static_cast<std::int32_t>(places.size()), directions,
                    seed + 1, stream.get());
    must(
        store->append(fm::batch(&item, 1), layer,
                      fm::const_tensor<3>(piece_entries.data(), fm::dtype::bf16, count, 1, dim),
                      fm::const_tensor<3>(piece_keys.data(), fm::dtype::bf16, count, 1, model::lightning_dim),
                      stream.ref()),
        store->last_fault());
    if (retriever >= 0)
      must(store->append_index_keys(s.sequence, retriever, first,
                                    fm::view<const std::byte, 2>(piece_rows.data(), count, key_row),
                                    stream.ref()),
           store->last_fault());
  }
  s.position += tokens;
}

void engine::impl::prefill(const std::function<void(std::int64_t)>& progress) {
  constexpr std::int64_t at_once = 16384;  // tokens
  const std::size_t most = at_once / model::csa_tokens + 1;
  piece_entries = device_array<bfloat16>(most * dim);
  piece_keys = device_array<bfloat16>(most * model::lightning_dim);
  piece_rows = device_array<std::byte>(most * key_row);
  std::int64_t done = 0;
  for (std::int32_t r = 0; r < options.rows; ++r) {
    row& s = rows[std::size_t(r)];
    const device_array<std::int32_t> places(s.plan.places());
    for (const std::int64_t prompt = prompt_of(r); s.position < prompt;) {
      const std::int64_t tokens = std::min(at_once, prompt - s.position);
      append_piece(s, r, tokens, places);
      progress(done += tokens);
    }
    stream.wait();
  }
  piece_entries = {};
  piece_keys = {};
  piece_rows = {};
}

void engine::impl::attend(std::int32_t layer, const v4::attend_plan& plan, const v4::entry_source& selected) {
  const std::int64_t at = std::int64_t{layer} * options.rows * model::heads * dim;
  fm::attend_options o;
  o.scratch = {scratch.data(), scratch.bytes()};
  fm::fault f;
  o.error = &f;
  must(v4::sparse_attend(
           plan, caches.window(layer), selected,
           fm::const_tensor<3>(queries.data() + at, fm::dtype::bf16, options.rows, model::heads, dim),
           fm::tensor<3>(out.data() + at, fm::dtype::bf16, options.rows, model::heads, dim), o, stream.ref()),
       f);
}

/// Everything of a step that touches the device, as a graph captures it.
void engine::impl::enqueue() {
  const std::int64_t n = options.rows;
  caches.append(step->positions(), stream);
  std::int32_t csa = 0, hca = 0;
  for (std::int32_t layer = 0; layer < model::layers; ++layer) {
    switch (model::kind_of(layer)) {
      case model::layer_kind::window_only:
        attend(layer, window_plan, {});
        break;
      case model::layer_kind::hca:
        attend(layer, hca_plan, caches.hca(hca++));
        break;
      case model::layer_kind::csa: {
        const std::int32_t retriever = select ? model::retriever_of(csa) : -1;
        if (retriever >= 0) {
          must(step->observe(csa,
                             fm::const_tensor<2>(hidden.data() + retriever * n * model::hidden,
                                                 fm::dtype::bf16, n, model::hidden),
                             stream.ref()),
               step->last_fault());
          must(step->append_index_keys(
                   retriever,
                   fm::view<const std::byte, 2>(index_rows.data() + retriever * n * key_row, n, key_row),
                   stream.ref()),
               step->last_fault());
        }
        must(
            step->append(csa, fm::const_tensor<3>(entries.data() + csa * n * dim, fm::dtype::bf16, n, 1, dim),
                         fm::const_tensor<3>(index_keys.data() + csa * n * model::lightning_dim,
                                             fm::dtype::bf16, n, 1, model::lightning_dim),
                         stream.ref()),
            step->last_fault());
        second->select(csa, stream);
        attend(layer, csa_plan, second->selected(csa));
        ++csa;
        break;
      }
    }
  }
}

/// The first step runs eagerly, the second is captured, from then on the graph runs.
void engine::impl::launch() {
  if (graph == nullptr && steps_done > 0) {
    cudaGraph_t captured = nullptr;
    must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    enqueue();
    must(cudaStreamEndCapture(stream.get(), &captured));
    must(cudaGraphInstantiate(&graph, captured, 0));
    must(cudaGraphDestroy(captured));
  }
  if (graph != nullptr)
    must(cudaGraphLaunch(graph, stream.get()));
  else
    enqueue();
}

void engine::impl::make_inputs(std::uint64_t number) {
  step_topics topics;
  topics.rows = options.rows;
  items.clear();
  for (std::int32_t r = 0; r < options.rows; ++r) {
    row& s = rows[std::size_t(r)];
    if (!select) s.schedule.tick(s.position);
    topics.hidden[r] = s.schedule.hidden(s.position);
    topics.queries[r] = s.schedule.queries(s.position);
    items.push_back({s.sequence, s.position, 1});
  }
  const std::uint64_t seed = 0x5eed000000000000u + number * 0x100000000u;
  fill_step(tensors, topics, directions, seed, stream.get());
  fill_noise(entries.data(), std::int64_t(entries.size()), seed + 7, stream.get());
  caches.make_entries(seed + 8, stream);
}

void engine::impl::look_at_refreshes() {
  for (row& s : rows) {
    fm::selection_report report;
    if (select->report(s.sequence, &report) != fm::status::ok || report.refreshes == s.refreshes) continue;
    s.refreshes = report.refreshes;
    s.schedule.refreshed(report.position);
  }
}

double engine::impl::planted_resident() const {
  if (!select) return 1;
  std::int64_t there = 0;
  for (const row& s : rows) {
    fm::resident_set set;
    must(store->resident(s.sequence, 0, &set), store->last_fault());
    const std::int32_t topic = s.schedule.queries(s.position);
    for (std::int64_t i = 0; i < set.count; ++i) there += s.plan.has(topic, set.chunks[i].id) ? 1 : 0;
  }
  return double(there) / (double(options.topics.planted) * options.rows);
}

void engine::impl::remember_set(row& s) const {
  fm::resident_set set;
  must(store->resident(s.sequence, 0, &set), store->last_fault());
  s.last_topic = s.schedule.queries(s.position);
  s.last_set.clear();
  for (std::int64_t i = 0; i < set.count; ++i) s.last_set.push_back(set.chunks[i].id);
}

double engine::impl::planted_picked() const {
  std::int64_t found = 0, there = 0;
  for (std::int32_t r = 0; r < options.rows; ++r) {
    const row& s = rows[std::size_t(r)];
    for (const fm::chunk_id chunk : s.last_set) there += s.plan.has(s.last_topic, chunk) ? 1 : 0;
    for (const std::int32_t number : second->picked(r)) {
      const fm::chunk_id chunk = s.last_set.at(std::size_t(number / model::chunk_entries));
      if (!s.plan.has(s.last_topic, chunk)) continue;
      const std::int32_t place = s.plan.places()[std::size_t(chunk)];
      found += options.topics.topic_of(place, number % model::chunk_entries) == s.last_topic ? 1 : 0;
    }
  }
  return there == 0 ? 0 : double(found) / double(there);
}

engine::engine(const engine_options& options, const fm::dual_encoder_config& indexer,
               const planted_directions& directions)
    : impl_(std::make_unique<impl>(options, indexer, directions)) {}

engine::~engine() {
  cudaDeviceSynchronize();
  if (impl_->graph != nullptr) cudaGraphExecDestroy(impl_->graph);
}

void engine::prefill(const std::function<void(std::int64_t)>& progress) { impl_->prefill(progress); }

std::vector<step_times> engine::run(std::int64_t count, std::int64_t warmup,
                                    const std::function<void(std::int64_t)>& progress) {
  impl& e = *impl_;
  struct marks {
    device_event start, tables, graph, end;
  };
  std::vector<marks> events(static_cast<std::size_t>(count));
  std::vector<step_times> times(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    marks& m = events[std::size_t(i)];
    step_times& t = times[std::size_t(i)];
    e.make_inputs(std::uint64_t(e.steps_done));
    t.planted_resident = e.planted_resident();
    for (const impl::row& s : e.rows) t.scored |= e.select && s.schedule.due(s.position);
    const fm::batch batch(e.items.data(), std::int64_t(e.items.size()));
    m.start.record(e.stream);
    const auto begin = std::chrono::steady_clock::now();
    must(e.step->prepare(batch, e.stream.ref()), e.step->last_fault());
    m.tables.record(e.stream);
    e.launch();
    must(e.step->finish(e.stream.ref()), e.step->last_fault());
    m.graph.record(e.stream);
    if (i + 1 == count)
      for (impl::row& s : e.rows) e.remember_set(s);
    if (e.select) must(fm::select_chunks(*e.select, batch, e.stream.ref()), e.select->last_fault());
    m.end.record(e.stream);
    t.host = 1e6 * seconds_since(begin);
    for (impl::row& s : e.rows) ++s.position;
    if (e.select) e.look_at_refreshes();
    ++e.steps_done;
    if (i > 0) events[std::size_t(i - 1)].end.wait();
    progress(i + 1);
  }
  e.stream.wait();
  for (std::int64_t i = 0; i < count; ++i) {
    const marks& m = events[std::size_t(i)];
    times[std::size_t(i)].prepare = m.tables.us_since(m.start);
    times[std::size_t(i)].graph = m.graph.us_since(m.tables);
    times[std::size_t(i)].selection = m.end.us_since(m.graph);
  }
  times.erase(times.begin(), times.begin() + std::min(warmup, count));
  return times;
}

double engine::planted_picked() { return impl_->planted_picked(); }

device_bytes engine::bytes() const {
  const impl& e = *impl_;
  fm::sequence_info info;
  must(e.store->info(e.rows[0].sequence, &info), e.store->last_fault());
  const std::size_t chunk = fm::chunk_layout(e.store->geometry()).chunk_bytes();
  device_bytes b;
  b.slots = std::size_t(quota_of(e.options)) * chunk;
  b.keys = info.index_key_bytes;
  b.tables = info.table_bytes;
  b.caches = e.caches.bytes_per_row();
  b.scratch = row_scratch_bytes(e.options);
  if (!e.options.all_resident) b.transition = b.slots;
  b.level1 = e.level1_bytes;
  return b;
}

fm::store_counters engine::store_counters() const { return impl_->store->counters(); }

fm::selector_counters engine::selector_counters() const {
  return impl_->select ? impl_->select->counters() : fm::selector_counters{};
}

double engine::score_seconds() const {
  double sum = 0;
  for (const impl::row& s : impl_->rows) {
    fm::selection_report report;
    if (impl_->select && impl_->select->report(s.sequence, &report) == fm::status::ok)
      sum += report.score_seconds;
  }
  return sum / double(impl_->rows.size());
}

}  // namespace replay
