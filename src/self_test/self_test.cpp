// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <flashmemory/attend/sparse_attend.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/self_test.hpp>
#include <limits>
#include <vector>

#include "src/core/format.hpp"
#include "src/select/stopwatch.hpp"
#include "src/self_test/probe.hpp"

namespace flashmemory {
inline namespace v0 {

using detail::planted_model;
using detail::probe_indexer;

const char* to_string(self_check check) noexcept {
  switch (check) {
    case self_check::none:
      return "none";
    case self_check::call:
      return "call";
    case self_check::index_keys:
      return "index_keys";
    case self_check::always:
      return "always";
    case self_check::selected:
      return "selected";
    case self_check::set_size:
      return "set_size";
    case self_check::needle:
      return "needle";
    case self_check::attention:
      return "attention";
  }
  return "?";
}

std::string describe(const self_test_report& r) {
  if (r.passed())
    return formatted("self test passed: {} checks at {} lengths in {:.2f} s", r.checks, r.lengths, r.seconds);
  std::string text = formatted("self test failed: {} at length {}", to_string(r.failed), r.length);
  if (r.chunk >= 0) text += formatted(", chunk {}", r.chunk);
  if (r.layer >= 0) text += formatted(", layer {}", r.layer);
  if (r.failed == self_check::call) return text + ": " + describe(r.why);
  return text + formatted(": expected {:g}, got {:g}", r.expected, r.got);
}

tested_step::~tested_step() = default;

status tested_step::observe(selector& select, batch items, std::int32_t layer,
                            view<const float, 2> hidden) noexcept {
  return select.observe(items, layer, hidden, stream_ref::host());
}
status tested_step::append(chunk_store& store, batch items, std::int32_t layer, view<const float, 3> k,
                           view<const float, 3> v) noexcept {
  return store.append(items, layer, k, v, stream_ref::host());
}
status tested_step::select(selector& select, batch items) noexcept {
  return select_chunks(select, items, stream_ref::host());
}
status tested_step::attend(chunk_store& store, batch items, std::int32_t layer, view<const float, 3> q,
                           view<const float, 1> sinks, bool everything, workspace scratch, view<float, 3> out,
                           view<float, 2> lse) noexcept {
  attend_options options;
  options.sink_logits = sinks;
  options.lse = lse;
  options.reach = everything ? attend_reach::everything : attend_reach::resident;
  options.scratch = scratch;
  return sparse_attend(store, items, layer, q, out, options, stream_ref::host());
}

namespace {

/// Chunks before the first short piece of a prompt.
constexpr std::int64_t base_chunks = 4;
/// That the probe's policy selects besides those that are always there.
constexpr std::int64_t selected_chunks = 2;

void check_options(const kv_geometry& g, const self_test_options& o) {
  if (g.format != kv_format::separate)
    throw error(status::unsupported, "self_test: plants separate K and V, not entries of DeepSeek-V4");
  if (o.query_heads < 1 || o.query_heads % g.kv_heads != 0)
    throw argument_error(status::bad_argument,
                         formatted("self_test: query_heads is {}, no multiple of the store's {} KV heads",
                                   o.query_heads, g.kv_heads));
  if (o.lengths < 0 || o.lengths > (std::int64_t{1} << 24))
    throw argument_error(status::bad_argument,
                         formatted("self_test: lengths is {}, not 0 to 16777216", o.lengths));
  if (o.sink_chunks < 0 || o.recent_chunks < 0)
    throw argument_error(status::bad_argument, "self_test: sink_chunks or recent_chunks is negative");
  if (!(o.tolerance > 0)) throw argument_error(status::bad_argument, "self_test: tolerance is not above 0");
}

/// One run over one store.
class player {
 public:
  player(chunk_store& store, const self_test_options& options, tested_step& step)
      : store_(store),
        g_(store.geometry()),
        o_(options),
        step_(step),
        model_(g_, options.query_heads, options.seed),
        probe_(g_, model_),
        policy_(policy_of()),
        select_(store, probe_, policy_, selector_of()) {
    const std::int64_t most = piece_tokens();
    prompt_extent prompts;
    prompts.rows = most;
    prompts.streamed = true;
    prompts.concurrency = 1;
    const std::int64_t tokens = self_test_tokens(g_, o_);
    scratch_.resize(attend_workspace_bytes(g_, o_.query_heads, 1, g_.chunks_for(tokens), prompts));
    hidden_.resize(static_cast<std::size_t>(most * planted_model::hidden_width));
    k_.resize(static_cast<std::size_t>(most * g_.kv_heads * g_.key_dim));
    v_.resize(static_cast<std::size_t>(most * g_.kv_heads * g_.value_dim));
    q_.resize(static_cast<std::size_t>(most * o_.query_heads * g_.key_dim));
    out_.resize(static_cast<std::size_t>(most * o_.query_heads * g_.value_dim));
    lse_.resize(static_cast<std::size_t>(most * o_.query_heads));
    for (std::int32_t h = 0; h < o_.query_heads; ++h) sinks_.push_back(model_.sink(h));
    sequence_ = store_.open(sequence_options_for(policy_, g_, tokens));
    try {
      select_.attach(sequence_);
    } catch (...) {
      static_cast<void>(store_.close(sequence_));
      throw;
    }
  }
  ~player() {
    select_.detach(sequence_);
    static_cast<void>(store_.close(sequence_));
  }
  player(const player&) = delete;
  player& operator=(const player&) = delete;

  self_test_report run() {
    play();
    report_.seconds = watch_.seconds();
    return report_;
  }

 private:
  std::int64_t chunk_tokens() const noexcept { return g_.tokens_per_chunk(); }
  /// Pieces are that long, but for the last ones of prompts.
  std::int64_t piece_tokens() const noexcept { return 2 * chunk_tokens(); }

  selection_policy policy_of() const {
    selection_policy p;
    p.interval = 1;
    p.sink_chunks = o_.sink_chunks;
    p.recent_chunks = o_.recent_chunks;
    p.budget_fraction = 0;
    p.max_chunks = budget();
    return p;
  }
  selector_options selector_of() const {
    selector_options s;
    s.max_sequences = 1;
    s.stagger = false;
    s.max_rollback_tokens = static_cast<std::int32_t>(chunk_tokens() + 1);
    s.threads = serial_threads();
    return s;
  }
  std::int64_t budget() const noexcept {
    return std::int64_t{o_.sink_chunks} + o_.recent_chunks + selected_chunks;
  }

  bool fail(self_check check, std::int64_t chunk, std::int64_t layer, double expected, double got) noexcept {
    report_.failed = check;
    report_.length = tokens_;
    report_.chunk = chunk;
    report_.layer = layer;
    report_.expected = expected;
    report_.got = got;
    return false;
  }
  bool called(status code, std::int64_t layer) noexcept {
    if (code == status::ok) return true;
    report_.why = store_.last_fault();
    if (report_.why.code != code) report_.why = select_.last_fault();
    if (report_.why.code != code) {
      report_.why = fault{};
      report_.why.code = code;
    }
    return fail(self_check::call, -1, layer, 0, 0);
  }

  void play() {
    // A prompt in pieces, and its last piece at every length.
    for (std::int64_t at = 0; at < base_chunks * chunk_tokens(); at += piece_tokens())
      if (!pass(piece_tokens(), item_phase::prompt)) return;
    if (o_.prompts)
      for (std::int64_t last = 1; last <= chunk_tokens(); ++last) {
        if (!pass(last, item_phase::prompt_end) || !pass(1, item_phase::decode)) return;
        const std::int64_t back = base_chunks * chunk_tokens();
        if (!called(store_.truncate(sequence_, back), -1)) return;
        probe_.went_back(back);
        tokens_ = back;
      }
    if (!pass(1, item_phase::prompt_end)) return;
    for (std::int64_t i = 0; i < o_.lengths; ++i)
      if (!pass(1, item_phase::decode)) return;
  }

  /// The next `count` tokens, and everything that is to hold after them.
  bool pass(std::int64_t count, item_phase phase) {
    const batch_item item{sequence_, tokens_, static_cast<std::int32_t>(count), phase};
    const batch items(&item, 1);
    const std::int64_t first = g_.entries_for(tokens_), entries = g_.entries_for(tokens_ + count) - first;
    // By turns the newest token asks for what was wanted before, and looks at everything a little.
    const bool asks = phase == item_phase::decode && wanted_ >= 0 && tokens_ % 2 == 0;
    for (std::int32_t layer = 0; layer < g_.layers; ++layer) {
      fill(layer, count, first, entries, asks);
      const view<const float, 2> hidden(hidden_.data(), count, planted_model::hidden_width);
      if (!called(step_.observe(select_, items, layer, hidden), layer)) return false;
      if (!called(step_.append(store_, items, layer,
                               view<const float, 3>(k_.data(), entries, g_.kv_heads, g_.key_dim),
                               view<const float, 3>(v_.data(), entries, g_.kv_heads, g_.value_dim)),
                  layer))
        return false;
      const view<float, 3> out(out_.data(), count, o_.query_heads, g_.value_dim);
      const view<float, 2> lse(lse_.data(), count, o_.query_heads);
      std::fill(out_.begin(), out_.end(), std::numeric_limits<float>::quiet_NaN());
      if (!called(step_.attend(store_, items, layer,
                               view<const float, 3>(q_.data(), count, o_.query_heads, g_.key_dim),
                               view<const float, 1>(sinks_.data(), o_.query_heads),
                               phase != item_phase::decode, {scratch_.data(), scratch_.size()}, out, lse),
                  layer))
        return false;
      // Double arithmetic takes longer than all else: in decoding it checks one layer a step.
      const bool computed = phase != item_phase::decode || layer == tokens_ / 2 % g_.layers;
      if (asks && !finds_needle(layer)) return false;
      if (!asks && computed && !computes(layer, tokens_ + count, count - 1, phase != item_phase::decode))
        return false;
    }
    tokens_ += count;
    const std::int64_t complete = tokens_ / chunk_tokens();
    wanted_ = complete > 0 ? tokens_ * 7 % complete : -1;
    probe_.wanted = wanted_;
    probe_.second = complete > 1 ? (wanted_ + 1 + tokens_ % (complete - 1)) % complete : -1;
    if (!called(step_.select(select_, items), -1)) return false;
    ++report_.lengths;
    return phase == item_phase::prompt || chose(complete);
  }

  void fill(std::int32_t layer, std::int64_t count, std::int64_t first, std::int64_t entries, bool asks) {
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t i = 0; i < planted_model::hidden_width; ++i)
        hidden_[static_cast<std::size_t>(t * planted_model::hidden_width + i)] =
            model_.hidden(layer, tokens_ + t, i);
      for (std::int32_t h = 0; h < o_.query_heads; ++h) {
        float* const q = q_.data() + (t * o_.query_heads + h) * g_.key_dim;
        if (asks)
          model_.query_for(layer, wanted_, h, q);
        else
          model_.query(layer, tokens_ + t, h, q);
      }
    }
    for (std::int64_t e = 0; e < entries; ++e)
      for (std::int32_t h = 0; h < g_.kv_heads; ++h) {
        model_.key(layer, first + e, h, k_.data() + (e * g_.kv_heads + h) * g_.key_dim);
        model_.value(layer, first + e, h, v_.data() + (e * g_.kv_heads + h) * g_.value_dim);
      }
  }

  bool finds_needle(std::int32_t layer) {
    for (std::int32_t h = 0; h < o_.query_heads; ++h) {
      ++report_.checks;
      const double share = model_.share_of(layer, wanted_, h, out_.data() + h * g_.value_dim);
      if (!(share > 0.9)) return fail(self_check::needle, wanted_, layer, 1, share);
    }
    return true;
  }

  /// One head of one row, by double arithmetic over what is resident, or over everything.
  bool computes(std::int32_t layer, std::int64_t length, std::int64_t row, bool everything) {
    ++report_.checks;
    const auto head = static_cast<std::int32_t>((length + layer) % o_.query_heads);
    std::vector<std::int64_t> chunks;
    if (everything) {
      for (std::int64_t c = 0; c < g_.chunks_for(length); ++c) chunks.push_back(c);
    } else {
      resident_set set;
      if (!called(store_.resident(sequence_, layer, &set), layer)) return false;
      for (std::int64_t i = 0; i < set.count; ++i) chunks.push_back(set.chunks[i].id);
    }
    const float* const q = q_.data() + (row * o_.query_heads + head) * g_.key_dim;
    const double scale = 1 / std::sqrt(double{static_cast<float>(g_.key_dim)});
    row_.resize(static_cast<std::size_t>(std::max(g_.key_dim, g_.value_dim)));
    std::vector<double> logits, sum(static_cast<std::size_t>(g_.value_dim));
    std::vector<std::int64_t> seen;
    double most = sinks_[static_cast<std::size_t>(head)];
    for (const std::int64_t c : chunks)
      for (std::int64_t e = c * g_.entries_per_chunk;
           e < std::min((c + 1) * std::int64_t{g_.entries_per_chunk}, g_.entries_for(length)); ++e) {
        model_.key(layer, e, model_.kv_head(head), row_.data());
        double dot = 0;
        for (std::int32_t i = 0; i < g_.key_dim; ++i) dot += double{q[i]} * row_[static_cast<std::size_t>(i)];
        logits.push_back(dot * scale);
        seen.push_back(e);
        most = std::max(most, logits.back());
      }
    double denominator = std::exp(sinks_[static_cast<std::size_t>(head)] - most);
    for (std::size_t n = 0; n < seen.size(); ++n) {
      const double weight = std::exp(logits[n] - most);
      denominator += weight;
      model_.value(layer, seen[n], model_.kv_head(head), row_.data());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * row_[i];
    }
    const float* const out = out_.data() + (row * o_.query_heads + head) * g_.value_dim;
    for (std::size_t i = 0; i < sum.size(); ++i)
      if (!(std::abs(sum[i] / denominator - double{out[i]}) <= double{o_.tolerance}))
        return fail(self_check::attention, -1, layer, sum[i] / denominator, out[i]);
    const double lse = most + std::log(denominator),
                 got = lse_[static_cast<std::size_t>(row * o_.query_heads + head)];
    if (!(std::abs(lse - got) <= double{o_.tolerance} * std::max(1.0, std::abs(lse))))
      return fail(self_check::attention, -1, layer, lse, got);
    return true;
  }

  /// The set in force after select_chunks().
  bool chose(std::int64_t complete) {
    ++report_.checks;
    if (const auto& wrong = probe_.wrong(); wrong.lane >= 0)
      return fail(self_check::index_keys, wrong.key * g_.index_keys.tokens_per_key / chunk_tokens(),
                  wrong.lane, static_cast<double>(tokens_ / g_.index_keys.tokens_per_key),
                  static_cast<double>(wrong.key));
    resident_set set;
    if (!called(store_.resident(sequence_, 0, &set), -1)) return false;
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < set.count; ++i) ids.push_back(set.chunks[i].id);
    const auto there = [&](std::int64_t c) { return std::find(ids.begin(), ids.end(), c) != ids.end(); };
    for (std::int64_t c = 0; c < std::min<std::int64_t>(o_.sink_chunks, complete); ++c)
      if (!there(c)) return fail(self_check::always, c, -1, 1, 0);
    const std::int64_t begun = (g_.entries_for(tokens_) + g_.entries_per_chunk - 1) / g_.entries_per_chunk;
    for (std::int64_t c = std::max<std::int64_t>(0, complete - o_.recent_chunks); c < begun; ++c)
      if (!there(c)) return fail(self_check::always, c, -1, 1, 0);
    if (wanted_ >= 0 && !there(wanted_)) return fail(self_check::selected, wanted_, -1, 1, 0);
    const auto of_complete = static_cast<std::int64_t>(
        std::count_if(ids.begin(), ids.end(), [&](std::int64_t c) { return c < complete; }));
    if (of_complete != std::min(budget(), complete))
      return fail(self_check::set_size, -1, -1, static_cast<double>(std::min(budget(), complete)),
                  static_cast<double>(of_complete));
    return true;
  }

  detail::stopwatch watch_;
  chunk_store& store_;
  const kv_geometry g_;
  const self_test_options& o_;
  tested_step& step_;
  planted_model model_;
  probe_indexer probe_;
  selection_policy policy_;
  selector select_;
  sequence_handle sequence_;
  std::int64_t tokens_ = 0;
  std::int64_t wanted_ = -1;
  self_test_report report_;
  std::vector<std::byte> scratch_;
  std::vector<float> hidden_, k_, v_, q_, out_, lse_, sinks_, row_;
};

}  // namespace

std::int64_t self_test_tokens(const kv_geometry& geometry, const self_test_options& options) noexcept {
  return (base_chunks + 1) * geometry.tokens_per_chunk() + options.lengths + 2;
}

self_test_report self_test(chunk_store& store, const self_test_options& options, tested_step* step) {
  check_options(store.geometry(), options);
  tested_step own;
  return player(store, options, step ? *step : own).run();
}

}  // namespace v0
}  // namespace flashmemory
