// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>

#include "tests/cuda/gpu.hpp"
#include "tests/cuda/train_problem.hpp"
#include "tests/support/fresh_seed.hpp"

namespace cu = flashmemory::cuda;
using namespace flashmemory_test;

namespace {

/// CUDA's memory, counted, of which there may be none left.
struct counted_memory {
  explicit counted_memory(bool pinned_memory) : pinned(pinned_memory) {}
  counted_memory(const counted_memory&) = delete;

  fm::memory_resource resource() {
    fm::memory_resource r;
    r.context = this;
    r.allocate = [](void* context, std::size_t bytes, std::size_t alignment) -> void* {
      auto& self = *static_cast<counted_memory*>(context);
      if (self.held + bytes > self.limit || alignment > 256) return nullptr;
      void* block = nullptr;
      if (self.pinned)
        must(cudaHostAlloc(&block, bytes, 0));
      else
        must(cudaMalloc(&block, bytes));
      if (!self.pinned) must(cudaMemset(block, 0xff, bytes));  // NaN, so that reading what nobody wrote shows
      self.held += bytes;
      ++self.blocks;
      return block;
    };
    r.deallocate = [](void* context, void* block, std::size_t bytes, std::size_t) {
      auto& self = *static_cast<counted_memory*>(context);
      self.held -= bytes;
      --self.blocks;
      must(self.pinned ? cudaFreeHost(block) : cudaFree(block));
    };
    return r;
  }

  bool pinned;
  std::size_t held = 0, limit = std::size_t{1} << 40;
  int blocks = 0;
};

const train_extents small{33, 17, 5, 3, 7, 4, true, true, fm::dtype::f32};
const train_extents large{33, 17, 5, 40, 37, 4, true, true, fm::dtype::f32};

}  // namespace

TEST_CASE("a training backend takes what its functions say, and gives everything back", "[gpu][train]") {
  REQUIRE_GPU();
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  std::mt19937 random(1);
  train_problem p(random, large);
  p.setup.shape.operands = operands;
  counted_memory device(false), pinned(true);
  cu::training_options options;
  options.device_memory = device.resource();
  options.pinned_memory = pinned.resource();
  const device_stream stream;
  options.stream = stream.ref();
  {
    const auto backend = cu::training_on_device(options)(p.setup);
    CHECK(device.held == cu::training_state_bytes(p.setup));
    CHECK(device.blocks == 1);
    const train_outcome got = outcome_of(*backend, p);
    CHECK(device.held == cu::training_state_bytes(p.setup) +
                             cu::training_workspace_bytes(p.setup, large.windows, large.chunks, options));
    const train_outcome want = outcome_of(*cu::training_on_device()(p.setup), p);
    CHECK(got.scores == want.scores);  // what was in the memory before does not matter
    CHECK(got.gradient == want.gradient);
    CHECK(got.after.parameters == want.after.parameters);
  }
  CHECK(device.blocks == 0);
  CHECK(pinned.blocks == 0);
}

TEST_CASE("a training backend without memory says so and goes on once there is some", "[gpu][train]") {
  REQUIRE_GPU();
  const bool of_device = GENERATE(true, false);
  CAPTURE(of_device);
  std::mt19937 random(1);
  const train_problem p(random, small), q(random, large);
  counted_memory device(false), pinned(true);
  cu::training_options options;
  options.device_memory = device.resource();
  options.pinned_memory = pinned.resource();
  device.limit = cu::training_state_bytes(p.setup) - 1;
  CHECK_THROWS_AS(cu::training_on_device(options)(p.setup), fm::admission_error);
  CHECK(device.held == 0);
  device.limit = std::size_t{1} << 40;
  const auto backend = cu::training_on_device(options)(p.setup);
  const train_outcome before = outcome_of(*backend, p);
  (of_device ? device : pinned).limit = (of_device ? device : pinned).held;
  std::vector<float> scores(q.d_scores.size());
  try {
    backend->forward(q.batch, scores.data());
    FAIL("there was memory");
  } catch (const fm::admission_error& e) {
    CHECK(e.code() == fm::status::budget_exceeded);
    CHECK_THAT(e.what(), Catch::Contains(of_device ? "device memory" : "pinned memory"));
  }
  const ft::training_state after = backend->read();
  CHECK(after.parameters == before.after.parameters);
  CHECK(after.first_moment == before.after.first_moment);
  CHECK(after.second_moment == before.after.second_moment);
  CHECK(after.updates == 1);
  CHECK_THROWS_AS(backend->backward(q.batch, q.d_scores.data()), fm::error);
  (of_device ? device : pinned).limit = std::size_t{1} << 40;
  const train_outcome repeated = outcome_of(*backend, q);
  const train_outcome fresh = outcome_of(*cu::training_on_device()(q.setup), q);
  CHECK(repeated.scores == fresh.scores);
  CHECK(repeated.gradient == fresh.gradient);
}

TEST_CASE("documents that are kept on the device change nothing but time", "[gpu][train]") {
  REQUIRE_GPU();
  const auto seed = GENERATE(fresh_seeds(2));
  const auto recorded = GENERATE(fm::dtype::f32, fm::dtype::bf16);
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  const std::int64_t hidden = GENERATE(33, 64);  // padded, and as it is
  CAPTURE(seed, fm::to_string(recorded), int(operands), hidden);
  std::mt19937 random(seed);
  train_extents e = large;
  e.recorded = recorded;
  e.hidden = hidden;
  std::vector<std::unique_ptr<train_problem>> documents;
  for (int i = 0; i < 4; ++i) {
    documents.push_back(std::make_unique<train_problem>(random, e));
    documents.back()->setup.shape.operands = operands;
    documents.back()->batch.source = std::make_shared<int>(i);
    if (i % 2 == 1) documents.back()->batch.chunks -= 11;  // keys after the last chunk are there, too
  }
  counted_memory device(false);
  cu::training_options options, none;
  options.device_memory = device.resource();
  const std::size_t one = 2 * 192 * ((hidden + 7) / 8 * 8) * (operands == ft::precision::bf16 ? 2 : 4);
  options.document_bytes = 3 * one;
  none.document_bytes = 0;
  const auto keeps = cu::training_on_device(options)(documents[0]->setup);
  const auto sends = cu::training_on_device(none)(documents[0]->setup);
  const auto agree = [&](int i) {
    const train_outcome got = outcome_of(*keeps, *documents[std::size_t(i)]);
    const train_outcome want = outcome_of(*sends, *documents[std::size_t(i)]);
    CAPTURE(i);
    const auto used = std::ptrdiff_t(3 * documents[std::size_t(i)]->batch.chunks * large.windows);
    CHECK(std::equal(got.scores.begin(), got.scores.begin() + used, want.scores.begin()));
    CHECK(got.gradient == want.gradient);
  };
  for (const int i : {0, 0, 1, 0, 1, 2, 3, 0, 1, 3, 3, 2}) agree(i);
  const std::size_t fixed =
      cu::training_state_bytes(documents[0]->setup) +
      cu::training_workspace_bytes(documents[0]->setup, large.windows, large.chunks, options);
  CHECK(device.held == fixed + 3 * one);
  // Another document that comes to lie where one was: what was kept of that one is not its.
  documents[2]->batch.source = std::make_shared<int>(7);
  documents[2]->keys = documents[1]->keys;
  agree(2);
  agree(2);
  // Without memory for another one it is sent each time.
  device.limit = device.held - 1;
  documents[0]->batch.source = std::make_shared<int>(8);
  for (const int i : {0, 0, 2, 0}) agree(i);
  CHECK(device.held <= fixed + 3 * one);
}
