// SPDX-License-Identifier: MIT
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <flashmemory/parallel.hpp>

#include "tests/catch.hpp"

namespace fm = flashmemory;

namespace {

int done_by(const fm::thread_hook& threads) {
  std::atomic<int> done{0};
  const auto add = [](void* sum, std::int32_t) { ++*static_cast<std::atomic<int>*>(sum); };
  if (threads.run == nullptr) {
    for (std::int32_t i = 0; i < 64; ++i) add(&done, i);
  } else {
    threads.run(threads.context, 64, add, &done);
  }
  return done;
}

}  // namespace

TEST_CASE("the child of a process that used the default threads works alone instead of waiting for them",
          "[core]") {
  const fm::thread_hook before = fm::default_threads();
  REQUIRE(done_by(before) == 64);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(60);  // a child that hangs is ended, and that is what the parent sees
    const fm::thread_hook after = fm::default_threads();
    ::_exit(done_by(before) == 64 && done_by(after) == 64 && after.concurrency == 1 ? 0 : 1);
  }
  int ended = 0;
  REQUIRE(::waitpid(child, &ended, 0) == child);
  CHECK(WIFEXITED(ended));
  CHECK(WEXITSTATUS(ended) == 0);
  CHECK(fm::default_threads().concurrency == before.concurrency);
  CHECK(done_by(before) == 64);
}
