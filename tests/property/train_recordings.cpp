// SPDX-License-Identifier: MIT
// Random runs of several recorders in one folder, with crashes, against a list of what was finished.
#include <flashmemory/train/label/labels.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <flashmemory/train/record/recordings.hpp>
#include <map>
#include <memory>
#include <random>

#include "tests/catch.hpp"
#include "tests/support/fresh_seed.hpp"
#include "tests/support/random_document.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace train = flashmemory::train;
using support::random_document;
using support::same;

namespace {

/// Hands `doc` to the recorder a piece at a time, as an engine would; pieces() of them.
class slow_writer {
 public:
  slow_writer(const train::recording_geometry& g, train::document doc) : g_(&g), doc_(std::move(doc)) {}

  void begin(train::recorder& to) { id_ = to.begin(doc_.tag, doc_.split); }
  train::recording_id id() const noexcept { return id_; }
  const train::document& doc() const noexcept { return doc_; }

  /// The tokens [from, to_token) of everything.
  void show(train::recorder& to, std::int64_t from, std::int64_t end) {
    std::vector<std::vector<float>> rows;
    std::vector<const float*> pointers;
    for (const auto& q : doc_.queries) rows.emplace_back(static_cast<std::size_t>(q.width()));
    for (const auto& r : rows) pointers.push_back(r.data());
    for (std::size_t p = 0; p < doc_.positions.size(); ++p) {
      if (doc_.positions[p] < from || doc_.positions[p] >= end) continue;
      for (std::size_t i = 0; i < rows.size(); ++i)
        doc_.queries[i].read(static_cast<std::int64_t>(p), rows[i].data());
      to.add_query(id_, doc_.positions[p], pointers.data());
    }
    const auto& a = doc_.attention;
    for (std::size_t t = 0; t < a.positions.size(); ++t) {
      if (a.positions[t] < from || a.positions[t] >= end) continue;
      std::vector<train::attention_entry> items;
      for (auto i = static_cast<std::size_t>(a.offsets[t]); i < static_cast<std::size_t>(a.offsets[t + 1]);
           ++i)
        items.push_back({a.layer[i], a.head[i], std::int64_t{a.entry[i]}, a.mass[i]});
      to.add_attention(id_, a.positions[t], items);
    }
    for (std::size_t s = 0; s < g_->keys.size(); ++s) {
      const std::int64_t first = from / g_->keys[s].tokens_per_key, last = end / g_->keys[s].tokens_per_key;
      for (std::int64_t k = first; k < last; ++k) {
        if (g_->keys[s].native()) {
          to.add_native_keys(id_, static_cast<std::int32_t>(s),
                             fm::view<const std::byte, 2>(doc_.keys[s].native.data() + k * 132, 1, 132));
          continue;
        }
        std::vector<float> row(static_cast<std::size_t>(g_->keys[s].width));
        doc_.keys[s].inputs.read(k, row.data());
        to.add_key_inputs(id_, static_cast<std::int32_t>(s),
                          fm::view<const float, 2>(row.data(), 1, g_->keys[s].width));
      }
    }
  }

  void finish(train::recorder& to) {
    for (const auto& need : doc_.evidence) to.add_evidence(id_, need);
    to.finish(id_, doc_.tokens);
  }

 private:
  const train::recording_geometry* g_;
  train::document doc_;
  train::recording_id id_ = -1;
};

}  // namespace

TEST_CASE("random recorders in one folder lose nothing that was flushed and invent nothing", "[train]") {
  const std::uint64_t seed = GENERATE(flashmemory_test::fresh_seeds(4));
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  const auto g = support::small_geometry(below(2) == 0 ? 1 : 4);
  const flashmemory_test::temporary_folder folder;
  const std::vector<std::string> writers{"a", "b-2", "c_3"};
  std::map<std::string, std::map<std::int64_t, train::document>> expected;
  std::uint64_t next = 0;

  for (int run = 0; run < 6; ++run) {
    struct at_work {
      std::string name;
      std::unique_ptr<train::recorder> recorder;
      std::vector<std::pair<slow_writer, std::int64_t>> open;  ///< and how far it is
      std::map<std::int64_t, train::document> finished;
    };
    std::vector<at_work> all;
    for (const auto& name : writers) {
      train::recorder_options o;
      o.writer = name;
      o.memory_budget = 7000 + below(30000);
      o.shard_bytes = 1 + below(o.memory_budget);
      all.push_back({name, std::make_unique<train::recorder>(folder.path(), g, o), {}, {}});
    }
    for (int step = 0; step < 60; ++step) {
      at_work& w = all[below(all.size())];
      if (w.open.size() < 3 && below(2) == 0) {
        w.open.emplace_back(slow_writer(g, random_document(g, seed * 1000 + next++, 60)), 0);
        w.open.back().first.begin(*w.recorder);
        continue;
      }
      if (w.open.empty()) continue;
      auto& [writer, position] = w.open[below(w.open.size())];
      const std::int64_t end = std::min<std::int64_t>(writer.doc().tokens, position + 1 + below(40));
      writer.show(*w.recorder, position, end);
      position = end;
      if (end < writer.doc().tokens) continue;
      for (auto at = w.open.begin(); at != w.open.end(); ++at)
        if (at->first.id() == writer.id()) {
          if (below(8) == 0) {
            w.recorder->drop(at->first.id());
          } else {
            at->first.finish(*w.recorder);
            w.finished.emplace(at->first.id(), at->first.doc());
          }
          w.open.erase(at);
          break;
        }
    }
    for (at_work& w : all) {  // gone without a word, or after a flush; what is open is lost
      if (below(2) == 0) w.recorder->flush();
      w.recorder.reset();
      expected[w.name].insert(w.finished.begin(), w.finished.end());
    }
    std::size_t count = 0;
    for (const auto& [name, docs] : expected) count += docs.size();
    if (count == 0) continue;
    const train::recordings data(folder.path());
    data.verify();
    REQUIRE(data.documents().size() == count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string& name = data.documents()[i].name;
      const auto slash = name.find('/');
      const auto& mine = expected[name.substr(0, slash)];
      const auto found = mine.find(std::stoll(name.substr(slash + 1)));
      CAPTURE(name);
      REQUIRE(found != mine.end());
      CHECK(same(data.load(static_cast<std::int64_t>(i)), found->second));
    }
  }
}

TEST_CASE("labels grow with tau and shrink with theta and votes", "[train]") {
  const std::uint64_t seed = GENERATE(flashmemory_test::fresh_seeds(5));
  CAPTURE(seed);
  const auto g = support::small_geometry();
  const auto doc = random_document(g, seed, 200);
  auto options = train::window_options_for(g);
  options.entries_per_chunk = 4;
  const auto chunks = [&](std::int64_t position, const train::label_rule& rule) {
    std::vector<int> out;
    for (const auto& p : label_window(doc, position, rule, options).positives) out.push_back(p.chunk);
    return out;
  };
  for (std::int64_t position = 0; position < doc.tokens; position += 7)
    for (const auto kind : {train::label_kind::max_mass, train::label_kind::nucleus_votes}) {
      train::label_rule loose, strict;
      loose.kind = strict.kind = kind;
      loose.min_mass = 0.2f;
      strict.min_mass = 0.5f;
      loose.votes = 1;
      strict.votes = 2;
      options.tau = 40;
      const auto far = chunks(position, loose);
      const auto few = chunks(position, strict);
      CHECK(std::includes(far.begin(), far.end(), few.begin(), few.end()));
      options.tau = 10;
      const auto near = chunks(position, loose);
      CHECK(std::includes(far.begin(), far.end(), near.begin(), near.end()));
    }
}
