// SPDX-License-Identifier: MIT
#include "tests/catch.hpp"
#include "tests/support/attend_problem.hpp"

using namespace flashmemory_test;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

struct part {
  std::vector<float> out, lse;
  view<float, 3> out_view(std::int64_t dim) { return view<float, 3>(out.data(), lse.size() / 2, 2, dim); }
  view<float, 2> lse_view() { return view<float, 2>(lse.data(), lse.size() / 2, 2); }
};

status merge(part& a, part& b, std::int64_t dim) {
  return merge_attention(a.out_view(dim), a.lse_view(), b.out_view(dim), b.lse_view());
}

}  // namespace

TEST_CASE("merging weighs both parts by their softmax sums", "[attend]") {
  part a{{1, 2, 3, 4}, {std::log(3.0f), 0}}, b{{5, 6, 7, 8}, {std::log(1.0f), 0}};
  REQUIRE(merge(a, b, 2) == status::ok);
  CHECK(a.out[0] == Approx(2));
  CHECK(a.out[1] == Approx(3));
  CHECK(a.out[2] == Approx(5));
  CHECK(a.out[3] == Approx(6));
  CHECK(a.lse[0] == Approx(std::log(4.0)));
  CHECK(a.lse[1] == Approx(std::log(2.0)));
  CHECK(b.out == std::vector<float>{5, 6, 7, 8});
}

TEST_CASE("merging with an empty part changes no bit, even of what it cannot compute with", "[attend]") {
  part a{{1, 2, 3, inf}, {1000, -1000}}, empty{{0, 0, 0, 0}, {-inf, -inf}};
  part into = a;
  REQUIRE(merge(into, empty, 2) == status::ok);
  CHECK(into.out == a.out);
  CHECK(into.lse == a.lse);
  part from = empty;
  REQUIRE(merge(from, a, 2) == status::ok);
  CHECK(from.out == a.out);
  CHECK(from.lse == a.lse);
  REQUIRE(merge(empty, empty, 2) == status::ok);
  CHECK(empty.out == std::vector<float>(4, 0));
  CHECK(empty.lse == std::vector<float>(2, -inf));
}

TEST_CASE("merging parts of very different weight does not overflow", "[attend]") {
  part a{{1, 1}, {1e30f, -1e30f}}, b{{2, 2}, {-1e30f, 1e30f}};
  REQUIRE(merge(a, b, 1) == status::ok);
  CHECK(a.out == std::vector<float>{1, 2});
  CHECK(a.lse == std::vector<float>{1e30f, 1e30f});
}

TEST_CASE("a NaN in either part's lse is in the result", "[attend]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  part a{{1, 1}, {nan, 0}}, b{{2, 2}, {0, nan}};
  REQUIRE(merge(a, b, 1) == status::ok);
  for (const float x : {a.out[0], a.out[1], a.lse[0], a.lse[1]}) CHECK(std::isnan(x));
}

TEST_CASE("merging works on strided views", "[attend]") {
  std::vector<float> out{1, -1, 2, -1, 3, -1, 4, -1}, lse{0, -1, 0, -1};
  view<float, 3> out_view(out.data(), 1, 2, 2);
  out_view.stride[1] = 4;
  out_view.stride[2] = 2;
  view<float, 2> lse_view(lse.data(), 1, 2);
  lse_view.stride[1] = 2;
  part b{{3, 4, 5, 6}, {0, 0}};
  REQUIRE(merge_attention(out_view, lse_view, b.out_view(2), b.lse_view()) == status::ok);
  CHECK(out == std::vector<float>{2, -1, 3, -1, 4, -1, 5, -1});
  CHECK(lse[1] == -1);
}

TEST_CASE("merging refuses shapes that disagree and missing memory, and changes nothing", "[attend]") {
  const part original{{1, 2, 3, 4}, {0, 0}};
  part a = original, b = original;
  const auto check = [&](status expected, view<float, 3> out, view<float, 2> lse, view<const float, 3> other,
                         view<const float, 2> other_lse) {
    CHECK(merge_attention(out, lse, other, other_lse) == expected);
    CHECK(a.out == original.out);
    CHECK(a.lse == original.lse);
  };
  const auto o = a.out_view(2), oo = b.out_view(2);
  const auto l = a.lse_view(), ol = b.lse_view();
  for (int d = 0; d < 3; ++d) {
    auto wrong = oo;
    wrong.shape[d] += 1;
    check(status::bad_shape, o, l, wrong, ol);
    check(status::bad_shape, wrong, l, oo, ol);
  }
  for (int d = 0; d < 2; ++d) {
    auto wrong = ol;
    wrong.shape[d] += 1;
    check(status::bad_shape, o, l, oo, wrong);
    check(status::bad_shape, o, wrong, oo, ol);
  }
  const auto none3 = [](view<float, 3> v) {
    v.data = nullptr;
    return v;
  };
  const auto none2 = [](view<float, 2> v) {
    v.data = nullptr;
    return v;
  };
  check(status::null_data, none3(o), l, oo, ol);
  check(status::null_data, o, none2(l), oo, ol);
  check(status::null_data, o, l, none3(oo), ol);
  check(status::null_data, o, l, oo, none2(ol));
  check(status::ok, view<float, 3>(nullptr, 0, 2, 2), view<float, 2>(nullptr, 0, 2),
        view<float, 3>(nullptr, 0, 2, 2), view<float, 2>(nullptr, 0, 2));
}
