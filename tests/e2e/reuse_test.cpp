// Another format from the statistics of an earlier run: the same bytes as with a forward pass, at every rank count, and a clear refusal
// where the statistics cannot serve.

#include <filesystem>

#include "checkpoint/stats_file.h"
#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

struct Way {
  int ranks;
  Words words;
};
const std::vector<Way>& dense_ways() {
  static const std::vector<Way> ways{{1, {}}, {2, {"parallel.tensor=2"}}, {2, {"parallel.pipeline=2"}}, {3, {}}};
  return ways;
}
const std::vector<Way>& moe_ways() {
  static const std::vector<Way> ways{
      {1, {}}, {2, {"parallel.expert=2"}}, {2, {"parallel.pipeline=2"}}, {4, {"parallel.tensor=2", "parallel.pipeline=2"}}};
  return ways;
}
Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class Reuse : public RecipeRuns {
 protected:
  static constexpr int kRows = 6, kLength = 48;

  Words arguments(const std::string& recipe, const std::string& output, const Words& words) const {
    return Words{folder_ / recipe, "output.path=" + (folder_ / output)} + words;
  }
  /// A run of the model at folder_ / "model" whose statistics are reused: folder_ / "first".
  void calibrate(const Words& words, int ranks = 1) {
    folder_.write("data.jsonl", random_documents(kRows, kLength, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", kRows, kLength);
    folder_.write("reuse.yaml", "model: {path: " + (folder_ / "model") + "}\ncalibration: {reuse: " + (folder_ / "first") +
                                    "}\nquantization: {preset: nvfp4}\noutput: {path: unset}\n");
    expect_success(run_program(arguments("recipe.yaml", "first", Words{"calibration.pack=false"} + words), {.ranks = ranks}));
  }
  /// The same recipe with a forward pass, and with reuse in all of these ways.
  void expect_same_bytes(const Words& words, const std::vector<Way>& ways) {
    std::string text;
    for (const std::string& word : words) text += word + " ";
    SCOPED_TRACE(text);
    std::vector<ProgramCall> calls{{arguments("recipe.yaml", "forward", Words{"calibration.pack=false", "output.overwrite=true"} + words)}};
    for (size_t i = 0; i < ways.size(); ++i)
      calls.push_back({arguments("reuse.yaml", "reused_" + std::to_string(i), Words{"output.overwrite=true"} + words + ways[i].words),
                       {.ranks = ways[i].ranks}});
    const std::vector<ProgramResult> results = run_programs(calls, 2);
    for (size_t i = 0; i < results.size(); ++i) {
      expect_success(results[i]);
      if (i == 0 || HasFailure()) continue;
      const std::string reused = folder_ / ("reused_" + std::to_string(i - 1));
      expect_same_output(folder_ / "forward", reused);
      EXPECT_NE(results[i].err.find("no forward pass: statistics of 6 samples, 288 tokens"), std::string::npos) << results[i].report();
      EXPECT_EQ(read_json_file(reused + "/ptq-runner/manifest.json").at("data").at("reused"), folder_ / "first/ptq-runner/calibration.h5");
    }
  }
  void expect_refusal(int code, const Words& message, const Words& words, const std::vector<int>& ranks = {1, 2}) {
    for (const int count : ranks) {
      const ProgramResult result = run_program(arguments("reuse.yaml", "out", words), {.ranks = count});
      EXPECT_EQ(result.exit_code, code) << result.report();
      EXPECT_EQ(result.errors().size(), 1u) << result.report();
      for (const std::string& part : message) EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.report();
      EXPECT_FALSE(fs::exists(folder_ / "out"));
      EXPECT_FALSE(fs::exists(folder_ / "out.work"));
    }
  }
};

constexpr TinyLlama kLlama{.hidden = 128, .intermediate = 256};
constexpr TinyMoe kMoe{.hidden = 128, .intermediate = 128};

const Words kFp8{"quantization.preset=fp8"}, kNvfp4WithKv{"quantization.preset=nvfp4", "quantization.kv_cache=fp8"},
    kHead{"quantization.preset=fp8", "quantization.ignore=[]"},
    kInt8{"quantization.preset=int8_sq", "quantization.smoothquant.alpha=0.6", "quantization.kv_cache=fp8",
          "output.dialect=compressed-tensors"},
    kChannels{"quantization.preset=fp8_pc_pt", "quantization.kv_cache=fp8", "output.dialect=compressed-tensors"},
    kInt4{"quantization.preset=int4_awq", "quantization.kv_cache=fp8"}, kNvfp4Awq{"quantization.preset=nvfp4_awq"},
    kInt8Auto{"quantization.preset=int8_sq", "quantization.smoothquant.alpha=auto", "output.dialect=compressed-tensors"};

TEST_F(Reuse, OfAnNvfp4RunMakesOtherFormatsOfADenseModel) {
  make_tiny_llama(folder_ / "model", kLlama);
  calibrate({});

  for (const Words& words : {kFp8, kNvfp4WithKv, kHead, kInt8, kChannels}) expect_same_bytes(words, dense_ways());
}

TEST_F(Reuse, OfKeptGramMatricesServesSearchesOfADenseModel) {
  make_tiny_llama(folder_ / "model", kLlama);
  calibrate({"calibration.keep_gram=true"}, 2);

  for (const Words& words : {kInt4, kNvfp4Awq, kInt8Auto}) expect_same_bytes(words, dense_ways());
}

TEST_F(Reuse, MakesOtherFormatsOfAMixtureOfExperts) {
  make_tiny_mixtral(folder_ / "model", kMoe);
  calibrate({});

  for (const Words& words : {kNvfp4WithKv, kInt8}) expect_same_bytes(words, moe_ways());
}

TEST_F(Reuse, OfKeptGramMatricesServesSearchesOfExperts) {
  make_tiny_mixtral(folder_ / "model", kMoe);
  calibrate({"calibration.keep_gram=true"}, 2);

  for (const Words& words : {kInt4, kNvfp4Awq}) expect_same_bytes(words, moe_ways());
}

TEST_F(Reuse, ServesLatentAttentionAndForcedTokens) {
  make_tiny_deepseek(folder_ / "model", kMoe);
  calibrate({"moe.force_route=true", "moe.min_tokens_per_expert=200"});

  const Words forced{"moe.force_route=true", "moe.min_tokens_per_expert=200"};
  for (const Words& words : {kFp8, kInt8}) expect_same_bytes(words + forced, {{1, {}}, {2, {"parallel.tensor=2"}}});
}

TEST_F(Reuse, OfKeysAndValuesByChannel) {
  make_tiny_llama(folder_ / "model", kLlama);
  calibrate({"quantization.kv_cache=nvfp4_affine"});

  expect_same_bytes({"quantization.preset=fp8", "quantization.kv_cache=nvfp4_affine"}, dense_ways());
}

TEST_F(Reuse, OfExpertsThatDoNotFitIntoMemory) {
  make_tiny_mixtral(folder_ / "model", {.hidden = 256, .intermediate = 2048, .layers = 2, .experts = 8});
  calibrate({"calibration.keep_gram=true", "moe.min_tokens_per_expert=1"});

  const ProgramResult refusal = run_program(arguments("reuse.yaml", "out", kNvfp4Awq + Words{"memory.host=1MiB"}));
  const size_t at = refusal.err.find("this rank needs ");
  ASSERT_NE(at, std::string::npos) << refusal.report();
  const std::string memory = "memory.host=" + std::to_string(static_cast<int>(std::stod(refusal.err.substr(at + 16))) + 4) + "MiB";
  expect_success(run_program(arguments("recipe.yaml", "forward", kNvfp4Awq + Words{"calibration.pack=false"})));
  const ProgramResult reused = run_program(arguments("reuse.yaml", "reused", kNvfp4Awq + Words{memory}));

  expect_success(reused);
  EXPECT_NE(reused.err.find(" at a time"), std::string::npos) << reused.report();
  expect_same_output(folder_ / "forward", folder_ / "reused");
}

TEST_F(Reuse, KeepsWhatItReused) {
  make_tiny_mixtral(folder_ / "model", kMoe);
  calibrate({"calibration.keep_gram=true"});

  expect_success(run_program(arguments("reuse.yaml", "second", kFp8)));
  expect_success(run_program(arguments("reuse.yaml", "third", Words{"calibration.reuse=" + (folder_ / "second")} + kInt8)));
  expect_success(run_program(arguments("reuse.yaml", "with_grams", kFp8 + Words{"calibration.keep_gram=true"})));

  const checkpoint::Stats first = checkpoint::read_stats(folder_ / "first/ptq-runner/calibration.h5"),
                          third = checkpoint::read_stats(folder_ / "third/ptq-runner/calibration.h5");
  EXPECT_EQ(first.arrays, third.arrays);
  EXPECT_EQ(first.attributes.at("run"), third.attributes.at("run"));
  EXPECT_TRUE(read_file(folder_ / "first/ptq-runner/calibration/layer_1.h5") ==
              read_file(folder_ / "third/ptq-runner/calibration/layer_1.h5"));
  EXPECT_FALSE(fs::exists(folder_ / "third/ptq-runner/calibration/layer_1.grams.h5"));
  for (const std::string name : {"/calibration.h5", "/calibration/layer_0.grams.h5", "/calibration/layer_0.expert_0.h5"})
    EXPECT_TRUE(read_file(folder_ / ("first/ptq-runner" + name)) == read_file(folder_ / ("with_grams/ptq-runner" + name))) << name;
}

TEST_F(Reuse, LooksAtTheDataOnlyWhereItIsNamed) {
  make_tiny_llama(folder_ / "model", kLlama);
  calibrate({});
  expect_success(run_program(arguments("reuse.yaml", "same", Words{"calibration.data=" + (folder_ / "data.jsonl")})));
  folder_.write("other.jsonl", random_documents(kRows, kLength, 128, 2));

  expect_refusal(2, {"are of other data than calibration.data"}, {"calibration.data=" + (folder_ / "other.jsonl")});
  fs::remove(folder_ / "data.jsonl");
  expect_success(run_program(arguments("reuse.yaml", "without", {})));
}

TEST_F(Reuse, RefusesWhatCannotServe) {
  make_tiny_llama(folder_ / "model", kLlama);
  make_tiny_llama(folder_ / "other", {.hidden = 128, .intermediate = 256, .seed = 2});
  calibrate({});
  expect_success(run_program(arguments("recipe.yaml", "uncalibrated", {"quantization.preset=mxfp8"})));

  expect_refusal(2, {"no such file or folder", "calibration.reuse"}, {"calibration.reuse=" + (folder_ / "absent.h5")});
  expect_refusal(2, {"has neither calibration.h5"}, {"calibration.reuse=" + (folder_ / "model")});
  expect_refusal(3, {"not a sound statistics file"}, {"calibration.reuse=" + (folder_ / "model/config.json")});
  expect_refusal(2, {"saw no activations"}, {"calibration.reuse=" + (folder_ / "uncalibrated")});
  expect_refusal(2, {"of another model", "other"}, {"model.path=" + (folder_ / "other")});
  expect_refusal(2, {"there 'calibration.samples' is 6, here it is 5"}, {"calibration.samples=5"});
  expect_refusal(2, {"there 'compute' is bf16, here it is fp32"}, {"compute=fp32"});
  expect_refusal(2, {"hold no Gram matrices", "calibration.keep_gram: true"}, kInt4);
  expect_refusal(2, {"hold no Gram matrices", "alpha: auto"}, kInt8Auto);
  expect_refusal(2, {"keep_gram asks for Gram matrices"}, {"calibration.keep_gram=true"});
  expect_refusal(2, {"keys and values by channel"}, {"quantization.kv_cache=nvfp4_affine"});
}

TEST_F(Reuse, RefusesDamagedStatistics) {
  make_tiny_mixtral(folder_ / "model", kMoe);
  calibrate({"calibration.keep_gram=true"});
  const std::string details = folder_ / "first/ptq-runner/calibration";
  const auto spoil = [&](const std::string& name, const Words& words) {
    SCOPED_TRACE(name);
    const std::string path = details + "/" + name, whole = read_file(path);
    write_file(path, whole.substr(0, whole.size() / 2));
    expect_refusal(3, {"not a sound statistics file", name}, words);
    fs::remove(path);
    expect_refusal(3, {"statistics are missing", name}, words);
    write_file(path, whole);
  };

  spoil("layer_1.h5", kFp8);
  spoil("layer_1.grams.h5", kNvfp4Awq);
  spoil("layer_1.expert_2.h5", kNvfp4Awq);
  // Of another run: sound, but not what calibration.h5 is of.
  checkpoint::Stats foreign = checkpoint::read_stats(details + "/layer_0.h5");
  foreign.attributes["run"] = "another";
  checkpoint::write_stats(details + "/layer_0.h5", foreign);
  expect_refusal(3, {"not of the run that calibration.h5 is of", "layer_0.h5"}, kFp8);
  // A layer's numbers are missing.
  const std::string main = folder_ / "first/ptq-runner/calibration.h5";
  checkpoint::Stats part = checkpoint::read_stats(main);
  part.arrays.erase("model.layers.1.self_attn.q_proj/input_amax");
  checkpoint::write_stats(main, part);
  foreign.attributes["run"] = part.attributes.at("run");
  checkpoint::write_stats(details + "/layer_0.h5", foreign);
  expect_refusal(3, {"the statistics have no 'model.layers.1.self_attn.q_proj/input_amax'"}, kFp8);
}

}  // namespace
}  // namespace ptq::test
