// SPDX-License-Identifier: MIT
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <flashmemory/error.hpp>
#include <limits>

#include "catch.hpp"
#include "support/planted_training.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;

namespace {

ft::trainer_options quick() { return planted::quick_run(4, 0, 400); }

fm::dual_encoder_config random_start(const ft::document_source& source) {
  return ft::start_indexer(source, planted::architecture(1), planted::start_of(ft::start_kind::random));
}

// A source whose second document turns bad after it has been checked, as a damaged disk or memory would make it.
class damaged_source final : public ft::document_source {
 public:
  damaged_source() : inner_(planted::geometry(), planted::many(5, 3, 0, 30)) {}
  const ft::recording_geometry& geometry() const override { return inner_.geometry(); }
  const std::vector<ft::document_info>& documents() const override { return inner_.documents(); }
  std::string fingerprint() const override { return inner_.fingerprint(); }
  ft::document load(std::int64_t index) const override {
    ft::document doc = inner_.load(index);
    if (!damaged || index != 1) return doc;
    ft::row_matrix rows(fm::dtype::f32, planted::width);
    std::vector<float> row(planted::width, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t k = 0; k < doc.keys[0].keys; ++k) rows.append(row.data());
    doc.keys[0].inputs = rows;
    return doc;
  }
  bool damaged = false;

 private:
  ft::memory_source inner_;
};

std::vector<float> weights_of(const ft::trainer& t) { return planted::weights_of(t.config()); }

}  // namespace

TEST_CASE("a loss that is NaN stops training, names the document and changes nothing", "[train]") {
  damaged_source source;
  const auto start = random_start(source);
  source.damaged = true;
  ft::trainer_options o = quick();
  o.memory_budget = 1;  // so that documents are read again
  ft::trainer trainer(source, start, o);
  bool stopped = false;
  for (int i = 0; i < 4 && !stopped; ++i) {
    const std::vector<float> before = weights_of(trainer);
    const std::int64_t steps = trainer.steps_done();
    try {
      (void)trainer.step();
    } catch (const fm::error& e) {
      stopped = true;
      CHECK(e.code() == fm::status::not_finite);
      CHECK_THAT(e.what(), Catch::Contains("odd/1"));
      CHECK(weights_of(trainer) == before);
      CHECK(trainer.steps_done() == steps);
    }
  }
  CHECK(stopped);
  // Once the document is whole again the run goes on as if nothing had been.
  source.damaged = false;
  trainer.run({});
  ft::trainer other(source, start, o);
  other.run({});
  CHECK(weights_of(trainer) == weights_of(other));
}

TEST_CASE("a run that diverges stops with a typed error and its last checkpoint stays whole", "[train]") {
  const auto path = (std::filesystem::temp_directory_path() / "fm_train_diverges").string();
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
  std::filesystem::remove(path);
}

TEST_CASE("a disk that is full leaves the checkpoint before it", "[train]") {
  const auto path = (std::filesystem::temp_directory_path() / "fm_train_full").string();
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
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::temp_directory_path())) {
    CHECK(entry.path().string().find("fm_train_full.") == std::string::npos);
  }
  std::filesystem::remove(path);
}
