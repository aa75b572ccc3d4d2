// SPDX-License-Identifier: MIT
#include "adapter.hpp"

#include <algorithm>
#include <utility>

#include "indexer_choice.hpp"

namespace llama_flashmemory {

namespace fm = flashmemory;

namespace {

constexpr auto host = fm::stream_ref::host();

[[noreturn]] void bad_batch(const std::string& what) {
  throw fm::argument_error(fm::status::bad_argument, "batch: " + what);
}

std::string name_of(llama_seq_id sequence) { return "sequence " + std::to_string(sequence); }

}  // namespace

/// What a pass of one token shows of the graph.
struct adapter::probe {
  struct seen {
    attention_node node;
    bool there = false;
  };
  std::vector<seen> layers;
  std::vector<bool> inputs;  ///< whether "attn_norm" was there
};

adapter::adapter(llama_model* model, llama_context_params params, const adapter_options& options)
    : model_(model), options_(options), facts_(facts_of(model)), reader_(facts_.layers) {
  if (!options_.any_version && !is_tested_version(llama_version()))
    throw fm::error(fm::status::unsupported, std::string("llama.cpp ") + llama_version() + " is not " +
                                                 tested_llama_version +
                                                 ", which the adapter was tested with");
  const auto positive = [](std::int64_t value, const char* name) {
    if (value < 1)
      throw fm::argument_error(fm::status::bad_argument,
                               std::string(name) + " is " + std::to_string(value) + ", not 1 or more");
  };
  positive(options_.max_sequences, "max_sequences");
  positive(params.n_threads, "n_threads");
  positive(params.n_threads_batch, "n_threads_batch");
  positive(params.n_ubatch, "n_ubatch");
  if (options_.max_rollback_tokens < 0)
    throw fm::argument_error(fm::status::bad_argument, "max_rollback_tokens is negative");
  if (options_.policy == "full" && !options_.trace_path.empty())
    throw fm::argument_error(fm::status::bad_argument,
                             "trace_path: the policy 'full' chooses nothing that could be shown");
  if (options_.max_tokens == 0) options_.max_tokens = facts_.trained_context;
  positive(options_.max_tokens, "max_tokens");
  if (options_.max_tokens > facts_.trained_context)
    throw fm::argument_error(fm::status::bad_argument, "a context of " + std::to_string(options_.max_tokens) +
                                                           " tokens is more than the " +
                                                           std::to_string(facts_.trained_context) +
                                                           " that the model was trained for");
  if (params.cb_eval != nullptr)
    throw fm::argument_error(fm::status::bad_argument, "cb_eval is taken; the adapter needs it");
  static_cast<void>(element_type(params.type_k, "type_k"));
  static_cast<void>(element_type(params.type_v, "type_v"));
  if (params.type_k != params.type_v)
    throw fm::argument_error(fm::status::bad_dtype,
                             "type_k and type_v differ; the store keeps K and V alike");
  store_layer_.assign(static_cast<std::size_t>(facts_.layers), -1);
  for (std::size_t i = 0; i < facts_.full.size(); ++i)
    store_layer_[static_cast<std::size_t>(facts_.full[i])] = static_cast<std::int32_t>(i);
  slots_.resize(static_cast<std::size_t>(options_.max_sequences));
  look(params);
  build_store();
}

adapter::~adapter() = default;

void adapter::require(fm::status code, const char* what) const {
  if (code == fm::status::ok) return;
  const fm::fault fault = store_->last_fault();
  throw fm::error(
      code, std::string(what) + ": " + (fault.code == code ? fm::describe(fault) : fm::to_string(code)));
}

/// Makes the small context and reads the shapes of its graph in a pass of one token.
void adapter::look(llama_context_params params) {
  most_tokens_ = static_cast<std::int32_t>(params.n_ubatch);
  std::int64_t cells = most_tokens_;
  if (facts_.window > 0)
    cells += std::int64_t{options_.max_sequences} * (facts_.window - 1 + options_.max_rollback_tokens);
  params.n_ctx = static_cast<std::uint32_t>(cells);
  params.n_batch = params.n_ubatch;
  params.n_seq_max = static_cast<std::uint32_t>(options_.max_sequences);
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.kv_unified = true;  // one stream: rows of a pass stay in the batch's order
  params.swa_full = true;    // what leaves a window is the adapter's to say
  params.offload_kqv = false;
  params.cb_eval = &adapter::on_node;
  params.cb_eval_user_data = this;
  context_.reset(llama_init_from_model(model_, params));
  if (!context_) throw fm::error(fm::status::unsupported, "llama.cpp made no context; its log says why");

  probe_ = std::make_unique<probe>();
  probe_->layers.resize(static_cast<std::size_t>(facts_.layers));
  probe_->inputs.resize(static_cast<std::size_t>(facts_.layers));
  reader_.begin();
  llama_token token = std::max(0, llama_vocab_bos(llama_model_get_vocab(model_)));
  const std::int32_t code = llama_decode(context_.get(), llama_batch_get_one(&token, 1));
  llama_memory_clear(memory(), false);
  const auto seen = std::move(probe_);
  if (failure_code_ != fm::status::ok) throw fm::error(failure_code_, failure_);
  if (code != 0)
    throw fm::error(fm::status::unsupported, "llama_decode() of one token returned " + std::to_string(code));

  const auto missing = [](const char* prefix, std::int32_t layer, const char* why) {
    throw fm::error(fm::status::unsupported,
                    "tensor '" + std::string(prefix) + std::to_string(layer) + "' " + why);
  };
  has_input_ = seen->inputs;
  const probe::seen* first = nullptr;
  const void* window_mask = nullptr;
  for (std::int32_t l = 0; l < facts_.layers; ++l) {
    const auto& layer = seen->layers[static_cast<std::size_t>(l)];
    if (!layer.there) missing("kqv_out-", l, "is missing in the model's graph");
    if (store_layer_[static_cast<std::size_t>(l)] < 0) {
      if (window_mask != nullptr && layer.node.mask != window_mask)
        missing("kqv_out-", l,
                "has another mask than the other window layers: the pattern of windows is not the model's");
      window_mask = layer.node.mask;
      continue;
    }
    if (first == nullptr) first = &layer;
    const auto& a = first->node;
    const auto& b = layer.node;
    if (a.q.shape[1] != b.q.shape[1] || a.k.shape[1] != b.k.shape[1] || a.k.shape[2] != b.k.shape[2] ||
        a.v.shape[2] != b.v.shape[2] || a.k.type != b.k.type || a.scale != b.scale)
      missing("kqv_out-", l, "differs in heads, dims or scale from the first full-attention layer's");
    if (a.mask != b.mask)
      missing("kqv_out-", l,
              "has another mask than the other full layers: the pattern of windows is not the model's");
  }
  if (window_mask != nullptr && window_mask == first->node.mask)
    missing("kqv_out-", facts_.windowed.front(),
            "has the mask of a full layer: the pattern of windows is not the model's");
  const auto& node = first->node;
  query_heads_ = static_cast<std::int32_t>(node.q.shape[1]);
  softmax_scale_ = node.scale;
  geometry_.layers = static_cast<std::int32_t>(facts_.full.size());
  geometry_.kv_heads = static_cast<std::int32_t>(node.k.shape[1]);
  geometry_.key_dim = static_cast<std::int32_t>(node.k.shape[2]);
  geometry_.value_dim = static_cast<std::int32_t>(node.v.shape[2]);
  geometry_.type = node.k.type;
}

void adapter::build_store() {
  fm::store_options store;
  fm::selection_policy policy =
      fm::fitted(options_.selection, options_.max_tokens / geometry_.tokens_per_chunk());
  if (options_.policy == "full") policy.mode = fm::selection_mode::everything;
  indexer_setting setting;
  setting.geometry = geometry_;
  setting.query_heads = query_heads_;
  setting.hidden = facts_.hidden;
  setting.softmax_scale = softmax_scale_;
  setting.max_sequences = options_.max_sequences;
  setting.max_tokens = options_.max_tokens;
  setting.sink_chunks = policy.sink_chunks;
  setting.recent_chunks = policy.recent_chunks;
  setting.artifact = options_.indexer;
  indexer_ = choose_indexer(options_.policy, setting);
  if (indexer_) geometry_.index_keys = indexer_->taps().reads;
  store.geometry = geometry_;
  sequence_options_ = fm::sequence_options_for(policy, geometry_, options_.max_tokens);
  // A prompt that goes on where decoding stopped needs room for its newest chunks beside those that are selected.
  if (sequence_options_.max_resident_chunks > 0)
    sequence_options_.max_resident_chunks += sequence_options_.recent_chunks + 2;
  store.max_sequences = options_.max_sequences;
  store.backing_path = options_.backing_path;
  const auto bytes = fm::store_bytes_for(store, sequence_options_, options_.max_sequences);
  store.fast_bytes = bytes.fast;
  store.backing_bytes = bytes.backing;
  store_ = std::make_unique<fm::tiered_chunk_store>(store);
  if (options_.self_test) {
    fm::self_test_options test;
    test.query_heads = query_heads_;
    test.lengths = 2 * geometry_.tokens_per_chunk();  // all layers take part, and there may be many
    const auto report = fm::self_test(*store_, test);
    if (!report.passed()) throw fm::error(fm::status::unsupported, describe(report));
  }
  if (indexer_) {
    fm::selector_options s;
    s.max_sequences = options_.max_sequences;
    s.max_rollback_tokens = options_.max_rollback_tokens;
    s.threads = options_.threads;
    s.stagger = options_.max_sequences > 1;
    if (!options_.trace_path.empty()) {
      trace_ =
          std::make_unique<pass_trace>(options_.trace_path, *store_, "llama.cpp, " + options_.policy,
                                       llama_model_get_vocab(model_), options_.max_sequences, query_heads_);
      s.events = trace_->lines().hook();
    }
    selector_ = std::make_unique<fm::selector>(*store_, *indexer_, policy, s);
    for (const std::int32_t l : facts_.full) {
      if (selector_->reads(store_layer_[static_cast<std::size_t>(l)]) &&
          !has_input_[static_cast<std::size_t>(l)])
        throw fm::error(fm::status::unsupported,
                        "tensor 'attn_norm-" + std::to_string(l) +
                            "', which the indexer reads, is missing in the model's graph");
    }
  }
  fm::prompt_extent prompts;
  prompts.rows = most_tokens_;
  prompts.items = options_.max_sequences;
  prompts.streamed = sequence_options_.max_resident_chunks > 0;
  prompts.concurrency = options_.threads.concurrency;
  const std::int64_t all = geometry_.chunks_for(options_.max_tokens);
  const std::int64_t quota = sequence_options_.max_resident_chunks;
  scratch_.resize(fm::attend_workspace_bytes(geometry_, query_heads_,
                                             std::int64_t{options_.max_sequences} * fm::most_decode_tokens,
                                             quota > 0 ? std::min(all, quota) : all, prompts));
}

bool adapter::on_node(ggml_tensor* node, bool ask, void* self) noexcept {
  auto& a = *static_cast<adapter*>(self);
  if (a.failure_code_ != fm::status::ok)
    return !ask;  // the graph runs to its end; decode() says what went wrong
  try {
    return a.node(node, ask);
  } catch (const fm::error& e) {
    a.failure_code_ = e.code();
    a.failure_ = e.what();
  } catch (const std::exception& e) {
    a.failure_code_ = fm::status::unsupported;
    a.failure_ = e.what();
  }
  return !ask;
}

bool adapter::node(ggml_tensor* node, bool ask) {
  if (ask) reader_.note(node);
  const graph_name name = read_name(node->name);
  if (name.role != graph_role::attention_input && name.role != graph_role::attention_output) return !ask;
  if (name.layer >= facts_.layers)
    throw fm::error(fm::status::unsupported, std::string("tensor '") + node->name + "': the model has only " +
                                                 std::to_string(facts_.layers) + " layers");
  const auto layer = static_cast<std::size_t>(name.layer);
  if (probe_) {
    if (name.role == graph_role::attention_input) {
      probe_->inputs[layer] = true;
      return !ask;
    }
    if (!ask) probe_->layers[layer] = {reader_.read(node, name.layer), true};
    return true;
  }
  const std::int32_t in_store = store_layer_[layer];
  if (in_store < 0) return !ask;
  if (name.role == graph_role::attention_output) {
    if (!ask) attend(node, name.layer);
    return true;
  }
  if (!selector_ || !selector_->reads(in_store)) return !ask;
  if (!ask) {
    const fm::const_tensor<2> hidden(node->data, fm::dtype::f32, node->ne[1], node->ne[0]);
    require(selector_->observe(fm::batch(items_.data(), static_cast<std::int64_t>(items_.size())), in_store,
                               hidden, host),
            "observe");
  }
  return true;
}

void adapter::attend(const ggml_tensor* output, std::int32_t layer) {
  const attention_node a = reader_.read(output, layer);
  const std::int32_t l = store_layer_[static_cast<std::size_t>(layer)];
  const fm::batch all(items_.data(), static_cast<std::int64_t>(items_.size()));
  if (selector_ && selector_->reads(l, fm::tap_kind::queries)) {
    // A selector wants one row a token, heads behind each other: so ggml has them, whatever dimension it calls which.
    fm::const_tensor<2> rows(a.q.data, a.q.type, a.q.shape[0], a.q.shape[1] * a.q.shape[2]);
    rows.stride[0] = a.q.stride[0];
    if (a.q.stride[1] != a.q.shape[2])
      throw fm::error(fm::status::unsupported,
                      std::string("tensor '") + output->name + "': heads of its queries lie apart");
    require(selector_->observe_queries(all, l, rows, host), "observe_queries");
  }
  require(store_->append(all, l, a.k, a.v, host), "append");
  if (selector_ && selector_->reads(l, fm::tap_kind::keys))
    require(selector_->observe_keys(all, l, a.k, host), "observe_keys");
  fm::attend_options options;
  options.softmax_scale = a.scale;
  options.logit_soft_cap = a.soft_cap;
  options.sink_logits = a.sinks;
  options.scratch = {scratch_.data(), scratch_.size()};
  options.threads = options_.threads;
  for (const part& p : parts_) {
    options.reach = p.everything ? fm::attend_reach::everything : fm::attend_reach::resident;
    fm::const_tensor<3> q = a.q;
    q.data = static_cast<const float*>(q.data) + p.first_row * q.stride[0];
    q.shape[0] = p.rows;
    fm::tensor<3> out = a.out;
    out.data = static_cast<float*>(out.data) + p.first_row * out.stride[0];
    out.shape[0] = p.rows;
    const bool look = trace_ && !p.everything;
    options.lse = look ? trace_->room(p.rows) : fm::view<float, 2>();
    require(fm::sparse_attend(*store_, p.items, l, q, out, options, host), "sparse_attend");
    if (look) trace_->attended(p.items, l, q, options);
  }
  ++layers_done_;
}

adapter::slot& adapter::slot_of(llama_seq_id sequence) {
  return const_cast<slot&>(std::as_const(*this).slot_of(sequence));
}

const adapter::slot& adapter::slot_of(llama_seq_id sequence) const {
  if (sequence < 0 || sequence >= options_.max_sequences)
    throw fm::argument_error(fm::status::bad_argument,
                             name_of(sequence) + " is not one of " + std::to_string(options_.max_sequences));
  return slots_[static_cast<std::size_t>(sequence)];
}

void adapter::open(slot& s) {
  s = {};
  s.handle = store_->open(sequence_options_);
  try {
    if (selector_) selector_->attach(s.handle);
  } catch (...) {
    static_cast<void>(store_->close(s.handle));
    s = {};
    throw;
  }
}

/// Makes items of a batch's rows, and says which of them belong to prompts.
void adapter::take(const llama_batch& batch) {
  items_.clear(), item_sequences_.clear(), asks_.clear(), was_open_.clear(), parts_.clear();
  if (batch.n_tokens < 1 || batch.n_tokens > most_tokens_)
    bad_batch(std::to_string(batch.n_tokens) + " tokens, not 1 to " + std::to_string(most_tokens_));
  if (batch.token == nullptr) bad_batch("embeddings in place of tokens");
  if (batch.pos == nullptr || batch.seq_id == nullptr || batch.n_seq_id == nullptr || batch.logits == nullptr)
    bad_batch("positions, sequence ids and logits must all be stated");
  for (std::int32_t i = 0; i < batch.n_tokens; ++i) {
    if (batch.n_seq_id[i] != 1) bad_batch("token " + std::to_string(i) + " belongs to several sequences");
    const llama_seq_id sequence = batch.seq_id[i][0];
    const slot& s = slot_of(sequence);
    const bool goes_on = i > 0 && item_sequences_.back() == sequence;
    if (!goes_on &&
        std::find(item_sequences_.begin(), item_sequences_.end(), sequence) != item_sequences_.end())
      bad_batch("tokens of " + name_of(sequence) + " lie apart");
    const std::int64_t expected = goes_on ? items_.back().position + items_.back().num_tokens : s.tokens;
    if (batch.pos[i] != expected)
      bad_batch("token " + std::to_string(i) + " of " + name_of(sequence) + " has position " +
                std::to_string(batch.pos[i]) + ", not " + std::to_string(expected));
    if (expected >= options_.max_tokens)
      throw fm::error(fm::status::sequence_full, name_of(sequence) + " would outgrow its context of " +
                                                     std::to_string(options_.max_tokens) + " tokens");
    if (goes_on) {
      ++items_.back().num_tokens;
      asks_.back() = batch.logits[i] != 0;
    } else {
      items_.push_back({s.handle, batch.pos[i], 1, fm::item_phase::decode});
      item_sequences_.push_back(sequence);
      asks_.push_back(batch.logits[i] != 0);
      was_open_.push_back(!items_.back().empty());
    }
  }
  std::int64_t row = 0;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    const slot& s = slots_[static_cast<std::size_t>(item_sequences_[i])];
    if (!asks_[i]) {
      items_[i].phase = fm::item_phase::prompt;
    } else if (s.in_prompt || items_[i].num_tokens > fm::most_decode_tokens) {
      items_[i].phase = fm::item_phase::prompt_end;
    }
    const bool everything =
        items_[i].phase != fm::item_phase::decode && sequence_options_.max_resident_chunks > 0;
    if (parts_.empty() || parts_.back().everything != everything)
      parts_.push_back({fm::batch(&items_[i], 0), row, 0, everything});
    ++parts_.back().items.shape[0];
    parts_.back().rows += items_[i].num_tokens;
    row += items_[i].num_tokens;
  }
}

/// What a pass that failed has left: nothing.
void adapter::forget_pass() noexcept {
  for (std::size_t i = 0; i < items_.size(); ++i) {
    slot& s = slots_[static_cast<std::size_t>(item_sequences_[i])];
    llama_memory_seq_rm(memory(), item_sequences_[i], static_cast<llama_pos>(items_[i].position), -1);
    if (was_open_[i]) {
      static_cast<void>(store_->truncate(s.handle, items_[i].position));
    } else if (!(s.handle == fm::sequence_handle{})) {
      if (selector_) selector_->detach(s.handle);
      static_cast<void>(store_->close(s.handle));
      s = {};
    }
  }
}

void adapter::pass(const llama_batch& batch) {
  for (std::size_t i = 0; i < items_.size(); ++i) {
    slot& s = slots_[static_cast<std::size_t>(item_sequences_[i])];
    if (!was_open_[i]) open(s);
    items_[i].sequence = s.handle;
  }
  reader_.begin();
  layers_done_ = 0;
  failure_code_ = fm::status::ok;
  if (facts_.window == 0) llama_memory_clear(memory(), false);  // the store has it all
  const std::int32_t code = llama_decode(context_.get(), batch);
  if (failure_code_ != fm::status::ok)
    throw fm::error(std::exchange(failure_code_, fm::status::ok), failure_);
  if (code != 0) throw fm::error(fm::status::unsupported, "llama_decode() returned " + std::to_string(code));
  if (layers_done_ != geometry_.layers)
    throw fm::error(fm::status::unsupported,
                    "tensor 'kqv_out-" + std::to_string(facts_.full[static_cast<std::size_t>(layers_done_)]) +
                        "' did not come, or not in order");
}

void adapter::note_tokens(const llama_batch& batch) {
  std::int32_t row = 0;
  for (std::size_t i = 0; i < items_.size(); ++i)
    for (std::int32_t t = 0; t < items_[i].num_tokens; ++t, ++row)
      trace_->token(item_sequences_[i], items_[i], batch.pos[row], batch.token[row],
                    items_[i].phase == fm::item_phase::decode);
}

void adapter::finish_pass(const llama_batch& batch) {
  for (std::size_t i = 0; i < items_.size(); ++i) {
    slot& s = slots_[static_cast<std::size_t>(item_sequences_[i])];
    s.tokens = items_[i].position + items_[i].num_tokens;
    s.in_prompt = items_[i].phase == fm::item_phase::prompt;
    trim(item_sequences_[i]);
  }
  if (trace_) note_tokens(batch);
  if (!selector_) return;
  const fm::status code =
      fm::select_chunks(*selector_, fm::batch(items_.data(), static_cast<std::int64_t>(items_.size())), host);
  // What the medium refuses leaves the old set in force; the selector counts it and tries again.
  if (code != fm::status::io_error && code != fm::status::corrupt_chunk && code != fm::status::timed_out)
    require(code, "select_chunks");
}

void adapter::decode(const llama_batch& batch) {
  take(batch);
  try {
    pass(batch);
  } catch (...) {
    forget_pass();
    throw;
  }
  finish_pass(batch);
}

void adapter::prompt(llama_seq_id sequence, const std::vector<llama_token>& tokens) {
  if (static_cast<std::int64_t>(tokens.size()) > options_.max_tokens - this->tokens(sequence))
    throw fm::error(fm::status::sequence_full, "a prompt of " + std::to_string(tokens.size()) +
                                                   " tokens does not fit: " + name_of(sequence) + " has " +
                                                   std::to_string(this->tokens(sequence)) + " of " +
                                                   std::to_string(options_.max_tokens));
  struct batch_free {
    llama_batch batch;
    ~batch_free() { llama_batch_free(batch); }
  } owner{llama_batch_init(most_tokens_, 0, 1)};
  llama_batch& b = owner.batch;
  for (std::size_t at = 0; at < tokens.size(); at += static_cast<std::size_t>(b.n_tokens)) {
    const auto left = static_cast<std::int64_t>(tokens.size() - at);
    b.n_tokens = static_cast<std::int32_t>(std::min<std::int64_t>(left, most_tokens_));
    const auto start = static_cast<llama_pos>(this->tokens(sequence));
    for (std::int32_t i = 0; i < b.n_tokens; ++i) {
      b.token[i] = tokens[at + static_cast<std::size_t>(i)];
      b.pos[i] = start + i;
      b.n_seq_id[i] = 1;
      b.seq_id[i][0] = sequence;
      b.logits[i] = b.n_tokens == left && i + 1 == b.n_tokens;
    }
    decode(b);
  }
}

}  // namespace llama_flashmemory
