// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cmath>
#include <flashmemory/error.hpp>
#include <functional>
#include <utility>

#include "src/core/format.hpp"
#include "src/core/parallel.hpp"
#include "src/train/learn/trainer_impl.hpp"

namespace flashmemory {
inline namespace v0 {
namespace train {
namespace {

// Multiply-adds as 2 flop: key encoder, scores, the encoder of queries, each with its backward pass. What only
// touches the best keys is not counted.
double flop_of(const detail::encoder_shape& s, std::int64_t keys, std::int64_t windows) noexcept {
  const double width = static_cast<double>(s.heads * index_key_dim);
  const double n = static_cast<double>(windows);
  const double k = static_cast<double>(keys);
  const double hidden = static_cast<double>(s.hidden);
  const double rank = static_cast<double>(s.rank);
  const double encode = s.trains_keys ? 2 * k * index_key_dim * hidden * 2 : 0;
  return encode + 2 * k * n * width + 2 * n * rank * (hidden * 2 + width * 3);
}

}  // namespace

void validate(const trainer_options& o) {
  validate(o.labels);
  validate(o.windows);
  validate(o.loss);
  const auto need = [](bool good, const char* field, auto value, const char* wanted) {
    if (good) return;
    throw argument_error(status::bad_argument,
                         formatted("trainer: {} is {}, expected {}", field, value, wanted));
  };
  const optimiser_options& a = o.optimiser;
  need(std::isfinite(a.rate) && a.rate > 0, "rate", a.rate, "a number > 0");
  need(a.final_rate >= 0 && a.final_rate <= 1, "final_rate", a.final_rate, "0 to 1");
  need(a.warm_up >= 0, "warm_up", a.warm_up, "steps >= 0");
  need(a.beta1 >= 0 && a.beta1 < 1, "beta1", a.beta1, "0 to below 1");
  need(a.beta2 >= 0 && a.beta2 < 1, "beta2", a.beta2, "0 to below 1");
  need(a.eps > 0, "eps", a.eps, "a number > 0");
  need(std::isfinite(a.decay) && a.decay >= 0, "decay", a.decay, "a number >= 0");
  need(std::isfinite(a.clip) && a.clip >= 0, "clip", a.clip, "a number >= 0");
  need(o.layer_steps >= 0, "layer_steps", o.layer_steps, "steps >= 0");
  need(o.ensemble_steps >= 0, "ensemble_steps", o.ensemble_steps, "steps >= 0");
  need(o.layer_steps + o.ensemble_steps > 0, "layer_steps + ensemble_steps", 0, "at least one step");
  need(std::isfinite(o.ensemble_rate) && o.ensemble_rate > 0, "ensemble_rate", o.ensemble_rate,
       "a number > 0");
  need(o.tokens_per_step > 0, "tokens_per_step", o.tokens_per_step, "a positive number");
  need(o.windows_per_document > 0 && o.windows_per_document <= 65536, "windows_per_document",
       o.windows_per_document, "1 to 65536");
  need(o.needing_share <= 1, "needing_share", o.needing_share, "at most 1");
  need(std::isfinite(o.window_weight_free) && o.window_weight_free >= 0, "window_weight_free",
       o.window_weight_free, "a number >= 0");
}

trainer::impl::impl(const document_source& from, const dual_encoder_config& start, trainer_options o)
    : source(from),
      options((validate(o), std::move(o))),
      model(start, source.geometry(),
            std::int64_t{options.windows.entries_per_chunk} * options.windows.tokens_per_entry),
      examples(source, options.labels, options.windows, options.memory_budget),
      documents(source, options.seed) {
  if (model.config.combine != ensemble::max && options.ensemble_steps > 0) {
    throw argument_error(status::unsupported,
                         "trainer: only an ensemble of maxima can be trained as a whole");
  }
  if (model.config.reduce != key_reduction::max) {
    throw argument_error(status::unsupported,
                         "trainer: only chunk scores that are maxima of keys can be trained");
  }
  backend_setup setup;
  setup.shape = model.shape;
  setup.shape.operands = options.operands;
  setup.query = model.taps.query;
  setup.stream = model.taps.stream;
  setup.keys_per_chunk = model.taps.keys_per_chunk;
  setup.threads = options.threads;
  backend = options.backend ? options.backend(setup) : make_cpu_backend(setup);
  training_state state;
  state.parameters = std::move(model.parameters);
  backend->write(state);
}

void trainer::impl::count(const std::vector<detail::target>& targets, const float* combined) {
  const std::size_t windows = targets.size();
  struct counts {
    std::int64_t kept = 0, recalled = 0;
  };
  std::vector<counts> all(windows);
  flashmemory::detail::parallel_for(options.threads, static_cast<std::int32_t>(windows), [&](std::int32_t i) {
    const auto w = static_cast<std::size_t>(i);
    const window_labels& labels = *targets[w].labels;
    const auto score = [&](std::int64_t chunk) {
      return combined[static_cast<std::size_t>(chunk) * windows + w];
    };
    std::vector<float> sorted;
    for (std::int64_t c = labels.first_candidate; c < labels.end_candidate; ++c) {
      sorted.push_back(score(c));
      if (score(c) > 0) ++all[w].kept;
    }
    if (labels.positives.empty()) return;
    const auto budget = std::clamp<std::int64_t>(labels.complete_chunks / 10, 1, labels.candidates());
    std::nth_element(sorted.begin(), sorted.begin() + budget - 1, sorted.end(), std::greater<>());
    const float least = sorted[static_cast<std::size_t>(budget - 1)];
    for (const positive_chunk& p : labels.positives) {
      if (score(p.chunk) >= least) ++all[w].recalled;
    }
  });
  for (std::size_t w = 0; w < windows; ++w) {
    candidates += targets[w].labels->candidates();
    positives += static_cast<std::int64_t>(targets[w].labels->positives.size());
    kept += all[w].kept;
    recalled += all[w].recalled;
  }
}

void trainer::impl::learn(const std::shared_ptr<const detail::example>& source_of,
                          const std::vector<std::int64_t>& windows, bool ensemble, std::uint64_t seed,
                          step_report& report) {
  const detail::example& from = *source_of;
  std::vector<detail::target> targets;
  for (const std::int64_t w : windows) {
    const window_labels& labels = from.labels[static_cast<std::size_t>(w)];
    targets.push_back({&labels, labels.positives.empty() ? options.window_weight_free : 1});
  }
  training_batch batch = detail::batch_of(model.taps, from, windows);
  batch.source = source_of;
  const std::size_t pairs = static_cast<std::size_t>(batch.chunks) * windows.size();
  const auto retrievers = static_cast<std::size_t>(model.retrievers());
  scores.resize(retrievers * pairs);
  d_scores.resize(retrievers * pairs);
  backend->forward(batch, scores.data());
  flop += static_cast<double>(retrievers) *
          flop_of(model.shape, batch.chunks * model.taps.keys_per_chunk, batch.windows());
  best.assign(pairs, -INFINITY);
  for (std::size_t r = 0; r < retrievers; ++r) {
    for (std::size_t i = 0; i < pairs; ++i) best[i] = std::max(best[i], scores[r * pairs + i]);
  }
  double loss = 0;
  if (ensemble) {
    d_best.resize(pairs);
    loss = detail::loss_and_gradient(options.loss, batch.chunks, targets, best.data(), seed, d_best.data(),
                                     options.threads);
    // The first retriever that reaches the maximum takes the gradient.
    std::vector<char> taken(pairs, 0);
    for (std::size_t r = 0; r < retrievers; ++r) {
      for (std::size_t i = 0; i < pairs; ++i) {
        const bool mine = !taken[i] && scores[r * pairs + i] == best[i];
        d_scores[r * pairs + i] = mine ? d_best[i] : 0;
        taken[i] = static_cast<char>(taken[i] | static_cast<char>(mine));
      }
    }
  } else {
    for (std::size_t r = 0; r < retrievers; ++r) {
      loss += detail::loss_and_gradient(options.loss, batch.chunks, targets, scores.data() + r * pairs, seed,
                                        d_scores.data() + r * pairs, options.threads) /
              static_cast<double>(retrievers);
    }
  }
  // NaN can hide behind a maximum of others.
  const auto finite = [](float z) { return std::isfinite(z); };
  if (!std::all_of(scores.begin(), scores.end(), finite)) loss = std::nan("");
  if (!std::isfinite(loss)) {
    throw error(status::not_finite,
                formatted("trainer: step {}: document '{}': the loss is {}", step + 1, from.name, loss));
  }
  backend->backward(batch, d_scores.data());
  report.loss += loss;
  count(targets, best.data());
}

trainer::trainer(const document_source& source, dual_encoder_config start, trainer_options options)
    : impl_(std::make_unique<impl>(source, start, std::move(options))) {}

trainer::~trainer() = default;

step_report trainer::step() {
  impl& t = *impl_;
  if (done()) throw argument_error(status::out_of_range, "trainer: all steps have been made");
  const auto begin = std::chrono::steady_clock::now();
  const std::int64_t drawn_before = t.documents.drawn;
  const bool ensemble = t.step >= t.options.layer_steps;
  step_report report;
  t.flop = 0;
  t.recalled = t.positives = t.kept = t.candidates = 0;
  detail::random_stream random(t.options.seed, static_cast<std::uint64_t>(t.step));
  std::int64_t tokens = 0;
  std::int64_t used = 0;
  std::string names;
  try {
    t.backend->clear_gradient();
    std::int64_t barren = 0;
    while (tokens < t.options.tokens_per_step) {
      const auto example = t.examples.get(t.documents.draw_document());
      const std::vector<std::int64_t> windows = detail::sampler::draw_windows(
          *example, t.options.windows_per_document, t.options.needing_share, random);
      if (windows.empty()) {
        if (++barren < static_cast<std::int64_t>(t.documents.documents().size())) continue;
        throw argument_error(status::bad_argument,
                             formatted("trainer: no window of {} training documents has a chunk to choose",
                                       t.documents.documents().size()));
      }
      barren = 0;
      t.learn(example, windows, ensemble, random.next(), report);
      tokens += example->tokens;
      ++used;
      names += formatted("{}'{}'", names.empty() ? "" : ", ", example->name);
    }
    report.loss /= static_cast<double>(used);
    const std::int64_t first = ensemble ? t.options.layer_steps : 0;
    report.rate = detail::rate_at(t.options.optimiser, t.step - first,
                                  ensemble ? t.options.ensemble_steps : t.options.layer_steps) *
                  (ensemble ? t.options.ensemble_rate : 1);
    report.gradient_norm =
        t.backend->update({t.options.optimiser, report.rate, 1 / static_cast<double>(used)});
    if (!std::isfinite(report.gradient_norm)) {
      throw error(status::not_finite, formatted("trainer: step {}: the gradient of {} is {}", t.step + 1,
                                                names, report.gradient_norm));
    }
  } catch (...) {
    t.documents.drawn = drawn_before;
    t.examples.clear();  // a document that was damaged in memory or read badly is read again
    throw;
  }
  ++t.step;
  report.step = t.step;
  report.steps = t.steps();
  report.ensemble = ensemble;
  report.recall = t.positives > 0 ? static_cast<double>(t.recalled) / static_cast<double>(t.positives) : 1;
  report.kept = t.candidates > 0 ? static_cast<double>(t.kept) / static_cast<double>(t.candidates) : 0;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  report.gflops = t.flop / report.seconds * 1e-9;
  return report;
}

bool trainer::done() const noexcept { return impl_->step >= impl_->steps(); }

std::int64_t trainer::steps_done() const noexcept { return impl_->step; }

void trainer::run(const std::function<bool(const step_report&)>& progress, const std::string& checkpoint,
                  std::int64_t every) {
  while (!done()) {
    const step_report report = step();
    const bool go_on = !progress || progress(report);
    if (!checkpoint.empty() && (!go_on || done() || (every > 0 && report.step % every == 0))) {
      save_checkpoint(checkpoint);
    }
    if (!go_on) return;
  }
}

dual_encoder_config trainer::config() const {
  return impl_->model.to_config(impl_->backend->read().parameters);
}

const std::string& trainer::start() const noexcept { return impl_->options.start; }

std::string trainer::describe() const { return detail::describe_run(impl_->options, impl_->model.config); }

std::size_t trainer::peak_document_bytes() const noexcept { return impl_->examples.peak_bytes(); }

}  // namespace train
}  // namespace v0
}  // namespace flashmemory
