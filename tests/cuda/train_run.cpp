// SPDX-License-Identifier: MIT
#include <flashmemory/cuda/train.hpp>
#include <flashmemory/error.hpp>
#include <flashmemory/train/learn/trainer.hpp>
#include <flashmemory/train/start/start.hpp>

#include "tests/cuda/gpu.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/planted_training.hpp"
#include "tests/support/temporary_folder.hpp"

namespace cu = flashmemory::cuda;
namespace fm = flashmemory;
namespace ft = flashmemory::train;
using namespace flashmemory_test;

namespace {

ft::trainer_options quick(bool device) {
  ft::trainer_options o = planted::quick_run(6, 6, 1000);
  o.threads = fm::default_threads();
  if (device) o.backend = cu::training_on_device();
  return o;
}

fm::dual_encoder_config start_of(const ft::document_source& source, ft::start_kind kind) {
  return ft::start_indexer(source, planted::architecture(2), planted::start_of(kind));
}

std::vector<float> weights_of(const ft::trainer& trainer) { return planted::weights_of(trainer.config()); }

/// Documents of different lengths, so that the workspace grows on the way.
std::vector<ft::document> mixed(std::uint32_t seed) {
  std::vector<ft::document> all = planted::many(seed, 3, 0, 30);
  for (const ft::document& doc : planted::many(seed + 10, 3, 0, 70)) all.push_back(doc);
  return all;
}

}  // namespace

TEST_CASE("a run on the device learns what a run on the CPU learns", "[gpu][train]") {
  REQUIRE_GPU();
  const auto seed = GENERATE(fresh_seeds(2));
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  CAPTURE(seed, int(operands));
  const ft::memory_source source(planted::geometry(), planted::many(seed, 24, 4, 120));
  const auto start = start_of(source, ft::start_kind::random);
  double loss[2] = {}, recall[2] = {}, first[2] = {};
  for (const bool device : {false, true}) {
    ft::trainer_options o = quick(device);
    o.layer_steps = 100;
    o.ensemble_steps = 50;
    o.optimiser.rate = 3e-3;
    o.operands = operands;
    ft::trainer trainer(source, start, o);
    trainer.run([&](const ft::step_report& r) {
      if (r.step == 1) first[device] = r.loss;
      if (r.step > 120) {
        loss[device] += r.loss / 30;
        recall[device] += r.recall / 30;
      }
      return true;
    });
  }
  CAPTURE(first[0], first[1], loss[0], loss[1], recall[0], recall[1]);
  CHECK(first[1] == Approx(first[0]).epsilon(5e-3));
  CHECK(loss[1] == Approx(loss[0]).epsilon(0.1));
  CHECK(loss[1] < 0.9 * first[1]);
  CHECK(recall[1] == Approx(recall[0]).margin(0.05));
}

TEST_CASE("a run on the device repeats its bits, interrupted or not", "[gpu][train]") {
  REQUIRE_GPU();
  const auto seed = GENERATE(fresh_seeds(2));
  const auto operands = GENERATE(ft::precision::f32, ft::precision::bf16);
  const std::int64_t stop = GENERATE(1, 6, 9);
  CAPTURE(seed, int(operands), stop);
  const ft::memory_source source(planted::geometry(), mixed(seed));
  const auto start = start_of(source, ft::start_kind::random);
  ft::trainer_options o = quick(true);
  o.operands = operands;
  ft::trainer whole(source, start, o);
  whole.run({});
  ft::trainer again(source, start, o);
  again.run({});
  CHECK(weights_of(again) == weights_of(whole));
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  ft::trainer part(source, start, o);
  part.run([&](const ft::step_report& r) { return r.step < stop; }, path, 0);
  ft::trainer resumed(source, start_of(source, ft::start_kind::bilinear), o);
  resumed.load_checkpoint(path);
  CHECK(resumed.steps_done() == stop);
  CHECK(weights_of(resumed) == weights_of(part));
  resumed.run({});
  CHECK(weights_of(resumed) == weights_of(whole));
}

TEST_CASE("checkpoints go from the CPU to the device and back", "[gpu][train]") {
  REQUIRE_GPU();
  const bool device_first = GENERATE(false, true);
  const ft::memory_source source(planted::geometry(), mixed(11));
  const auto start = start_of(source, ft::start_kind::bilinear);
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  ft::trainer first(source, start, quick(device_first));
  first.run([](const ft::step_report& r) { return r.step < 5; }, path, 0);
  ft::trainer second(source, start, quick(!device_first));
  second.load_checkpoint(path);
  CHECK(weights_of(second) == weights_of(first));
  second.save_checkpoint(path + "2");
  ft::trainer third(source, start, quick(device_first));
  third.load_checkpoint(path + "2");
  first.run({});
  third.run({});
  CHECK(weights_of(third) == weights_of(first));  // nothing was lost on the way
  double loss[2];
  for (const bool other : {false, true}) {
    ft::trainer goes_on(source, start, quick(other == device_first));
    goes_on.load_checkpoint(path);
    loss[other] = goes_on.step().loss;
  }
  CHECK(loss[0] == Approx(loss[1]).epsilon(5e-3));
}

TEST_CASE("a loss that is NaN stops a run on the device, names the document and changes nothing",
          "[gpu][train]") {
  REQUIRE_GPU();
  planted::damaged_source source;
  const auto start = start_of(source, ft::start_kind::random);
  planted::check_that_nan_stops(source, start, quick(true));
}
