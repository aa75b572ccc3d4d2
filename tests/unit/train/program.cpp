// SPDX-License-Identifier: MIT
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <flashmemory/io/safetensors.hpp>
#include <flashmemory/train/exchange/artifact.hpp>
#include <flashmemory/train/record/recorder.hpp>
#include <fstream>
#include <sstream>

#include "tests/catch.hpp"
#include "tests/support/planted_documents.hpp"
#include "tests/support/temporary_folder.hpp"

namespace fm = flashmemory;
namespace ft = flashmemory::train;

namespace {

struct workplace {
  workplace() {
    ft::recorder_options o;
    o.rows = fm::dtype::f32;
    ft::recorder recorder(at("recordings"), planted::geometry(), o);
    for (const ft::document& doc : planted::many(31, 8, 3, 60)) recorder.add(doc);
    recorder.flush();
  }

  int run(const std::string& arguments) {
    const std::string command =
        std::string(FLASHMEMORY_TRAIN_INDEXER) + " " + arguments + " >" + at("out") + " 2>" + at("err");
    return std::system(command.c_str());
  }
  std::string at(const char* name) const { return folder.file(name); }
  std::string text(const char* name) const {
    std::ifstream file(at(name));
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  flashmemory_test::temporary_folder folder;
};

}  // namespace

TEST_CASE("the program trains, calibrates, reports and tells what it did", "[train]") {
  workplace w;
  const std::string train =
      "train " + w.at("recordings") +
      " --tau 16 -r 1:0 --heads 4 --layer-steps 12 --tokens-per-step 1000 --serial --validate-every 5";
  REQUIRE(w.run(train + " --ensemble-steps 0 -o " + w.at("indexer") + " --json " + w.at("json")) == 0);
  CHECK_THAT(w.text("err"), Catch::Contains("12/12"));
  CHECK_THAT(w.text("err"), Catch::Contains("step 10: held out"));
  CHECK_THAT(w.text("out"), Catch::Contains("tag odd"));
  CHECK_THAT(w.text("json"), Catch::Contains("oracle_coverage"));
  const ft::training_record record = ft::load_training_record(w.at("indexer"));
  CHECK(record.calibrated);
  REQUIRE(w.run(train + " --ensemble-steps 0 --precision bf16 -o " + w.at("rounded")) == 0);
  CHECK_THAT(ft::load_training_record(w.at("rounded")).run, Catch::Contains("\"operands\":\"bf16\""));
  CHECK(record.calibration.recall >= 0.9);
  CHECK(record.windows.tau == 16);
  CHECK(record.start == "bilinear");
  CHECK(record.recordings == ft::recordings(w.at("recordings")).fingerprint());

  REQUIRE(w.run("calibrate " + w.at("recordings") + " " + w.at("indexer") + " --tau 16 --footprint 0.2 -o " +
                w.at("other")) == 0);
  CHECK(ft::load_training_record(w.at("other")).calibration.footprint <= 0.2);
  CHECK(ft::load_training_record(w.at("other")).recordings == record.recordings);
  REQUIRE(w.run("report " + w.at("recordings") + " " + w.at("other") + " --tau 16") == 0);
  CHECK_THAT(w.text("out"), Catch::Contains("logit > 0"));
  REQUIRE(w.run("show " + w.at("other")) == 0);
  CHECK_THAT(w.text("out"), Catch::Contains("footprint"));

  SECTION("rows go out, an encoder comes in and is calibrated") {
    REQUIRE(w.run("export " + w.at("recordings") + " --tau 16 -o " + w.at("rows")) == 0);
    CHECK_THAT(w.text("out"), Catch::Contains("of 11 documents"));
    CHECK(std::filesystem::exists(w.at("rows") + "/rows.jsonl"));
    // What a framework would have saved: the trained retriever under the names of an encoder's layers.
    const fm::retriever_weights trained = fm::load_dual_encoder(w.at("indexer")).retrievers[0];
    std::vector<fm::tensor_source> tensors;
    const auto add = [&](const char* name, const std::vector<float>& values,
                         std::vector<std::int64_t> shape) {
      fm::tensor_source t;
      t.name = name;
      t.shape = std::move(shape);
      t.data = reinterpret_cast<const std::byte*>(values.data());
      t.bytes = values.size() * sizeof(float);
      tensors.push_back(t);
    };
    add("m.query.down.weight", trained.wq_a, {planted::width + 0, planted::width + 0});
    add("m.query.norm.weight", trained.q_norm, {planted::width + 0});
    add("m.query.up.weight", trained.wq_b, {4 * 128, planted::width + 0});
    add("m.query.gate.weight", trained.weights_proj, {4, planted::width + 0});
    add("m.key.weight", trained.wk, {128, planted::width + 0});
    fm::write_safetensors(w.at("encoder"), tensors, {});
    REQUIRE(w.run("import " + w.at("recordings") + " --tau 16 --prefix m. -f 1:0=" + w.at("encoder") +
                  " -o " + w.at("imported")) == 0);
    REQUIRE(w.run("calibrate " + w.at("recordings") + " " + w.at("imported") + " --tau 16") == 0);
    // Without the offset that the framework did not learn it is calibrated to the same threshold.
    CHECK(fm::load_dual_encoder(w.at("imported")).retrievers[0].wk == trained.wk);
    CHECK(fm::load_dual_encoder(w.at("imported")).retrievers[0].logit_offset ==
          Approx(trained.logit_offset).margin(1e-4));
    CHECK(w.run("import " + w.at("recordings") + " -f " + w.at("encoder") + " -o " + w.at("no")) != 0);
    CHECK_THAT(w.text("err"), Catch::Contains("KEY_LAYER=FILE"));
  }
  SECTION("the same command gives the same file") {
    REQUIRE(w.run(train + " --ensemble-steps 0 -o " + w.at("again")) == 0);
    CHECK(fm::load_dual_encoder(w.at("again")).retrievers[0].wq_b ==
          fm::load_dual_encoder(w.at("indexer")).retrievers[0].wq_b);
  }
  SECTION("a finished checkpoint is not trained again") {
    const std::string command =
        train + " --ensemble-steps 0 --checkpoint " + w.at("checkpoint") + " -o " + w.at("third");
    REQUIRE(w.run(command) == 0);
    REQUIRE(w.run(command) == 0);
    CHECK_THAT(w.text("err"), Catch::Contains("going on after step 12"));
    CHECK(fm::load_dual_encoder(w.at("third")).retrievers[0].wk ==
          fm::load_dual_encoder(w.at("indexer")).retrievers[0].wk);
  }
}

TEST_CASE("the program names what is wrong and leaves no file", "[train]") {
  workplace w;
  const std::string out = " -o " + w.at("indexer");
  CHECK(w.run("train " + w.at("nowhere") + out) != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("nowhere"));
  CHECK(w.run("train " + w.at("recordings") + out + " -r 9:0") != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("layer 9"));
  CHECK(w.run("train " + w.at("recordings") + out + " -r one:two") != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("one:two"));
  for (const std::string device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:999999", ""}) {
    CAPTURE(device);
    CHECK(w.run("train " + w.at("recordings") + out + " --device '" + device + "'") != 0);
    const bool well_formed = device == "cuda:999999";
    const std::string refused =
        FLASHMEMORY_TRAIN_INDEXER_HAS_CUDA ? "no device 999999" : "FLASHMEMORY_CUDA=OFF";
    CHECK_THAT(w.text("err"), Catch::Contains(well_formed ? refused : "'" + device + "' is neither"));
  }
  CHECK(w.run("train " + w.at("recordings") + out + " --precision f16") != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("f16"));
  CHECK(w.run("train " + w.at("recordings") + out + " --rate -1") != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("rate"));
  CHECK(w.run("train " + w.at("recordings") + " -o /proc/nothing/here --layer-steps 1 --ensemble-steps 0") !=
        0);
  CHECK_THAT(w.text("err"), Catch::Contains("/proc/nothing/here"));
  CHECK(!std::filesystem::exists(w.at("indexer")));
}

TEST_CASE("options come from a file, in a section or without, and the command line wins", "[train]") {
  workplace w;
  const auto write = [&](const std::string& text) { std::ofstream(w.at("config")) << text; };
  const std::string train = "train " + w.at("recordings") + " -o " + w.at("indexer") +
                            " --tau 16 -r 1:0 --heads 4 --start random --tokens-per-step 1000 --serial" +
                            " --config " + w.at("config");
  for (const std::string section : {"", "[train]\n"}) {
    CAPTURE(section);
    write(section + "layer-steps=3\nensemble-steps=0\n");
    REQUIRE(w.run(train) == 0);
    CHECK_THAT(w.text("err"), Catch::Contains("3/3"));
    REQUIRE(w.run(train + " --layer-steps 2") == 0);
    CHECK_THAT(w.text("err"), Catch::Contains("2/2"));
  }
  std::filesystem::remove(w.at("indexer"));
  write("no-such-option=1\n");
  CHECK(w.run(train) != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("no-such-option"));
  write("layer-steps=-3\n");
  CHECK(w.run(train) != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("--layer-steps"));
  std::filesystem::remove(w.at("config"));
  CHECK(w.run(train) != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("config"));
  CHECK(!std::filesystem::exists(w.at("indexer")));
}

TEST_CASE("what cannot end well is refused before the first step, by the name of its option", "[train]") {
  workplace w;
  // So many steps that whoever makes them first does not come back in time.
  const std::string train =
      "train " + w.at("recordings") + " --tau 16 -r 1:0 --heads 4 --serial --layer-steps 100000000";
  const std::string good = train + " -o " + w.at("indexer");
  const std::pair<std::string, const char*> wrong[] = {
      {train + " -o " + w.at("no/such/folder"), "no/such/folder"},
      {train + " -o " + w.folder.path(), "write"},
      {good + " --json " + w.at("no/json"), "no/json"},
      {good + " --json " + w.at("indexer"), "--json"},
      {good + " --checkpoint " + w.at("no/checkpoint"), "no/checkpoint"},
      {good + " --recall nan", "--recall"},
      {good + " --recall 90", "90 % is 0.9"},
      {good + " --footprint 13.5", "--footprint"},
      {good + " --rate inf", "--rate"},
      {good + " --memory -1", "--memory"},
      {good + " --memory 100000000", "--memory"},
      {good + " --tau 0", "--tau"},
      {good + " --label-layer -2", "--label-layer"},
      {good + " --label-layer 77", "--label-layer"},
      {good + " --label-heads 100000", "--label-heads"},
      {good + " --attention-head a,b,c,d,e", "--attention-head"},
      {good + " --attention-head a,b,99999999999,0,64", "--attention-head"},
      {good + " -r 0:99", "--retriever"},
      {good + " -r 99999999999:0", "--retriever"},
      {good + " --from " + w.at("nothing"), "--from"},
      {"calibrate " + w.at("recordings") + " " + w.at("nothing") + " -o " + w.at("no/folder"), "no/folder"},
      {"report " + w.at("recordings") + " " + w.at("nothing") + " --json " + w.at("no/folder"), "no/folder"},
      {"export " + w.at("recordings") + " -o " + w.at("out/rows"), "rows"},
  };
  for (const auto& [command, named] : wrong) {
    CAPTURE(command);
    const int ended = w.run(command);
    CHECK(WIFEXITED(ended));
    CHECK(WEXITSTATUS(ended) != 0);
    CHECK_THAT(w.text("err"), Catch::Contains(named));
  }
  CHECK(!std::filesystem::exists(w.at("indexer")));
}

TEST_CASE("SIGTERM and Ctrl-C leave a checkpoint that the next run goes on from", "[train]") {
  workplace w;
  const std::string train = "train " + w.at("recordings") + " -o " + w.at("indexer") +
                            " --tau 16 -r 1:0 --heads 4 --start random --tokens-per-step 1000 --serial" +
                            " --ensemble-steps 0 --validate-every 0 --layer-steps ";
  for (const char* signal : {"TERM", "INT"}) {
    for (const bool own : {true, false}) {
      CAPTURE(signal, own);
      const std::string checkpoint = own ? w.at("checkpoint") : w.at("indexer.checkpoint");
      std::filesystem::remove(checkpoint);
      const std::string all = train + "100000000" + (own ? " --checkpoint " + checkpoint : "");
      // The program's first line of progress says that steps are being made.
      const std::string script = "bash -c '" + std::string(FLASHMEMORY_TRAIN_INDEXER) + " " + all + " >" +
                                 w.at("out") + " 2>" + w.at("err") + " & p=$!; until grep -q 100000000 " +
                                 w.at("err") + "; do kill -0 $p || exit 99; done; kill -" + signal +
                                 " $p; wait $p; exit $?'";
      const int ended = std::system(script.c_str());
      REQUIRE(WIFEXITED(ended));
      CHECK(WEXITSTATUS(ended) == (std::string(signal) == "TERM" ? 143 : 130));
      CHECK(std::filesystem::exists(checkpoint));
      CHECK_THAT(w.text("err"), Catch::Contains("goes on"));
      CHECK(!std::filesystem::exists(w.at("indexer")));
    }
  }
}

TEST_CASE("an indexer that cannot be calibrated is written as it was trained", "[train]") {
  workplace w;
  // No chunk is ever needed by so strict a rule that attention never meets, so recall has no meaning.
  const std::string train = "train " + w.at("recordings") + " -o " + w.at("indexer") +
                            " --tau 16 -r 1:0 --heads 4 --start random --tokens-per-step 1000 --serial" +
                            " --ensemble-steps 0 --layer-steps 2 --min-tokens 1000000";
  REQUIRE(w.run(train) != 0);
  CHECK_THAT(w.text("err"), Catch::Contains("not calibrated"));
  CHECK(!ft::load_training_record(w.at("indexer")).calibrated);
  CHECK(fm::load_dual_encoder(w.at("indexer")).retrievers.size() == 1);
}
