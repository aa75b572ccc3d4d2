// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/store/chunk_store.hpp>

namespace flashmemory_test {

/// Passes every call on; tests override those that they bend.
class forwarding_store : public flashmemory::chunk_store {
 public:
  explicit forwarding_store(flashmemory::chunk_store& inner) : inner_(inner) {}

  const flashmemory::kv_geometry& geometry() const noexcept override { return inner_.geometry(); }
  flashmemory::sequence_handle open(const flashmemory::sequence_options& o) override {
    return inner_.open(o);
  }
  flashmemory::sequence_handle fork(flashmemory::sequence_handle p,
                                    const flashmemory::sequence_options& o) override {
    return inner_.fork(p, o);
  }
  void set_quota(flashmemory::sequence_handle s, std::int64_t q) override { inner_.set_quota(s, q); }
  flashmemory::status truncate(flashmemory::sequence_handle s, std::int64_t t) noexcept override {
    return inner_.truncate(s, t);
  }
  flashmemory::status close(flashmemory::sequence_handle s) noexcept override { return inner_.close(s); }
  flashmemory::status append(flashmemory::batch i, std::int32_t l, flashmemory::const_tensor<3> k,
                             flashmemory::const_tensor<3> v, flashmemory::stream_ref r) noexcept override {
    return inner_.append(i, l, k, v, r);
  }
  flashmemory::status begin_pass(flashmemory::batch i, flashmemory::stream_ref r) noexcept override {
    return inner_.begin_pass(i, r);
  }
  flashmemory::status commit_pass(flashmemory::batch i, bool keys,
                                  flashmemory::stream_ref r) noexcept override {
    return inner_.commit_pass(i, keys, r);
  }
  flashmemory::status append_index_keys(flashmemory::sequence_handle s, std::int32_t lane, std::int64_t first,
                                        flashmemory::view<const std::byte, 2> keys,
                                        flashmemory::stream_ref r) noexcept override {
    return inner_.append_index_keys(s, lane, first, keys, r);
  }
  flashmemory::status recall(flashmemory::sequence_handle s,
                             flashmemory::view<const flashmemory::chunk_id, 1> c,
                             flashmemory::recall_report* report,
                             flashmemory::stream_ref r) noexcept override {
    return inner_.recall(s, c, report, r);
  }
  flashmemory::status start_recall(flashmemory::sequence_handle s,
                                   flashmemory::view<const flashmemory::chunk_id, 1> c,
                                   flashmemory::recall_report* report,
                                   flashmemory::stream_ref r) noexcept override {
    return inner_.start_recall(s, c, report, r);
  }
  flashmemory::status poll_recall(flashmemory::sequence_handle s) noexcept override {
    return inner_.poll_recall(s);
  }
  flashmemory::status finish_recall(flashmemory::sequence_handle s, flashmemory::late_policy late,
                                    flashmemory::recall_report* report,
                                    flashmemory::stream_ref r) noexcept override {
    return inner_.finish_recall(s, late, report, r);
  }
  flashmemory::status cancel_recall(flashmemory::sequence_handle s) noexcept override {
    return inner_.cancel_recall(s);
  }
  std::int64_t bad_chunks(flashmemory::sequence_handle s,
                          flashmemory::view<flashmemory::chunk_id, 1> out) const noexcept override {
    return inner_.bad_chunks(s, out);
  }
  void guard_rollback(flashmemory::sequence_handle s, flashmemory::rollback_guard guard) noexcept override {
    inner_.guard_rollback(s, guard);
  }
  flashmemory::status append_chunk(flashmemory::sequence_handle s,
                                   flashmemory::view<const std::byte, 1> bytes,
                                   std::int64_t tokens) noexcept override {
    return inner_.append_chunk(s, bytes, tokens);
  }
  flashmemory::status resident(flashmemory::sequence_handle s, std::int32_t layer,
                               flashmemory::resident_set* out, std::uint64_t known) const noexcept override {
    return inner_.resident(s, layer, out, known);
  }
  flashmemory::status index_keys(flashmemory::sequence_handle s, std::int32_t lane,
                                 flashmemory::index_key_pages* out) const noexcept override {
    return inner_.index_keys(s, lane, out);
  }
  flashmemory::status info(flashmemory::sequence_handle s,
                           flashmemory::sequence_info* out) const noexcept override {
    return inner_.info(s, out);
  }
  bool is_open(flashmemory::sequence_handle s) const noexcept override { return inner_.is_open(s); }
  flashmemory::status read_chunk(flashmemory::sequence_handle s, flashmemory::chunk_id c,
                                 flashmemory::view<std::byte, 1> out) const noexcept override {
    return inner_.read_chunk(s, c, out);
  }
  const std::byte* layer_address(flashmemory::sequence_handle s, flashmemory::chunk_id c,
                                 std::int32_t layer) const noexcept override {
    return inner_.layer_address(s, c, layer);
  }
  flashmemory::status read_layer(flashmemory::sequence_handle s, flashmemory::chunk_id c, std::int32_t layer,
                                 flashmemory::view<std::byte, 1> out) const noexcept override {
    return inner_.read_layer(s, c, layer, out);
  }
  flashmemory::fault order(flashmemory::stream_ref r) const noexcept override { return inner_.order(r); }
  flashmemory::fault last_fault() const noexcept override { return inner_.last_fault(); }
  void note(const flashmemory::fault& f) const noexcept override { inner_.note(f); }
  flashmemory::store_counters counters() const noexcept override { return inner_.counters(); }
  flashmemory::store_usage usage() const noexcept override { return inner_.usage(); }

 protected:
  flashmemory::chunk_store& inner_;
};

}  // namespace flashmemory_test
