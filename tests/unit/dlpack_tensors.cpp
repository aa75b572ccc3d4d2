// SPDX-License-Identifier: MIT
#include <flashmemory/interop/dlpack.hpp>

#include "tests/catch.hpp"

namespace fm = flashmemory;

namespace {

struct described {
  float data[6] = {};
  std::int64_t shape[2] = {2, 3};
  DLTensor t{};

  described() {
    t.data = data;
    t.ndim = 2;
    t.shape = shape;
    t.dtype = {kDLFloat, 32, 1};
    t.device = {kDLCPU, 0};
  }
};

}  // namespace

TEST_CASE("a DLTensor becomes a view of its memory, offset and strides included") {
  described d;
  fm::tensor<2> out;
  REQUIRE(fm::from_dlpack(d.t, out));
  CHECK(out.data == d.data);
  CHECK(out.type == fm::dtype::f32);
  CHECK((out.shape[0] == 2 && out.shape[1] == 3 && out.stride[0] == 3 && out.stride[1] == 1));
  std::int64_t strides[2] = {1, 2};
  d.t.strides = strides;
  d.t.byte_offset = 4;
  REQUIRE(fm::from_dlpack(d.t, out));
  CHECK(out.data == d.data + 1);
  CHECK((out.stride[0] == 1 && out.stride[1] == 2));
  d.t.dtype.bits = 64;
  CHECK_FALSE(fm::from_dlpack(d.t, out));
  d.t.dtype = {kDLFloat, 32, 4};
  CHECK_FALSE(fm::from_dlpack(d.t, out));
}

TEST_CASE("a DLTensor that lies on another device than the call is for is refused") {
  described d;
  fm::tensor<2> out;
  for (const DLDeviceType at :
       {kDLCUDA, kDLCUDAManaged, kDLROCM, kDLMetal, kDLVulkan, kDLOpenCL, kDLExtDev}) {
    d.t.device = {at, 0};
    CHECK_FALSE(fm::from_dlpack(d.t, out));
    CHECK(out.data == nullptr);
  }
  d.t.device = {kDLCUDAHost, 0};
  CHECK(fm::from_dlpack(d.t, out));
  CHECK_FALSE(fm::from_dlpack(d.t, out, kDLCUDA));
  for (const DLDeviceType at : {kDLCUDA, kDLCUDAManaged}) {
    d.t.device = {at, 0};
    CHECK(fm::from_dlpack(d.t, out, kDLCUDA));
  }
  d.t.device = {kDLCPU, 0};
  CHECK_FALSE(fm::from_dlpack(d.t, out, kDLCUDA));
}
