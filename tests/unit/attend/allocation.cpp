// SPDX-License-Identifier: MIT

#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"
#include "tests/support/counted_allocations.hpp"

using namespace flashmemory_test;

TEST_CASE("attention, its merge and its masses allocate nothing, not even in the first call", "[attend]") {
  attend_problem p({}, 8);
  p.sinks = {1, 2, 3, 4};
  p.options.logit_soft_cap = 5;
  p.add(300, 2);
  p.add(40, 1);
  std::vector<std::byte> scratch;
  attend_options o = p.full_options(scratch);
  o.threads = default_threads();
  fault f;
  o.error = &f;
  std::vector<float> out(3 * 4 * 64), lse(3 * 4), mass(19);
  o.lse = view<float, 2>(lse.data(), 3, 4);
  const std::vector<std::int32_t> list(3 * 2, 7);
  const auto attend = [&](std::int32_t layer) {
    return sparse_attend(p.store, batch(p.items.data(), 2), layer, p.q_tensor(),
                         tensor<3>(out.data(), dtype::f32, 3, 4, 64), o, stream_ref::host());
  };

  const std::int64_t before = allocations;
  const status first = attend(1);
  o.entries = view<const std::int32_t, 2>(list.data(), 3, 2);
  const status listed = attend(0);
  o.entries = {};
  const status refused = attend(9);
  const view<float, 3> all(out.data(), 3, 4, 64);
  const status merged = merge_attention(all, o.lse, all, o.lse);
  auto q = p.q_tensor();
  q.shape[0] = 2;
  const status massed =
      chunk_attention_mass(p.store, p.items[0], 1, q, view<const float, 2>(lse.data(), 2, 4), o,
                           view<float, 1>(mass.data(), 19), false);
  const std::int64_t after = allocations;

  attend_problem piece({}, 9);
  piece.store.others = plain_store::elsewhere::reads;
  piece.store.set_resident(piece.add(300, 40), {0, 18});
  std::vector<std::byte> more;
  attend_options po = piece.full_options(more);
  po.reach = attend_reach::everything;
  po.threads = default_threads();
  std::vector<float> rows(40 * 4 * 64);
  const std::int64_t before_piece = allocations;
  const status streamed =
      sparse_attend(piece.store, batch(piece.items.data(), 1), 1, piece.q_tensor(),
                    tensor<3>(rows.data(), dtype::f32, 40, 4, 64), po, stream_ref::host());
  const std::int64_t after_piece = allocations;

  CHECK(first == status::ok);
  CHECK(listed == status::ok);
  CHECK(refused == status::out_of_range);
  CHECK(merged == status::ok);
  CHECK(massed == status::ok);
  CHECK(after == before);
  CHECK(streamed == status::ok);
  CHECK(after_piece == before_piece);
}
