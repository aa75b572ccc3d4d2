// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>

#include "src/io/atomic_file.hpp"
#include "src/session/load.hpp"
#include "src/session/session_header.hpp"
#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/unit/session/support.hpp"

using namespace session_testing;
using Catch::Matchers::Contains;
using fm::status;

namespace {

/// What load_session() says of a file; empty if it loads it.
std::string refusal(host& to, const std::string& path, const fm::session_options& session = {},
                    fm::selector* select = nullptr) {
  try {
    const fm::sequence_handle loaded = fm::load_session(*to.store, path, select, {}, session);
    REQUIRE(to.store->close(loaded) == status::ok);
    return {};
  } catch (const fm::format_error& e) {
    REQUIRE(to.store->usage().sequences == 0);
    return e.what();
  }
}

/// Where sections lie in the file of a host's session: begin and bytes, checksums included.
std::vector<std::pair<std::size_t, std::size_t>> sections_of(const std::vector<char>& bytes, const host& h) {
  fm::detail::memory_input in(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "image");
  fm::detail::section_reader reader(in);
  std::uint32_t head = 0;
  std::memcpy(&head, bytes.data() + 12, 4);
  const auto header = fm::detail::read_header(reader, h.geometry, "");
  std::vector<std::pair<std::size_t, std::size_t>> out;
  std::size_t at = head;
  const auto add = [&](std::size_t length) {
    out.emplace_back(at, length + 8);
    at += length + 8;
  };
  add(std::size_t(header.resident) * 4);
  for (std::int64_t c = 0; c < header.chunks(); ++c) add(fm::chunk_layout(h.geometry).chunk_bytes());
  for (const std::int64_t keys : header.keys) add(std::size_t(keys * h.geometry.index_keys.bytes()));
  add(std::size_t(header.state_bytes));
  REQUIRE(at + 8 == bytes.size());
  return out;
}

}  // namespace

TEST_CASE(
    "sections that change places, or come from another save, are refused even with the digest put right",
    "[session][fault]") {
  const auto seed = flashmemory_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937 random(seed);
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5), t = a.engine->open(a.options(), 6);
  REQUIRE(a.engine->step({&s, &t}, {100, 100}) == status::ok);
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  fm::save_session(*a.store, s.handle, folder.file("again"), a.select.get());
  fm::save_session(*a.store, t.handle, folder.file("t"), a.select.get());
  const auto good = read_file(folder.file("s")), again = read_file(folder.file("again")),
             other = read_file(folder.file("t"));
  CHECK(good != again);  // each save has an id of its own
  REQUIRE(good.size() == other.size());
  const auto sections = sections_of(good, a);
  const auto refused = [&](std::vector<char> bytes) {
    const std::uint64_t digest = XXH3_64bits(bytes.data(), bytes.size() - 8);
    std::memcpy(bytes.data() + bytes.size() - 8, &digest, 8);
    write_file(folder.file("bad"), bytes);
    return refusal(b, folder.file("bad"), {}, b.select.get());
  };
  REQUIRE(refused(good).empty());
  const auto chunks = static_cast<std::size_t>(a.geometry.chunks_for(100));
  for (int i = 0; i < 50; ++i) {
    const auto x = sections[1 + random() % chunks], y = sections[1 + random() % chunks];
    if (x == y) continue;
    REQUIRE(x.second == y.second);
    auto bytes = good;
    std::swap_ranges(bytes.begin() + std::ptrdiff_t(x.first),
                     bytes.begin() + std::ptrdiff_t(x.first + x.second),
                     bytes.begin() + std::ptrdiff_t(y.first));
    REQUIRE_THAT(refused(bytes), Contains("checksum of a chunk"));
  }
  for (const auto* from : {&again, &other})
    for (const auto& section : sections) {
      auto bytes = good;
      std::copy_n(from->begin() + std::ptrdiff_t(section.first), section.second,
                  bytes.begin() + std::ptrdiff_t(section.first));
      CAPTURE(section.first);
      REQUIRE_THAT(refused(bytes), Contains("checksum"));
    }
  // And without it put right, whatever the sections say.
  auto bytes = good;
  bytes[bytes.size() - 1] = char(bytes[bytes.size() - 1] ^ 1);
  write_file(folder.file("bad"), bytes);
  CHECK_THAT(refusal(b, folder.file("bad")), Contains("digest"));
}

TEST_CASE("a session is loaded only with the model tag it was saved with, and a refusal names both",
          "[session][fault]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 100) == status::ok);
  const std::string tags[] = {"", "base-7b", "base-7b+lora", std::string(256, 'x')};
  for (const std::string& saved : tags) {
    fm::session_options with;
    with.model_tag = saved;
    fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get(), with);
    for (const std::string& wanted : tags) {
      fm::session_options load;
      load.model_tag = wanted;
      const std::string says = refusal(b, folder.file("s"), load, b.select.get());
      CAPTURE(saved, wanted, says);
      CHECK(says.empty() == (saved == wanted));
      if (saved == wanted) continue;
      for (const std::string& tag : {saved, wanted})
        CHECK_THAT(says, Contains(tag.empty() ? "no model tag" : "'" + tag.substr(0, 100)));
    }
  }
  fm::session_options longer;
  longer.model_tag = std::string(257, 'x');
  CHECK_THROWS_AS(fm::save_session(*a.store, s.handle, folder.file("s"), nullptr, longer),
                  fm::argument_error);
}

TEST_CASE("index keys of another encoder are refused, and a refusal names both", "[session][fault]") {
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 100) == status::ok);
  fm::save_session(*a.store, s.handle, folder.file("s"), a.select.get());
  const auto with = [&](const fm::dual_encoder_config& config) {
    fm::dual_encoder_indexer index(config);
    fm::selector_options o;
    fm::selector select(*b.store, index, b.policy, o);
    return std::make_pair(refusal(b, folder.file("s"), {}, &select), index.taps().index_key_fingerprint);
  };
  const auto same = toy::small_dual_encoder(3);
  CHECK(with(same).first.empty());
  auto queries = same;  // the query side may be trained on: the keys stay good
  queries.retrievers[0].wq_a[5] += 1;
  queries.retrievers[1].logit_offset = 2;
  CHECK(with(queries).first.empty());
  auto retrained = same, moved = same, floor = same;
  retrained.retrievers[2].wk[7] += 0.001f;
  moved.retrievers[0].key_layer = 1;
  floor.key_scale_floor = 1e-3f;
  for (const auto& config : {retrained, moved, floor}) {
    const auto [says, print] = with(config);
    char hex[2][17];
    std::snprintf(hex[0], 17, "%016llx",
                  static_cast<unsigned long long>(a.index.taps().index_key_fingerprint));
    std::snprintf(hex[1], 17, "%016llx", static_cast<unsigned long long>(print));
    CAPTURE(says);
    CHECK_THAT(says, Contains(hex[0]) && Contains(hex[1]) && Contains("dual_encoder"));
  }
  CHECK(refusal(b, folder.file("s")).empty());  // nobody who reads the keys
}

TEST_CASE("memory is taken by what the store allows, not by what a file claims", "[session][fault]") {
  // A sparse file: a header that is right in itself, and then nothing, for more than the process may have.
  temporary_folder folder;
  host a, b;
  auto s = a.engine->open(a.options(), 5);
  REQUIRE(a.engine->step(s, 100) == status::ok);
  fm::detail::session_header h;
  h.geometry = a.geometry;
  h.options = a.options();
  h.keys.assign(std::size_t(a.geometry.index_keys.lanes), 0);
  h.encoder = b.index.taps().index_key_fingerprint;
  constexpr std::int64_t huge = std::int64_t{1} << 37;
  SECTION("a selector's state") { h.state_bytes = huge; }
  constexpr std::int64_t many = std::int64_t{1} << 32;
  SECTION("chunks") { h.options.max_tokens = h.tokens = many; }
  SECTION("a resident set") {
    h.options.max_tokens = h.tokens = many;
    h.resident = h.complete_chunks() - 1;
  }
  SECTION("index keys") {
    h.options.max_tokens = h.tokens = many;
    h.keys[0] = many / a.geometry.index_keys.tokens_per_key;
  }
  const auto head = fm::detail::encode_header(h);
  const int file = ::open(folder.file("s").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(::write(file, head.data(), head.size()) == ssize_t(head.size()));
  const std::uint64_t none = fm::detail::section_checksum(nullptr, 0, h.id, 0);
  REQUIRE(::write(file, &none, 8) == 8);  // an empty resident set is whole
  std::uint64_t number = 1;
  for (std::size_t i = 0; h.tokens == 0 && i < h.keys.size(); ++i) {  // and so are no keys
    const std::uint64_t sum = fm::detail::section_checksum(nullptr, 0, h.id, number++);
    REQUIRE(::write(file, &sum, 8) == 8);
  }
  REQUIRE(::ftruncate(file, off_t(fm::detail::session_bytes(h, "s"))) == 0);
  ::close(file);
  const auto peak = [] {
    rusage used;
    ::getrusage(RUSAGE_SELF, &used);
    return used.ru_maxrss;
  };
  const long before = peak();
  CHECK_THROWS_AS(fm::load_session(*b.store, folder.file("s"), b.select.get()), fm::error);
  CHECK(peak() - before < 16 << 10);  // KiB
  CHECK(b.store->usage().sequences == 0);
}

TEST_CASE("a forked child takes no temporary file away from its parent", "[session][fault]") {
  temporary_folder folder;
  auto file = std::make_unique<fm::detail::atomic_file>(folder.file("f"));
  file->write("text", 4);
  const pid_t child = ::fork();
  if (child == 0) {
    file.reset();
    ::_exit(0);
  }
  int state = 1;
  REQUIRE(::waitpid(child, &state, 0) == child);
  REQUIRE(state == 0);
  REQUIRE(folder.files() == 1);
  REQUIRE_NOTHROW(file->commit());
  CHECK(read_file(folder.file("f")) == std::vector<char>{'t', 'e', 'x', 't'});
}
