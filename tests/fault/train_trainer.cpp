// SPDX-License-Identifier: MIT
#include <sys/resource.h>

#include <csignal>
#include <flashmemory/error.hpp>

#include "tests/catch.hpp"
#include "tests/support/planted_training.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;

namespace {

ft::trainer_options quick() { return planted::quick_run(4, 0, 400); }

fm::dual_encoder_config random_start(const ft::document_source& source) {
  return ft::start_indexer(source, planted::architecture(1), planted::start_of(ft::start_kind::random));
}

}  // namespace

TEST_CASE("a loss that is NaN stops training, names the document and changes nothing", "[train]") {
  planted::damaged_source source;
  const auto start = random_start(source);
  planted::check_that_nan_stops(source, start, quick());
}

TEST_CASE("a run that diverges stops with a typed error and its last checkpoint stays whole", "[train]") {
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  const ft::memory_source source(planted::geometry(), planted::many(5, 3, 0, 30));
  ft::trainer_options o = quick();
  o.layer_steps = 60;
  o.optimiser.rate = 1e30;
  o.optimiser.clip = 0;
  o.optimiser.warm_up = 0;
  ft::trainer trainer(source, random_start(source), o);
  CHECK_THROWS_AS(trainer.run({}, path, 1), fm::error);
  REQUIRE(trainer.steps_done() > 0);
  ft::trainer again(source, random_start(source), o);
  again.load_checkpoint(path);
  CHECK(again.steps_done() == trainer.steps_done());
}

TEST_CASE("a disk that is full leaves the checkpoint before it", "[train]") {
  const flashmemory_test::temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  const ft::memory_source source(planted::geometry(), planted::many(5, 3, 0, 30));
  ft::trainer trainer(source, random_start(source), quick());
  (void)trainer.step();
  trainer.save_checkpoint(path);
  (void)trainer.step();
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small = before;
  small.rlim_cur = 4096;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  CHECK_THROWS_AS(trainer.save_checkpoint(path), fm::io_failure);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  ft::trainer other(source, random_start(source), quick());
  other.load_checkpoint(path);
  CHECK(other.steps_done() == 1);
  CHECK(folder.files() == 1);
}
