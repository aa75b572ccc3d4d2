// SPDX-License-Identifier: MIT
#include "memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace tinylm {

namespace fm = flashmemory;

namespace {

std::string indexer_of(const std::string& policy) {
  return policy == "lsa-threshold" ? std::string("lsa") : policy;
}

fm::selector_options selector_options_for(engine& model) {
  fm::selector_options o;
  o.max_sequences = 4;
  o.stagger = false;  // one sequence at a time: keep to the interval
  o.threads = model.threads().hook();
  return o;
}

}  // namespace

struct memory::ranking {
  std::string name;
  std::shared_ptr<fm::indexer> index;
  std::unique_ptr<fm::selector> select;
};

memory::memory(engine& model, const std::vector<policy_cell>& cells, const memory_options& options) {
  if (!cells.empty()) {
    const auto& p = cells.front().policy;
    kept_ = {p.interval, p.sink_chunks, p.recent_chunks};
  }
  const auto& c = model.weights().config;
  const auto needs = [&](const char* name) {
    return std::any_of(cells.begin(), cells.end(),
                       [&](const auto& cell) { return indexer_of(cell.name) == name; });
  };
  fm::store_options store;
  auto& g = store.geometry;
  g.layers = c.layers;
  g.kv_heads = c.kv_heads;
  g.key_dim = g.value_dim = c.head_dim;
  g.type = options.kv_type;
  g.entries_per_chunk = 64;
  if (needs("lsa")) {
    trained_ = std::make_shared<fm::dual_encoder_indexer>(fm::load_dual_encoder(options.indexer_path));
    g.index_keys.lanes = trained_->taps().reads.lanes;
    g.index_keys.tokens_per_key = trained_->config().tokens_per_key;
  }

  // Room for a prompt and one branch with everything resident, and for exchanging as much at once.
  const auto chunks = static_cast<std::size_t>(g.chunks_for(options.max_tokens));
  const fm::chunk_layout layout(g);
  const std::size_t kv = (chunks + 8) * layout.chunk_bytes();
  const std::size_t keys =
      (chunks + 8) * layout.index_key_page_bytes() * static_cast<std::size_t>(g.index_keys.lanes);
  store.fast_bytes = 3 * kv + 2 * keys + (std::size_t{8} << 20);
  store.backing_bytes = 2 * kv;
  store.max_sequences = 4;
  store_ = std::make_unique<fm::tiered_chunk_store>(store);

  auto selector_settings = selector_options_for(model);
  if (!options.trace_path.empty()) {
    trace_ = std::make_unique<fm::selection_trace>(options.trace_path, *store_, "tinylm");
    selector_settings.events = trace_->hook();
  }
  for (const auto& cell : cells) {
    const std::string name = indexer_of(cell.name);
    if (cell.full()) continue;
    const auto known =
        std::find_if(rankings_.begin(), rankings_.end(), [&](const auto& r) { return r->name == name; });
    if (known != rankings_.end()) continue;
    auto r = std::make_unique<ranking>();
    r->name = name;
    if (name == "lsa") {
      r->index = trained_;
    } else if (name == "recency") {
      r->index = std::make_shared<fm::recency_indexer>();
    } else if (name == "random") {
      r->index = std::make_shared<fm::random_indexer>(options.random_seed);
    } else if (name == "quest") {
      r->index = std::make_shared<fm::quest_indexer>(g, c.heads, store.max_sequences,
                                                     static_cast<std::int64_t>(chunks));
    } else {
      r->index = oracle_ = std::make_shared<fm::oracle_indexer>(cell.policy.interval);
    }
    r->select = std::make_unique<fm::selector>(*store_, *r->index, cell.policy, selector_settings);
    rankings_.push_back(std::move(r));
  }
}

memory::~memory() = default;

memory::ranking& memory::ranking_of(const policy_cell& cell) {
  for (const auto& r : rankings_) {
    if (r->name == indexer_of(cell.name)) return *r;
  }
  throw std::logic_error("a policy that this memory was not made for");
}

served_sequence memory::open_prompt(std::int64_t max_tokens) {
  // The prompt itself attends densely, so its sequence needs no more resident than what is always resident.
  fm::selection_policy least = make_cell("recency", 0.135, kept_).policy;
  least.max_chunks = least.sink_chunks + least.recent_chunks;
  served_sequence prompt;
  prompt.store = store_.get();
  prompt.handle = store_->open(fm::sequence_options_for(least, store_->geometry(), max_tokens));
  for (const auto& r : rankings_) {
    r->select->attach(prompt.handle);
    prompt.observers.push_back(r->select.get());
  }
  return prompt;
}

void memory::close(fm::sequence_handle handle) noexcept {
  for (const auto& r : rankings_) r->select->detach(handle);
  (void)store_->close(handle);
}

void memory::close_prompt(const served_sequence& prompt) { close(prompt.handle); }

branch memory::fork(const served_sequence& prompt, const policy_cell& cell, std::int64_t max_tokens) {
  branch b;
  b.owner_ = this;
  b.cell_ = &cell;
  b.sequence_.store = store_.get();
  fm::sequence_info info;
  require(store_->info(prompt.handle, &info), store_->last_fault(), "info");
  const fm::selection_policy policy =
      fm::fitted(cell.policy, info.tokens / store_->geometry().tokens_per_chunk());
  b.sequence_.handle =
      store_->fork(prompt.handle, fm::sequence_options_for(policy, store_->geometry(), max_tokens));
  if (cell.full()) return b;

  ranking& r = ranking_of(cell);
  b.chooser_ = r.select.get();
  b.chooser_->attach_fork(prompt.handle, b.sequence_.handle, &policy);
  b.sequence_.observers.push_back(b.chooser_);
  b.uses_keys_ = r.index->taps().reads.lanes > 0;
  if (cell.name == "quest") {
    // Per chunk the smallest and the largest K of every layer and head, as floats.
    const auto& g = store_->geometry();
    b.index_bytes_ =
        static_cast<std::size_t>(g.chunks_for(max_tokens) * 2 * g.layers * g.kv_heads * g.key_dim) *
        sizeof(float);
  }
  return b;
}

branch::branch(branch&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      cell_(other.cell_),
      sequence_(std::move(other.sequence_)),
      chooser_(other.chooser_),
      index_bytes_(other.index_bytes_),
      uses_keys_(other.uses_keys_) {}

branch::~branch() {
  if (owner_ != nullptr) owner_->close(sequence_.handle);
}

std::int64_t branch::tokens() const {
  fm::sequence_info info;
  require(owner_->store_->info(sequence_.handle, &info), owner_->store_->last_fault(), "info");
  return info.tokens;
}

footprint branch::measure() const {
  fm::sequence_info info;
  require(owner_->store_->info(sequence_.handle, &info), owner_->store_->last_fault(), "info");
  const auto& g = owner_->store_->geometry();
  footprint f;
  f.slots = info.slot_bytes;
  f.index = (uses_keys_ ? info.index_key_bytes : 0) + index_bytes_;
  f.tables = info.table_bytes;
  f.resident_chunks = info.resident_chunks;
  f.chunks = g.chunks_for(info.tokens);
  f.everything = static_cast<std::size_t>(f.chunks) * fm::chunk_layout(g).chunk_bytes();
  return f;
}

std::vector<fm::chunk_id> branch::resident() const {
  fm::resident_set set;
  require(owner_->store_->resident(sequence_.handle, 0, &set), owner_->store_->last_fault(), "resident");
  std::vector<fm::chunk_id> ids;
  for (std::int64_t i = 0; i < set.count; ++i) ids.push_back(set.chunks[i].id);
  return ids;
}

}  // namespace tinylm
