// SPDX-License-Identifier: MIT
#include <cstring>

#include "tests/c/c_engine.hpp"
#if __has_include(<dlpack/dlpack.h>)
#include <dlpack/dlpack.h>
static_assert(sizeof(fm_tensor) == sizeof(DLTensor) && sizeof(fm_managed_tensor) == sizeof(DLManagedTensor));
static_assert(offsetof(fm_tensor, device) == 8 && offsetof(fm_tensor, ndim) == offsetof(DLTensor, ndim));
static_assert(offsetof(fm_tensor, dtype) == offsetof(DLTensor, dtype) &&
              offsetof(fm_tensor, shape) == offsetof(DLTensor, shape) &&
              offsetof(fm_tensor, strides) == offsetof(DLTensor, strides) &&
              offsetof(fm_tensor, byte_offset) == offsetof(DLTensor, byte_offset));
static_assert(offsetof(fm_managed_tensor, manager_ctx) == offsetof(DLManagedTensor, manager_ctx) &&
              offsetof(fm_managed_tensor, deleter) == offsetof(DLManagedTensor, deleter));
static_assert(int(kDLCPU) == FM_CPU && int(kDLCUDAHost) == FM_CUDA_HOST && int(kDLFloat) == FM_FLOAT &&
              int(kDLBfloat) == FM_BFLOAT && int(kDLUInt) == FM_UINT);
#endif

using namespace c_testing;

TEST_CASE("tensors that a call cannot take are refused by name, and nothing changes", "[c][tensors]") {
  world w;
  REQUIRE(w.pass(40, nullptr, FM_PROMPT_END) == FM_OK);
  const fm_batch_item item = w.item(1);
  host_tensor k({1, 2, 16}), v({1, 2, 16});
  const auto refused = [&](fm_tensor bad, fm_status code, const std::string& says) {
    CAPTURE(says);
    CHECK(fm_append(w.store, &item, 1, 0, &bad, &v.t, nullptr) == code);
    CHECK_THAT(last().text, Catch::Contains(says));
    fm_sequence_info info{};
    info.struct_size = sizeof(info);
    REQUIRE(fm_sequence_get_info(w.store, w.sequence, &info) == FM_OK);
    CHECK(info.tokens == 40);
  };
  fm_tensor t = k.t;
  t.device.device_type = FM_CUDA;
  refused(t, FM_BAD_ARGUMENT, "k: lies on DLPack device 2");
  t = k.t;
  t.ndim = 2;
  refused(t, FM_BAD_SHAPE, "k");
  t = k.t;
  t.shape = nullptr;
  refused(t, FM_BAD_SHAPE, "k");
  std::int64_t shape[3] = {1, 2, 15};
  t = k.t;
  t.shape = shape;
  refused(t, FM_BAD_SHAPE, "");
  shape[2] = -16;
  refused(t, FM_BAD_SHAPE, "k");
  shape[0] = shape[1] = shape[2] = std::int64_t{1} << 30;
  refused(t, FM_BAD_SHAPE, "k");
  t = k.t;
  t.dtype.bits = 64;
  refused(t, FM_BAD_DTYPE, "k");
  t = k.t;
  t.dtype.lanes = 2;
  refused(t, FM_BAD_DTYPE, "k");
  t = k.t;
  t.dtype.code = FM_INT;
  refused(t, FM_BAD_DTYPE, "k");
  t = k.t;
  t.data = nullptr;
  refused(t, FM_NULL_DATA, "k");
  t = k.t;
  t.byte_offset = 2;
  refused(t, FM_BAD_ARGUMENT, "aligned");
  std::int64_t strides[3] = {64, 32, 2};
  t = k.t;
  t.strides = strides;
  refused(t, FM_BAD_SHAPE, "");
  CHECK(fm_append(w.store, &item, 1, 0, nullptr, &v.t, nullptr) == FM_NULL_DATA);
  CHECK(fm_append(w.store, nullptr, 1, 0, &k.t, &v.t, nullptr) == FM_NULL_DATA);
  CHECK(fm_append(w.store, &item, -1, 0, &k.t, &v.t, nullptr) == FM_BAD_SHAPE);
  int stream = 0;
  CHECK(fm_append(w.store, &item, 1, 0, &k.t, &v.t, &stream) == FM_UNSUPPORTED);
  CHECK_THAT(last().text, Catch::Contains("stream"));
  CHECK(fm_append(w.store, &item, 1, 0, &k.t, &v.t, nullptr) == FM_OK);
  CHECK(fm_append(w.store, &item, 1, 0, &k.t, &v.t, nullptr) == FM_OUT_OF_ORDER);
  CHECK(last().expected >= 0);
}

TEST_CASE("byte offsets and strides are honoured, null strides are compact", "[c][tensors]") {
  // Two sequences get the same K and V, once compact, once out of the middle of something larger.
  world a, b;
  host_tensor k({3, 2, 16}), v({3, 2, 16});
  std::vector<float> wide(1000, -1.0f);
  for (int t = 0; t < 3; ++t)
    for (int h = 0; h < 2; ++h)
      for (int d = 0; d < 16; ++d)
        wide[std::size_t(7 + t * 80 + h * 20 + d)] = k.values[std::size_t((t * 2 + h) * 16 + d)];
  std::int64_t strides[3] = {80, 20, 1};
  fm_tensor strided = k.t;
  strided.data = wide.data();
  strided.byte_offset = 7 * sizeof(float);
  strided.strides = strides;
  const fm_batch_item one = a.item(3), other = b.item(3);
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    REQUIRE(fm_append(a.store, &one, 1, layer, &k.t, &v.t, nullptr) == FM_OK);
    REQUIRE(fm_append(b.store, &other, 1, layer, &strided, &v.t, nullptr) == FM_OK);
  }
  fm_managed_tensor *x = nullptr, *y = nullptr;
  REQUIRE(fm_sequence_read_chunk(a.store, a.sequence, 0, &x) == FM_OK);
  REQUIRE(fm_sequence_read_chunk(b.store, b.sequence, 0, &y) == FM_OK);
  REQUIRE(x->dl_tensor.shape[0] == 2 * 2 * 2 * 8 * 16 * 4);
  CHECK(x->dl_tensor.dtype.code == FM_UINT);
  CHECK(std::memcmp(x->dl_tensor.data, y->dl_tensor.data, std::size_t(x->dl_tensor.shape[0])) == 0);
  x->deleter(x);
  y->deleter(y);
  CHECK(fm_sequence_read_chunk(a.store, a.sequence, 5, &x) == FM_OUT_OF_RANGE);
  CHECK(fm_sequence_read_chunk(a.store, a.sequence, 0, nullptr) == FM_NULL_DATA);
}

TEST_CASE("index keys come as bytes, of whichever of DLPack's types", "[c][tensors]") {
  fm_store_options so = small_store();
  so.index_keys = {1, 32, 0, 4, 0};
  fm_store* store = nullptr;
  REQUIRE(fm_store_open(&so, &store) == FM_OK);
  fm_sequence_options each;
  REQUIRE(fm_init_sequence_options(&each, sizeof(each)) == FM_OK);
  each.max_tokens = 64;
  fm_sequence s;
  REQUIRE(fm_sequence_open(store, &each, &s) == FM_OK);
  std::vector<std::uint8_t> keys(2 * 36, 0x20);
  const float scale = 1;
  for (int i = 0; i < 2; ++i) std::memcpy(&keys[std::size_t(i * 36 + 32)], &scale, 4);
  std::int64_t shape[2] = {1, 36};
  fm_tensor t{};
  t.data = keys.data();
  t.device.device_type = FM_CPU;
  t.ndim = 2;
  t.dtype.bits = 8;
  t.dtype.lanes = 1;
  t.shape = shape;
  std::int64_t key = 0;
  for (const int code : {int(FM_UINT), int(FM_INT), int(FM_FLOAT8_E4M3FN)}) {
    t.dtype.code = std::uint8_t(code);
    CHECK(fm_append_index_keys(store, s, 0, key++, &t, nullptr) == FM_OK);
  }
  t.dtype.code = FM_FLOAT;
  CHECK(fm_append_index_keys(store, s, 0, key, &t, nullptr) == FM_BAD_DTYPE);
  t.dtype.code = FM_UINT;
  CHECK(fm_append_index_keys(store, s, 0, 0, &t, nullptr) == FM_OUT_OF_ORDER);
  keys[0] = 0x7f;  // e4m3's NaN
  CHECK(fm_append_index_keys(store, s, 0, key, &t, nullptr) == FM_NOT_FINITE);
  REQUIRE(fm_store_close(store) == FM_OK);
}

TEST_CASE("attention writes lse, reads sinks, and refuses what does not fit", "[c][tensors]") {
  world w;
  REQUIRE(w.pass(40, nullptr, FM_PROMPT_END) == FM_OK);
  const fm_batch_item item = {w.sequence, 39, 1, FM_DECODE};
  host_tensor q({1, 4, 16}), out({1, 4, 16}), plain({1, 4, 16}), lse({1, 4}), sinks({4});
  fm_attend_options how;
  REQUIRE(fm_init_attend_options(&how, sizeof(how)) == FM_OK);
  REQUIRE(fm_sparse_attend(w.attention, &item, 1, 1, &q.t, &plain.t, &how, nullptr) == FM_OK);
  how.lse = &lse.t;
  how.sink_logits = &sinks.t;
  REQUIRE(fm_sparse_attend(w.attention, &item, 1, 1, &q.t, &out.t, &how, nullptr) == FM_OK);
  CHECK(out.values != plain.values);
  CHECK(std::isfinite(lse.values[3]));
  host_tensor five({5});
  how.sink_logits = &five.t;
  CHECK(fm_sparse_attend(w.attention, &item, 1, 1, &q.t, &out.t, &how, nullptr) == FM_BAD_SHAPE);
  how.sink_logits = nullptr;
  how.softmax_scale = -1;
  CHECK(fm_sparse_attend(w.attention, &item, 1, 1, &q.t, &out.t, &how, nullptr) == FM_BAD_ARGUMENT);
  how.softmax_scale = 0;
  CHECK(fm_sparse_attend(w.attention, &item, 1, 7, &q.t, &out.t, &how, nullptr) == FM_OUT_OF_RANGE);
  host_tensor many({100, 4, 16}), much({100, 4, 16});
  const fm_batch_item piece = {w.sequence, 0, 100, FM_PROMPT};
  CHECK(fm_sparse_attend(w.attention, &piece, 1, 1, &many.t, &much.t, &how, nullptr) != FM_OK);
}
