// SPDX-License-Identifier: MIT
// Sequences of calls of a store and its selector, with arguments and faults of the medium made from the input. Whatever
// comes, a call that does not return ok has changed nothing, the counters add up, and nothing is left at the end.
#include <cstdlib>
#include <flashmemory/error.hpp>
#include <flashmemory/indexer/controls.hpp>
#include <flashmemory/select/selector.hpp>
#include <flashmemory/store/tiered_chunk_store.hpp>
#include <limits>
#include <memory>
#include <vector>

namespace fm = flashmemory;
using fm::status;

namespace {

void must(bool holds) {
  if (!holds) std::abort();
}

struct input {
  const std::uint8_t* at;
  std::size_t left;
  std::uint8_t byte() noexcept {
    if (left == 0) return 0;
    --left;
    return *at++;
  }
  std::int64_t below(std::int64_t n) noexcept { return byte() % n; }
  /// Mostly below n, now and then anything.
  std::int64_t odd(std::int64_t n) noexcept {
    constexpr std::int64_t ends[] = {-1, std::int64_t{1} << 31, std::numeric_limits<std::int64_t>::max(),
                                     std::numeric_limits<std::int64_t>::min()};
    return byte() % 16 == 0 ? ends[byte() % 4] : below(n);
  }
};

class medium final : public fm::backing_store {
 public:
  medium(std::unique_ptr<fm::backing_store> inner, input* from) : inner_(std::move(inner)), from_(*from) {}
  status write(std::int64_t r, std::size_t at, const void* data, std::size_t n, int* e) noexcept override {
    *e = 28;
    if (from_.byte() % 32 == 1) return status::io_error;
    return inner_->write(r, at, data, n, e);
  }
  status read(std::int64_t r, std::size_t at, void* data, std::size_t n, int* e) const noexcept override {
    *e = 5;
    const std::uint8_t what = from_.byte() % 16;
    if (what == 1) return status::io_error;
    const status code = inner_->read(r, at, data, n, e);
    if (what == 2) *static_cast<std::uint8_t*>(data) ^= 1;
    return code;
  }
  bool needs_verification() const noexcept override { return true; }

 private:
  std::unique_ptr<fm::backing_store> inner_;
  input& from_;
};

/// All that may not change under a call that fails.
struct state {
  std::int64_t tokens = -1, complete = 0, resident = 0;
  std::vector<fm::chunk_id> ids;
  std::vector<std::int32_t> entries;
  bool operator==(const state& o) const {
    return tokens == o.tokens && complete == o.complete && resident == o.resident && ids == o.ids &&
           entries == o.entries;
  }
};

state look(const fm::chunk_store& store, fm::sequence_handle h) {
  state s;
  fm::sequence_info i;
  if (!store.is_open(h) || store.info(h, &i) != status::ok) return s;
  s.tokens = i.tokens;
  s.complete = i.complete_chunks;
  s.resident = i.resident_chunks;
  must(i.bad_chunks == store.bad_chunks(h, {}) && i.bad_chunks <= i.complete_chunks);
  for (std::int32_t layer = 0; layer < store.geometry().layers; ++layer) {
    fm::resident_set set;
    must(store.resident(h, layer, &set) == status::ok);
    for (std::int64_t c = 0; c < set.count; ++c) {
      must(c == 0 || set.chunks[c].id > set.chunks[c - 1].id);
      s.ids.push_back(set.chunks[c].id);
      s.entries.push_back(set.chunks[c].entries);
      // Reads of freed memory show here.
      volatile std::byte touched = set.chunks[c].data[fm::chunk_layout(store.geometry()).chunk_bytes() - 1];
      static_cast<void>(touched);
    }
  }
  return s;
}

struct world {
  input in;
  fm::store_options options;
  fm::selection_policy policy;
  std::unique_ptr<fm::tiered_chunk_store> store;
  fm::random_indexer index{3};
  std::unique_ptr<fm::selector> select;
  std::vector<fm::sequence_handle> all;

  fm::sequence_handle handle() {
    if (all.empty() || in.byte() % 32 == 0) return {std::uint32_t(in.odd(8)), std::uint32_t(in.odd(4))};
    return all[std::size_t(in.below(std::int64_t(all.size())))];
  }
  fm::sequence_options wanted() {
    fm::sequence_options o;
    o.max_tokens = in.odd(96);
    o.max_resident_chunks = in.odd(20);
    o.sink_chunks = policy.sink_chunks;
    o.recent_chunks = policy.recent_chunks;
    return o;
  }

  status append() {
    const fm::kv_geometry& g = options.geometry;
    std::vector<fm::batch_item> items;
    std::int64_t rows = 0;
    for (std::int64_t n = 1 + in.below(2); n > 0; --n) {
      const fm::sequence_handle h = handle();
      const std::int64_t there = std::max<std::int64_t>(look(*store, h).tokens, 0);
      items.push_back({h, in.byte() % 16 ? there : in.odd(96), std::int32_t(in.odd(24))});
      if (items.back().num_tokens > 0 && items.back().num_tokens < 100) rows += items.back().num_tokens;
    }
    const std::vector<float> values(std::size_t(rows * g.kv_heads * g.key_dim + 1), float(in.byte()));
    const fm::const_tensor<3> kv(values.data(), fm::dtype::f32, rows, g.kv_heads, g.key_dim);
    const fm::batch batch(items.data(), items.size());
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      std::vector<state> before;
      for (const auto h : all) before.push_back(look(*store, h));
      const status code = store->append(batch, layer, kv, kv, fm::stream_ref::host());
      if (code != status::ok) {
        for (std::size_t i = 0; i < all.size(); ++i) must(look(*store, all[i]) == before[i]);
        return code;
      }
    }
    if (in.byte() % 2) static_cast<void>(fm::select_chunks(*select, batch, fm::stream_ref::host()));
    return status::ok;
  }

  /// \returns whether the call must have left everything as it was
  bool step() {
    const std::int64_t what = in.below(12);
    if (what <= 1) {
      const bool fork = what == 1;
      const fm::sequence_handle parent = fork ? handle() : fm::sequence_handle{};
      const auto o = wanted();
      all.push_back(fork ? store->fork(parent, o) : store->open(o));
      return false;
    }
    if (what <= 5) {
      static_cast<void>(append());
      return false;
    }
    const fm::sequence_handle h = handle();
    std::vector<fm::chunk_id> ids;
    for (std::int64_t n = in.below(8); n > 0; --n) ids.push_back(fm::chunk_id(in.odd(30)));
    const fm::view<const fm::chunk_id, 1> list(ids.data(), ids.size());
    fm::recall_report r;
    switch (what) {
      case 6:
        return store->truncate(h, in.odd(96)) != status::ok;
      case 7: {
        const status code = store->recall(h, list, &r, fm::stream_ref::host());
        must(code != status::ok || (r.selected == r.hits + r.recalled + r.refused &&
                                    r.unreadable <= r.refused && r.bad <= r.unreadable));
        return code != status::ok;
      }
      case 8:
        return store->start_recall(h, list, &r, fm::stream_ref::host()) != status::ok || true;
      case 9:
        return store->finish_recall(h, fm::late_policy(in.below(4)), &r, fm::stream_ref::host()) !=
               status::ok;
      case 10:
        if (in.byte() % 2) {
          select->attach(h);
        } else {
          select->detach(h);
        }
        return true;
      default:
        return store->close(h) != status::ok;
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  world w;
  w.in = {data, size};
  fm::kv_geometry& g = w.options.geometry;
  g.layers = 2;
  g.kv_heads = 1;
  g.key_dim = g.value_dim = 4;
  g.type = fm::dtype::bf16;
  g.entries_per_chunk = std::int32_t(1 + w.in.below(4));
  w.options.fast_bytes = std::size_t(8192 + 2048 * w.in.below(16));
  w.options.backing_bytes = 1 << 16;
  w.options.max_sequences = 4;
  w.options.transition_chunks = w.in.below(5);
  w.options.scrub = w.in.byte() % 2;
  w.policy.interval = std::int32_t(1 + w.in.below(8));
  w.policy.sink_chunks = std::int32_t(w.in.below(2));
  w.policy.recent_chunks = std::int32_t(w.in.below(3));
  w.policy.budget_fraction = 0.3;
  const std::size_t bytes = fm::chunk_layout(g).chunk_bytes();
  w.store = std::make_unique<fm::tiered_chunk_store>(
      w.options, std::make_unique<medium>(fm::make_ram_backing(std::int64_t(w.options.backing_bytes / bytes),
                                                               bytes, fm::default_memory()),
                                          &w.in));
  fm::selector_options o;
  o.max_sequences = 3;
  o.threads = fm::serial_threads();
  o.apply = w.in.byte() % 2 ? fm::apply_mode::overlapped : fm::apply_mode::at_once;
  w.select = std::make_unique<fm::selector>(*w.store, w.index, w.policy, o);
  for (int n = 0; n < 96 && w.in.left > 0; ++n) {
    std::vector<state> before;
    const std::size_t known = w.all.size();
    for (const auto h : w.all) before.push_back(look(*w.store, h));
    bool unchanged = true;
    try {
      unchanged = w.step();
    } catch (const fm::error&) {
    }
    for (std::size_t i = 0; unchanged && i < known; ++i) must(look(*w.store, w.all[i]) == before[i]);
    const fm::store_counters c = w.store->counters();
    must(c.selected == c.hits + c.recalled + c.refused && c.chunks_unreadable <= c.refused);
    const fm::store_usage u = w.store->usage();
    must(u.fast_bytes <= u.fast_budget_bytes && u.backing_bytes <= u.backing_reserved_bytes);
  }
  w.select.reset();
  for (const auto h : w.all)
    if (w.store->is_open(h)) must(w.store->close(h) == status::ok);
  const fm::store_usage u = w.store->usage();
  must(u.sequences == 0 && u.backing_bytes == 0 && u.backing_reserved_bytes == 0);
  return 0;
}
