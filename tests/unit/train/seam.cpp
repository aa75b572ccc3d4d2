// SPDX-License-Identifier: MIT
#include <flashmemory/error.hpp>
#include <flashmemory/train/learn/trainer.hpp>
#include <flashmemory/train/start/start.hpp>

#include "tests/catch.hpp"
#include "tests/support/planted_documents.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;

namespace {

struct calls {
  int made = 0, cleared = 0, forward = 0, backward = 0, updates = 0;
  int fail_at = -1;  // the call of forward(), backward() or update() that fails, counted from here on
  ft::backend_setup setup;
};

// The CPU's backend, watched; its device may be lost at any call.
class watched final : public ft::training_backend {
 public:
  watched(const ft::backend_setup& setup, calls* seen) : inner_(ft::make_cpu_backend(setup)), seen_(seen) {
    ++seen->made;
    seen->setup = setup;
  }
  void write(const ft::training_state& state) override { inner_->write(state); }
  ft::training_state read() const override { return inner_->read(); }
  void clear_gradient() override {
    ++seen_->cleared;
    inner_->clear_gradient();
  }
  void forward(const ft::training_batch& batch, float* scores) override {
    may_fail();
    ++seen_->forward;
    inner_->forward(batch, scores);
  }
  void backward(const ft::training_batch& batch, const float* d_scores) override {
    may_fail();
    ++seen_->backward;
    inner_->backward(batch, d_scores);
  }
  double update(const ft::optimiser_step& step) override {
    may_fail();
    ++seen_->updates;
    return inner_->update(step);
  }

 private:
  void may_fail() const {
    if (seen_->fail_at >= 0 && seen_->fail_at-- == 0) {
      throw fm::admission_error(fm::status::budget_exceeded, "no memory");
    }
  }
  std::unique_ptr<ft::training_backend> inner_;
  calls* seen_;
};

ft::trainer_options quick(calls* seen) {
  ft::trainer_options o;
  o.windows = planted::windows();
  o.layer_steps = 4;
  o.ensemble_steps = 4;
  o.tokens_per_step = 1000;  // two documents
  o.windows_per_document = 24;
  o.threads = fm::serial_threads();
  if (seen) {
    o.backend = [seen](const ft::backend_setup& setup) { return std::make_unique<watched>(setup, seen); };
  }
  return o;
}

fm::dual_encoder_config start_of(const ft::document_source& source) {
  ft::start_options s;
  s.kind = ft::start_kind::random;
  s.windows = planted::windows();
  return ft::start_indexer(source, planted::architecture(2), s);
}

}  // namespace

TEST_CASE("a trainer uses the backend that it is given", "[train]") {
  const ft::memory_source source(planted::geometry(), planted::many(5, 4, 0, 40));
  calls seen;
  ft::trainer_options o = quick(&seen);
  o.operands = ft::precision::bf16;
  ft::trainer trainer(source, start_of(source), o);
  CHECK(seen.made == 1);
  CHECK(seen.setup.retrievers() == 2);
  CHECK(seen.setup.shape.operands == ft::precision::bf16);
  CHECK(seen.setup.shape.hidden == planted::width);
  CHECK(seen.setup.keys_per_chunk == planted::entries_per_chunk / planted::tokens_per_key);
  trainer.run({});
  CHECK(seen.cleared == 8);
  CHECK(seen.forward == 16);
  CHECK(seen.backward == 16);
  CHECK(seen.updates == 8);
}

TEST_CASE("a backend that fails loses nothing: the step is made again", "[train]") {
  const ft::memory_source source(planted::geometry(), planted::many(5, 4, 0, 40));
  const int at = GENERATE(0, 1, 2, 3, 4);  // both documents' passes, the update
  CAPTURE(at);
  calls seen;
  ft::trainer trainer(source, start_of(source), quick(&seen)),
      other(source, start_of(source), quick(nullptr));
  (void)trainer.step();
  const auto before = trainer.config();
  seen.fail_at = at;
  CHECK_THROWS_AS(trainer.step(), fm::admission_error);
  CHECK(trainer.steps_done() == 1);
  CHECK(trainer.config().retrievers[1].wq_a == before.retrievers[1].wq_a);
  trainer.run({});
  other.run({});
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(trainer.config().retrievers[r].wq_a == other.config().retrievers[r].wq_a);
    CHECK(trainer.config().retrievers[r].wk == other.config().retrievers[r].wk);
    CHECK(trainer.config().retrievers[r].logit_offset == other.config().retrievers[r].logit_offset);
  }
}
