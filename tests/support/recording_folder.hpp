// SPDX-License-Identifier: MIT
#pragma once

#include <flashmemory/error.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "tests/catch.hpp"
#include "tests/support/random_document.hpp"

/// Folders of recordings that tests damage: writing some, their files' bytes, what refusals say.
namespace recording_folder {

namespace fm = flashmemory;
namespace train = flashmemory::train;
using support::random_document;
using support::small_geometry;

inline std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

inline void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline train::recorder_options one_shard_each(const std::string& writer = "0") {
  train::recorder_options o;
  o.writer = writer;
  o.shard_bytes = 1;
  return o;
}

/// Not empty: a document of no tokens needs no shard.
inline train::document some_document(std::uint64_t seed) {
  return random_document(small_geometry(), seed, 90, 16);
}

/// `count` documents of seeds `seed`, `seed` + 1, ..., each in a shard of its own.
inline void record(const std::string& folder, std::uint64_t seed, std::uint64_t count,
                   const std::string& writer = "0") {
  train::recorder recorder(folder, small_geometry(), one_shard_each(writer));
  for (std::uint64_t i = 0; i < count; ++i) recorder.add(some_document(seed + i));
  recorder.flush();
}

/// The error's text; fails if `f` does not throw `Error`.
template <class Error>
std::string complaint(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  } catch (const std::exception& e) {
    FAIL("another error: " << e.what());
  }
  FAIL("no error");
  return {};
}

}  // namespace recording_folder
