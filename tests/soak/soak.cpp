// SPDX-License-Identifier: MIT
// Churn over store and selector with a shadow of every entry, over media that fail and tiers that are late. Prints what
// it did; exit status 1 and a seed when something was wrong.
#include <chrono>
#include <cstdio>
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/select/selector.hpp>
#include <random>
#include <set>

#include "tests/support/late_tier.hpp"

using namespace store_testing;
using fm::status;

namespace {

using ids = std::vector<fm::chunk_id>;

struct totals {
  std::int64_t epochs = 0, steps = 0, checked_chunks = 0, injected = 0, refused = 0, failed_calls = 0;
  std::int64_t unreadable = 0, bad = 0, retries = 0, late = 0;
};

[[noreturn]] void wrong(std::uint64_t seed, std::int64_t step, const char* what,
                        const std::string& more = {}) {
  std::printf("WRONG with seed %llu at step %lld: %s %s\n", static_cast<unsigned long long>(seed),
              static_cast<long long>(step), what, more.c_str());
  std::exit(1);
}

/// A medium that refuses, tears and changes what passes through it, at a rate.
class rotten final : public fm::backing_store {
 public:
  rotten(std::unique_ptr<fm::backing_store> inner, std::uint64_t seed)
      : random(seed), inner_(std::move(inner)) {}
  status write(std::int64_t r, std::size_t at, const void* data, std::size_t n, int* e) noexcept override {
    if (!hit()) return inner_->write(r, at, data, n, e);
    (void)inner_->write(r, at, data, n / 2, e);
    *e = random() % 2 ? 28 : 5;
    return status::io_error;
  }
  status read(std::int64_t r, std::size_t at, void* data, std::size_t n, int* e) const noexcept override {
    if (!hit()) return inner_->read(r, at, data, n, e);
    *e = 5;
    if (random() % 2) return status::io_error;
    const status code = inner_->read(r, at, data, n, e);
    static_cast<unsigned char*>(data)[random() % n] ^= static_cast<unsigned char>(1u << random() % 8);
    return code;
  }
  bool needs_verification() const noexcept override { return true; }

  mutable std::mt19937_64 random;
  unsigned per_thousand = 0;
  mutable std::int64_t injected = 0;

 private:
  bool hit() const noexcept {
    const bool now = random() % 1000 < per_thousand;
    injected += now;
    return now;
  }
  std::unique_ptr<fm::backing_store> inner_;
};

class epoch {
 public:
  epoch(std::uint64_t seed, totals* sum) : seed_(seed), random_(seed), sum_(*sum) {
    options_ = small_options();
    options_.geometry.index_keys.lanes = 0;
    options_.geometry.layers = std::int32_t(1 + below(3));
    options_.fast_bytes = std::size_t(1 + below(8)) << 16;
    options_.max_sequences = 12;
    options_.transition_chunks = below(2) ? 0 : 4 + std::int64_t(below(8));
    options_.scrub = below(2);
    const auto bytes = fm::chunk_layout(options_.geometry).chunk_bytes();
    const auto records = std::int64_t(options_.backing_bytes / bytes);
    auto inner = below(3) ? fm::make_ram_backing(records, bytes, fm::default_memory())
                          : fm::make_file_backing(path_.string(), records, bytes);
    auto medium = std::make_unique<rotten>(std::move(inner), seed ^ 77);
    medium_ = medium.get();
    is_late_ = below(2);
    store_ = is_late_ ? late_store(options_, &late_, std::move(medium))
                      : std::make_unique<fm::tiered_chunk_store>(options_, std::move(medium));
    empty_ = store_->usage();
    policy_.interval = std::int32_t(2 + below(20));
    policy_.sink_chunks = std::int32_t(below(3));
    policy_.recent_chunks = std::int32_t(below(4));
    policy_.budget_fraction = 0.1 + 0.1 * double(below(4));
    policy_.hysteresis = below(2) ? 0.1f : 0.0f;
    fm::selector_options o;
    o.max_sequences = 12;
    o.apply = below(2) ? fm::apply_mode::overlapped : fm::apply_mode::at_once;
    o.late = fm::late_policy(below(3));
    o.concurrent_recalls = std::int32_t(1 + below(3));
    o.threads = fm::serial_threads();
    select_ = std::make_unique<fm::selector>(*store_, index_, policy_, o);
  }

  void run(std::int64_t steps) {
    medium_->per_thousand = below(4) ? unsigned(1 + below(40)) : 0;
    for (step_ = 0; step_ < steps; ++step_) {
      late_.hold = below(3) != 0;
      late_.time_out = below(5) == 0;
      late_.outcome = below(12) == 0 ? status::cuda_error : status::ok;
      one();
      ++sum_.steps;
      const fm::store_counters c = store_->counters();
      if (c.selected != c.hits + c.recalled + c.refused) bad("selected = hits + recalled + refused");
      const fm::store_usage u = store_->usage();
      if (u.fast_bytes > u.fast_budget_bytes || u.backing_bytes > u.backing_reserved_bytes)
        bad("a budget is passed");
    }
    end();
  }

 private:
  struct served {
    engine_sequence s;
    fm::sequence_options options;
  };

  std::uint64_t below(std::uint64_t n) { return random_() % n; }
  [[noreturn]] void bad(const char* what, const std::string& more = {}) { wrong(seed_, step_, what, more); }
  fm::sequence_options wanted() { return fm::sequence_options_for(policy_, options_.geometry, 400, 8); }

  /// What an error leaves behind is what was there before.
  void failed(const char* call, status code, const engine_sequence& s, const snapshot* before) {
    const bool faulty = code == status::io_error || code == status::corrupt_chunk ||
                        (is_late_ && (code == status::cuda_error || code == status::timed_out));
    if (!faulty && code != status::budget_exceeded && code != status::out_of_order)
      bad(call, fm::describe(store_->last_fault()));
    ++sum_.failed_calls;
    if (before && !(snapshot(*store_, s) == *before)) bad("a call that failed has changed something:", call);
  }
  void check(const engine_sequence& s) {
    if (!resident_bytes_right(*store_, s)) bad("a resident chunk has wrong bytes");
    sum_.checked_chunks += std::int64_t(resident_ids(*store_, s).size());
  }

  void one() {
    const std::uint64_t what = below(20);
    if (all_.size() < 2 || (what == 0 && all_.size() < 8)) return open_one();
    const std::size_t at = below(all_.size());
    engine_sequence& s = all_[at].s;
    ids some;
    for (std::int64_t c = 0; c < s.tokens / 4; ++c)
      if (below(6) == 0) some.push_back(fm::chunk_id(c));
    const fm::view<const fm::chunk_id, 1> list(some.data(), some.size());
    switch (what) {
      case 1:
        if (below(2)) select_->detach(s.handle);
        if (store_->close(s.handle) != status::ok) bad("close()");
        all_.erase(all_.begin() + std::ptrdiff_t(at));
        return;
      case 2:
        return fork_one(s);
      case 3:
        return shorten(s);
      case 4: {
        const status code = recall(*store_, s, some);
        if (code != status::ok) failed("recall()", code, s, nullptr);
        break;
      }
      case 5:
        if (const status code = store_->start_recall(s.handle, list, nullptr, host); code != status::ok)
          failed("start_recall()", code, s, nullptr);
        break;
      case 6:
        (void)store_->finish_recall(s.handle, fm::late_policy(below(3)), nullptr, host);
        break;
      default:
        return decode();
    }
    check(s);
  }

  void open_one() {
    try {
      served made;
      made.options = wanted();
      made.s = open(*store_, made.options);
      select_->attach(made.s.handle);
      all_.push_back(std::move(made));
    } catch (const fm::admission_error&) {
      ++sum_.refused;
      if (!all_.empty()) {
        if (store_->close(all_.back().s.handle) != status::ok) bad("close()");
        all_.pop_back();
      }
    }
  }

  void fork_one(const engine_sequence& parent) {
    if (all_.size() >= 8) return;
    served child;
    child.options = wanted();
    child.s = parent;
    try {
      child.s.handle = store_->fork(parent.handle, child.options);
    } catch (const fm::admission_error&) {
      ++sum_.refused;
      return;
    } catch (const fm::error& e) {
      failed("fork()", e.code(), parent, nullptr);
      return;
    }
    select_->attach_fork(parent.handle, child.s.handle);
    check(child.s);
    all_.push_back(std::move(child));
  }

  void shorten(engine_sequence& s) {
    const auto to = std::int64_t(below(std::uint64_t(s.tokens) + 1));
    const snapshot before(*store_, s);
    const status code = store_->truncate(s.handle, to);
    if (code != status::ok) return failed("truncate()", code, s, &before);
    s.tokens = to;
    s.tags.resize(std::size_t(to));
    check(s);
  }

  /// One forward pass of some sequences, and the selector's call behind it.
  void decode() {
    std::vector<fm::batch_item> items;
    std::vector<std::size_t> who;
    std::vector<std::uint64_t> tags;
    for (std::size_t i = 0; i < all_.size(); ++i) {
      const engine_sequence& s = all_[i].s;
      const auto n = std::int64_t(1 + below(below(6) == 0 ? 40 : 3));
      if (below(2) || s.tokens + n > 400) continue;
      items.push_back({s.handle, s.tokens, std::int32_t(n)});
      who.push_back(i);
      const auto more = new_tags(options_.geometry, s, n, random_());
      tags.insert(tags.end(), more.begin(), more.end());
    }
    if (items.empty()) return;
    std::vector<snapshot> before;
    for (const std::size_t i : who) before.emplace_back(*store_, all_[i].s);
    const fm::batch batch(items.data(), items.size());
    for (std::int32_t layer = 0; layer < options_.geometry.layers; ++layer) {
      const made_rows rows = make_rows(options_.geometry, tags, layer);
      const status code = store_->append(batch, layer, rows.k_view, rows.v_view, host);
      if (code == status::ok) continue;
      for (std::size_t i = 0; layer == 0 && i < who.size(); ++i)
        failed("append()", code, all_[who[i]].s, &before[i]);
      if (layer == 0 && medium_->injected == 0 && code != status::budget_exceeded)
        bad("append() without a fault");
      for (const fm::batch_item& item : items)  // the pass is given up
        while (layer > 0 && store_->truncate(item.sequence, item.position) != status::ok)
          medium_->per_thousand = 0;
      for (const std::size_t i : who) check(all_[i].s);
      return;
    }
    std::size_t from = 0;
    for (std::size_t k = 0; k < who.size(); ++k) {
      engine_sequence& s = all_[who[k]].s;
      const auto n = std::size_t(items[k].num_tokens);
      s.tags.insert(s.tags.end(), tags.begin() + std::ptrdiff_t(from),
                    tags.begin() + std::ptrdiff_t(from + n));
      s.tokens += items[k].num_tokens;
      from += n;
    }
    const status code = fm::select_chunks(*select_, batch, host);
    if (code != status::ok && code != status::io_error && code != status::corrupt_chunk &&
        !(is_late_ && (code == status::cuda_error || code == status::timed_out)))
      bad("select_chunks()", fm::describe(select_->last_fault()));
    for (const std::size_t i : who) check(all_[i].s);
  }

  /// Without faults every chunk is there, byte for byte, and nothing is left when all is closed.
  void end() {
    sum_.injected += medium_->injected;
    medium_->per_thousand = 0;
    late_ = {};
    late_.hold = false;
    const fm::store_counters c = store_->counters();
    sum_.unreadable += c.chunks_unreadable;
    sum_.bad += c.chunks_bad;
    sum_.late += c.recalls_late;
    sum_.retries += c.read_retries;
    for (const served& each : all_)
      if (!all_chunks_right(*store_, each.s)) bad("a chunk has wrong bytes at the end");
    select_.reset();
    for (const served& each : all_) {
      if (info(*store_, each.s).pending_chunks != 0 && store_->cancel_recall(each.s.handle) != status::ok)
        bad("cancel");
      if (store_->close(each.s.handle) != status::ok) bad("close() at the end");
    }
    const fm::store_usage u = store_->usage();
    if (u.sequences != 0 || u.backing_bytes != 0 || u.backing_reserved_bytes != 0)
      bad("something is left in the backing store");
    if (!is_late_ && u.fast_bytes != empty_.fast_bytes) bad("something is left in the fast tier");
    ++sum_.epochs;
  }

  std::uint64_t seed_;
  std::mt19937_64 random_;
  totals& sum_;
  std::int64_t step_ = 0;
  fm::store_options options_;
  temporary_path path_;
  late_switches late_;
  bool is_late_ = false;
  rotten* medium_ = nullptr;
  std::unique_ptr<fm::tiered_chunk_store> store_;
  fm::store_usage empty_;
  fm::selection_policy policy_;
  fm::random_indexer index_{5};
  std::unique_ptr<fm::selector> select_;
  std::vector<served> all_;
};

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device()();
  std::printf("seed %llu, %g seconds\n", static_cast<unsigned long long>(seed), seconds);
  std::fflush(stdout);
  totals sum;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  // A failing epoch is repeated alone by its own seed.
  for (std::uint64_t n = 0; std::chrono::steady_clock::now() < end; ++n) epoch(seed + n, &sum).run(1500);
  std::printf(
      "%lld epochs, %lld steps, %lld chunks checked; %lld faults injected, %lld calls failed, %lld "
      "admissions refused, "
      "%lld chunks unreadable, %lld bad, %lld reads tried again, %lld recalls late: all right\n",
      static_cast<long long>(sum.epochs), static_cast<long long>(sum.steps),
      static_cast<long long>(sum.checked_chunks), static_cast<long long>(sum.injected),
      static_cast<long long>(sum.failed_calls), static_cast<long long>(sum.refused),
      static_cast<long long>(sum.unreadable), static_cast<long long>(sum.bad),
      static_cast<long long>(sum.retries), static_cast<long long>(sum.late));
  return 0;
}
