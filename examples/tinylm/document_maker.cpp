// SPDX-License-Identifier: MIT
#include "document_maker.hpp"

#include <algorithm>
#include <random>
#include <set>
#include <span>

#include "kernels.hpp"

namespace tinylm {

namespace fm = flashmemory;

document_maker::document_maker(const record_options& options, const tokenizer& words, engine& model,
                               fm::train::recorder& to, const task_maker& tasks, const haystack& text)
    : options_(options),
      words_(words),
      engine_(model),
      to_(to),
      tasks_(tasks),
      sessions_(text, options.sessions, options.seed) {
  std::int64_t longest = 0;
  for (const std::int64_t length : options.lengths) longest = std::max(longest, length);
  const auto& c = model.weights().config;
  fm::store_options store;
  store.geometry.layers = c.layers;
  store.geometry.kv_heads = c.kv_heads;
  store.geometry.key_dim = store.geometry.value_dim = c.head_dim;
  max_tokens_ = longest + task_maker::answer_room;
  const std::size_t kv = static_cast<std::size_t>(store.geometry.chunks_for(max_tokens_) + 8) *
                         fm::chunk_layout(store.geometry).chunk_bytes();
  store.fast_bytes = kv + (std::size_t{8} << 20);
  store.backing_bytes = kv;
  store.max_sequences = 1;
  store_ = std::make_unique<fm::tiered_chunk_store>(store);
  mass_.max_entries = options.max_entries;
  mass_.min_mass = options.min_mass;
  mass_.threads = model.threads().hook();
}

std::int64_t document_maker::record(const record_job& what) {
  return what.kind == session_kind ? record_session(what) : record_task(what);
}

/// Runs work(sequence) with everything resident while its passes are recorded; it returns the tokens processed.
template <class Work>
std::int64_t document_maker::with_sequence(fm::train::recording_id id,
                                           const std::vector<std::int64_t>& queries, std::int64_t most,
                                           Work&& work) {
  document_recorder recorder(to_, id, mass_, queries, windows_of(queries, most), options_.skip_sink,
                             options_.skip_recent);
  fm::sequence_options sequence;
  sequence.max_tokens = max_tokens_;
  served_sequence served;
  served.store = store_.get();
  served.handle = store_->open(sequence);
  served.on_layer = [&](const layer_pass& pass) { recorder.on_layer(served, pass); };
  std::int64_t tokens = 0;
  try {
    tokens = work(served);
    to_.finish(id, tokens);
  } catch (...) {
    (void)store_->close(served.handle);
    to_.drop(id);
    throw;
  }
  require(store_->close(served.handle), store_->last_fault(), "close");
  return tokens;
}

std::int64_t document_maker::record_task(const record_job& what) {
  const made_task task = tasks_.make(task_kind_from(what.kind), what.length, what.index, options_.odd);
  std::vector<token_id> prompt{words_.bos()};
  const auto text = words_.encode(task.record.prompt);
  prompt.insert(prompt.end(), text.begin(), text.end());
  const auto gold = words_.encode(task.gold);
  const auto length = static_cast<std::int64_t>(prompt.size());
  const std::int64_t answer = options_.greedy ? task.record.max_new_tokens : std::int64_t(gold.size());

  const auto id = to_.begin(what.kind, split_of(what.index));
  std::vector<std::int64_t> queries = background_of(what, length);
  for (std::int64_t t = length - 1; t < length + answer; ++t) queries.push_back(t);
  return with_sequence(id, queries, length + answer, [&](const served_sequence& served) {
    return length + (options_.greedy ? generate(served, prompt, answer, gold, task, id)
                                     : teach(served, prompt, gold, task, id));
  });
}

std::int64_t document_maker::record_session(const record_job& what) {
  const session made = sessions_.make(what.length, what.index);
  const auto id = to_.begin(what.kind, split_of(what.index));
  return with_sequence(id, queries_of(what, made), what.length, [&](const served_sequence& served) {
    engine_.prefill(served, made.ids);
    for (const evidence& need : made.need)
      to_.add_evidence(id, {need.answer_begin, need.answer_end, need.prompt_begin, need.prompt_end});
    return what.length;
  });
}

/// The gold answer, up to the newline that ends it, which no token follows.
std::int64_t document_maker::teach(const served_sequence& served, const std::vector<token_id>& prompt,
                                   const std::vector<token_id>& gold, const made_task& task,
                                   fm::train::recording_id id) {
  engine_.prefill(served, prompt);
  const auto given = static_cast<std::int64_t>(gold.size()) - 1;
  for (std::int64_t at = 0; at < given;) {
    const std::int64_t now = std::min<std::int64_t>(max_step_tokens, given - at);
    engine_.step(served, static_cast<std::int64_t>(prompt.size()) + at,
                 std::span(gold).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(now)));
    at += now;
  }
  add_evidence(task, id, static_cast<std::int64_t>(prompt.size()), given);
  return given;
}

/// What the model answers by itself. Needs are known only where that is the gold answer.
std::int64_t document_maker::generate(const served_sequence& served, const std::vector<token_id>& prompt,
                                      std::int64_t most, const std::vector<token_id>& gold,
                                      const made_task& task, fm::train::recording_id id) {
  auto logits = engine_.prefill(served, prompt);
  std::vector<token_id> answer;
  std::int64_t processed = 0;
  for (;; ++processed) {
    answer.push_back(greedy(logits));
    if (answer.back() == words_.newline() || answer.back() == words_.eos() || processed + 1 >= most) break;
    logits = engine_.step(served, static_cast<std::int64_t>(prompt.size()) + processed,
                          std::span(&answer.back(), 1));
  }
  if (answer == gold) add_evidence(task, id, static_cast<std::int64_t>(prompt.size()), processed);
  return processed;
}

/// Answer token i is computed by the token before it, so it is that one's attention that needs the
/// sentence.
void document_maker::add_evidence(const made_task& task, fm::train::recording_id id, std::int64_t prompt,
                                  std::int64_t processed) {
  for (const evidence& need : task.record.need) {
    const std::int64_t begin = prompt + need.answer_begin - 1;
    const std::int64_t end = std::min(prompt + need.answer_end - 1, prompt + processed);
    if (begin < end) to_.add_evidence(id, {begin, end, need.prompt_begin, need.prompt_end});
  }
}

fm::train::dataset_split document_maker::split_of(std::int64_t index) const {
  const auto before = [&](std::int64_t i) {
    return static_cast<std::int64_t>(static_cast<double>(i) * options_.validation);
  };
  return before(index + 1) > before(index) ? fm::train::dataset_split::validation
                                           : fm::train::dataset_split::train;
}

/// Query positions in the middle of the text, ascending; far enough from the answer to see none of it.
std::vector<std::int64_t> document_maker::background_of(const record_job& what, std::int64_t length) const {
  std::seed_seq mixed{static_cast<std::uint32_t>(options_.seed), static_cast<std::uint32_t>(what.index),
                      static_cast<std::uint32_t>(what.length),
                      static_cast<std::uint32_t>(task_kind_from(what.kind))};
  std::mt19937_64 random(mixed);
  const std::int64_t first = 256, end = length - 1 - options_.tau;
  std::set<std::int64_t> chosen;
  for (std::int64_t i = 0; i < options_.background && first < end; ++i)
    chosen.insert(first + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end - first)));
  return {chosen.begin(), chosen.end()};
}

/// Every token that lies in the window of a query.
std::vector<std::int64_t> document_maker::windows_of(const std::vector<std::int64_t>& queries,
                                                     std::int64_t tokens) const {
  std::vector<std::int64_t> all;
  std::int64_t next = 0;
  for (const std::int64_t t : queries)
    for (next = std::max(next, t + 1); next <= t + options_.tau && next < tokens; ++next) all.push_back(next);
  return all;
}

/// Every question's end, as many tokens of answers as half the queries, and the end of every chunk; at least
/// one token follows each.
std::vector<std::int64_t> document_maker::queries_of(const record_job& what, const session& made) const {
  constexpr std::int64_t chunk = 64, first = 4 * chunk - 1;
  draw random({low_half(options_.seed), high_half(options_.seed), 0x71756572,
               static_cast<std::uint32_t>(what.length), static_cast<std::uint32_t>(what.index)});
  std::set<std::int64_t> chosen;
  std::vector<std::int64_t> inside;
  for (const session::answer& a : made.answers) {
    if (a.begin >= first && a.begin + 1 < what.length) chosen.insert(a.begin);
    for (std::int64_t t = std::max(a.begin + 1, first); t < std::min(a.end, what.length - 1); ++t)
      inside.push_back(t);
  }
  const auto wanted = static_cast<std::size_t>(options_.session_queries * what.length / 2048);
  for (const std::size_t i : random.sample(inside.size(), std::min(wanted, inside.size())))
    chosen.insert(inside[i]);
  for (std::int64_t t = first; t + 1 < what.length; t += chunk) chosen.insert(t);
  return {chosen.begin(), chosen.end()};
}

}  // namespace tinylm
