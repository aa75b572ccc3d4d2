// SPDX-License-Identifier: MIT
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "src/store/fast_tier.hpp"
#include "src/store/host_tier.hpp"
#include "tests/support/store_testing.hpp"

namespace store_testing {

namespace fd = fm::detail;

/// What a late_tier does with the copies that it is asked for, and what it has done.
struct late_switches {
  bool hold = true;                      ///< copies under way do not land
  fm::status outcome = fm::status::ok;   ///< of groups that begin from now on, told when they land
  bool time_out = false;                 ///< who waits is sent away
  std::int64_t started = 0, landed = 0;  ///< copies
  std::int64_t overtaken = 0;            ///< copies into slots that were given to others before they landed
};

/// A fast tier in host memory whose copies into slots land when the test says so, or never: what a device does, without
/// one. Until then the slot holds what no chunk holds.
class late_tier final : public fd::fast_tier {
 public:
  late_tier(const fm::kv_geometry& geometry, late_switches* control)
      : inner_(geometry, fm::default_memory()),
        bytes_(fm::chunk_layout(geometry).chunk_bytes()),
        control_(*control) {}

  fm::memory_resource memory() const noexcept override { return inner_.memory(); }
  bool host_memory() const noexcept override { return false; }
  std::size_t workspace_bytes() const noexcept override { return inner_.workspace_bytes(); }
  void open_backing(const fm::store_options& o, std::int64_t records,
                    std::unique_ptr<fm::backing_store> own) override {
    inner_.open_backing(o, records, std::move(own));
  }
  bool set_up(fd::fast_memory& m) noexcept override { return inner_.set_up(m); }
  void tear_down(fd::fast_memory& m) noexcept override { inner_.tear_down(m); }
  bool reserve_records(std::int64_t records) noexcept override { return inner_.reserve_records(records); }
  bool idle() noexcept override {
    for (auto& [ticket, g] : groups_) land(g);
    return true;
  }
  void shut_down() noexcept override { groups_.clear(); }
  const char* allocation_failure() noexcept override { return ""; }
  fm::fault enter(fm::stream_ref stream) noexcept override { return inner_.enter(stream); }
  fm::fault leave(fm::stream_ref stream) noexcept override { return inner_.leave(stream); }
  void poison(fd::fast_slot& slot) noexcept override { inner_.poison(slot); }
  void prepare(fd::fast_slot& slot) noexcept override {
    overtake(slot);
    inner_.prepare(slot);
  }
  fm::fault scrub(fd::fast_slot& slot, std::int64_t first_entry) noexcept override {
    return inner_.scrub(slot, first_entry);
  }
  void begin_rows() noexcept override { inner_.begin_rows(); }
  fm::fault write_rows(const fd::row_span& span, const fm::const_tensor<3>& k,
                       const fm::const_tensor<3>& v) noexcept override {
    return inner_.write_rows(span, k, v);
  }
  fm::fault flush_rows(std::int32_t layer, const fm::const_tensor<3>& k,
                       const fm::const_tensor<3>& v) noexcept override {
    return inner_.flush_rows(layer, k, v);
  }
  fm::fault seal(fd::chunk_record& record) noexcept override { return inner_.seal(record); }

  void begin_loads(bool urgent) noexcept override { inner_.begin_loads(urgent); }
  fm::fault load(const fd::chunk_record& from, fd::fast_slot& slot) noexcept override {
    overtake(slot);
    copy c{&slot, std::vector<std::byte>(bytes_)};
    if (const fm::fault f = inner_.read_record(from, c.chunk.data()); f.code != fm::status::ok) return f;
    std::memset(slot.data, 0xaa, bytes_);
    open_.push_back(std::move(c));
    ++control_.started;
    return {};
  }
  fm::fault flush_loads(std::uint64_t* ticket) noexcept override {
    *ticket = 0;
    if (open_.empty()) return {};
    *ticket = ++tickets_;
    groups_[*ticket] = {std::move(open_), control_.outcome};
    open_.clear();
    return {};
  }
  fm::fault loaded(std::uint64_t ticket) noexcept override {
    if (ticket == 0) return {};
    group& g = groups_[ticket];
    if (control_.hold && !g.copies.empty())
      return fd::make_fault(fm::status::pending, "chunks are on their way");
    return land(g);
  }
  fm::fault await_loads(std::uint64_t ticket) noexcept override {
    if (ticket == 0) return {};
    group& g = groups_[ticket];
    if (control_.time_out && !g.copies.empty()) return fd::make_fault(fm::status::timed_out, "copies");
    return land(g);
  }

  fm::fault write_record(fd::chunk_record& record, const std::byte* chunk) noexcept override {
    return inner_.write_record(record, chunk);
  }
  fm::fault read_record(const fd::chunk_record& record, std::byte* chunk) const noexcept override {
    return inner_.read_record(record, chunk);
  }
  fm::fault read_piece(const fd::chunk_record& record, std::int32_t layer,
                       std::byte* piece) const noexcept override {
    return inner_.read_piece(record, layer, piece);
  }
  fm::fault copy_slot(fd::fast_slot& to, const fd::fast_slot& from) noexcept override {
    overtake(to);
    return inner_.copy_slot(to, from);
  }
  fm::fault copy_keys(std::byte* to, const std::byte* from, std::size_t n) noexcept override {
    return inner_.copy_keys(to, from, n);
  }
  fm::fault read_slot(const fd::fast_slot& slot, std::byte* chunk) const noexcept override {
    return inner_.read_slot(slot, chunk);
  }
  fm::fault write_slot(fd::fast_slot& slot, const std::byte* chunk) noexcept override {
    overtake(slot);
    return inner_.write_slot(slot, chunk);
  }
  fm::fault append_index_keys(std::byte* pages, std::int64_t first,
                              const fm::view<const std::byte, 2>& keys) noexcept override {
    return inner_.append_index_keys(pages, first, keys);
  }

 private:
  struct copy {
    fd::fast_slot* slot;
    std::vector<std::byte> chunk;
  };
  struct group {
    std::vector<copy> copies;  ///< not landed yet
    fm::status outcome = fm::status::ok;
  };

  fm::fault land(group& g) noexcept {
    for (const copy& c : g.copies)
      if (g.outcome == fm::status::ok) std::memcpy(c.slot->data, c.chunk.data(), bytes_);
    control_.landed += std::int64_t(g.copies.size());
    g.copies.clear();
    return g.outcome == fm::status::ok ? fm::fault{} : fd::make_fault(g.outcome, "a late copy");
  }
  /// A new owner's bytes come after the copies into the slot.
  void overtake(const fd::fast_slot& slot) noexcept {
    const auto drop = [&](std::vector<copy>& copies) {
      for (std::size_t i = copies.size(); i-- > 0;)
        if (copies[i].slot == &slot) {
          copies.erase(copies.begin() + std::ptrdiff_t(i));
          ++control_.overtaken;
        }
    };
    for (auto& [ticket, g] : groups_) drop(g.copies);
    drop(open_);
  }

  fd::host_tier inner_;
  std::size_t bytes_;
  late_switches& control_;
  std::uint64_t tickets_ = 0;
  std::vector<copy> open_;
  std::map<std::uint64_t, group> groups_;
};

/// A store over such a tier.
inline std::unique_ptr<fm::tiered_chunk_store> late_store(const fm::store_options& o, late_switches* control,
                                                          std::unique_ptr<fm::backing_store> own = nullptr) {
  return std::make_unique<fm::tiered_chunk_store>(std::make_unique<late_tier>(o.geometry, control), o,
                                                  std::move(own));
}

}  // namespace store_testing
