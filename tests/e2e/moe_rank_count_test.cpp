// Mixtures of experts: the same bytes however experts, heads, layers and tokens are split, and however few experts fit into memory.

#include <cmath>

#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

struct Way {
  const char* name;
  int ranks;
  std::vector<std::string> words;
};

const std::vector<Way>& ways() {
  static const std::vector<Way> all{
      {"expert_2", 2, {"parallel.expert=2"}},
      {"expert_3", 3, {"parallel.expert=3"}},
      {"expert_4", 4, {"parallel.expert=4"}},
      {"expert_2_data_2", 4, {"parallel.expert=2"}},
      {"data_3", 3, {}},
      {"tensor_2_expert_2", 2, {"parallel.tensor=2", "parallel.expert=2"}},
      {"tensor_2_expert_4", 4, {"parallel.tensor=2", "parallel.expert=4"}},
      {"pipeline_2_expert_2", 4, {"parallel.pipeline=2", "parallel.expert=2"}},
      {"pipeline_2_tensor_2", 4, {"parallel.pipeline=2", "parallel.tensor=2"}},
  };
  return all;
}

/// A phase's event in run.jsonl.
Json event(const std::string& output, const std::string& phase) {
  std::istringstream text(read_file(output + "/ptq-runner/run.jsonl"));
  for (std::string line; std::getline(text, line);)
    if (Json found = Json::parse(line); found.at("phase") == phase) return found;
  return Json::object();
}

class MoeRankCount : public RecipeRuns {
 protected:
  void expect_same_bytes_in_all_ways() {
    const std::string one = quantize("one", 1, {"--threads", "1"});
    ASSERT_EQ(last_.exit_code, 0);
    for (const Way& way : ways()) {
      const std::string output = quantize(way.name, way.ranks, way.words);
      if (last_.exit_code == 0) expect_same_output(one, output);
    }
  }
  /// Of the fixture, with a quantized KV cache and rows of unequal length.
  void expect_same_bytes_of(const std::string& model) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 7, 96);
    recipe_with({"quantization.kv_cache=fp8", "calibration.pack=false"});
    expect_same_bytes_in_all_ways();
  }
  /// Puts overrides into the recipe itself.
  void recipe_with(const std::vector<std::string>& words) { always_ = words; }
  std::string quantize(const std::string& name, int ranks, std::vector<std::string> words) {
    words.insert(words.end(), always_.begin(), always_.end());
    return RecipeRuns::quantize(name, ranks, words);
  }

  /// memory.host that leaves room for about `mebibytes` more than the least there can be: the program's refusal says how much that is.
  std::string scarce_memory(int ranks, std::vector<std::string> words, double mebibytes) {
    words.insert(words.begin(), {folder_ / "recipe.yaml", "output.path=" + folder_ / "never", "memory.host=1MiB"});
    words.insert(words.end(), always_.begin(), always_.end());
    const ProgramResult refused = run_program(words, {.ranks = ranks});
    const size_t at = refused.err.find("this rank needs ");
    EXPECT_NE(at, std::string::npos) << refused.report();
    const double least = at == std::string::npos ? 0 : std::stod(refused.err.substr(at + 16));
    return "memory.host=" + std::to_string(static_cast<int>(std::ceil(least + mebibytes))) + "MiB";
  }

  /// The model at folder_ / "model", whole and with experts streamed at one rank, at two expert ranks and at two that share all experts.
  /// Returns the bytes read of the source: with all experts in memory, and streamed.
  std::pair<int64_t, int64_t> expect_same_bytes_when_streamed() {
    folder_.write("data.jsonl", random_documents(6, 48, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 6, 48);
    recipe_with({"calibration.pack=false", "output.verify=false"});
    const std::string whole = quantize("whole", 1, {});
    EXPECT_EQ(last_.err.find("at a time"), std::string::npos) << last_.report();
    int64_t streamed_bytes = 0;
    const std::vector<Way> streamed{{"streamed", 1, {}}, {"streamed_expert_2", 2, {"parallel.expert=2"}}, {"streamed_data_2", 2, {}}};
    for (const Way& way : streamed) {
      std::vector<std::string> words = way.words;
      words.push_back(scarce_memory(way.ranks, way.words, 3));
      const std::string output = quantize(way.name, way.ranks, words);
      EXPECT_NE(last_.err.find("did not fit into memory.host"), std::string::npos) << way.name << "\n" << last_.report();
      EXPECT_NE(last_.err.find("at a time"), std::string::npos) << way.name << "\n" << last_.report();
      if (last_.exit_code != 0) continue;
      expect_same_output(whole, output);
      if (way.ranks == 1) streamed_bytes = event(output, "transferred").at("bytes_read");
    }
    return {event(whole, "transferred").at("bytes_read").get<int64_t>(), streamed_bytes};
  }

 private:
  std::vector<std::string> always_;
};

TEST_F(MoeRankCount, DoesNotChangeTheBytesOfQwen3Moe) { expect_same_bytes_of("qwen3-moe"); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfMixtral) { expect_same_bytes_of("mixtral"); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfDeepseekV3) { expect_same_bytes_of("deepseek-v3"); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfLlama4) { expect_same_bytes_of("llama4"); }

TEST_F(MoeRankCount, DoesNotChangeTheBytesOfGptOssInFp8AndFp32) {
  make_tiny_gpt_oss(folder_ / "model", {.experts = 5});
  store_in_mxfp4(folder_ / "model");
  folder_.write("data.jsonl", random_documents(5, 40, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 5, 40, "fp8");
  recipe_with({"calibration.pack=false", "compute=fp32"});
  expect_same_bytes_in_all_ways();
}

TEST_F(MoeRankCount, MayLeaveRanksWithoutTokensOrExperts) {
  // 2 rows and 3 experts a layer: some of the ranks have no row, some no expert of a chunk, some neither.
  make_tiny_mixtral(folder_ / "model", {.experts = 3});
  folder_.write("data.jsonl", random_documents(2, 3, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 2, 3);
  recipe_with({"calibration.pack=false"});
  const std::string one = quantize("one", 1, {});
  expect_same_output(one, quantize("data_4", 4, {}));
  expect_same_output(one, quantize("expert_3", 3, {"parallel.expert=3"}));
  expect_same_output(one, quantize("expert_2_of_6", 6, {"parallel.expert=2"}));
  expect_same_output(one, quantize("tensor_2_expert_2_of_8", 8, {"parallel.tensor=2", "parallel.expert=2", "parallel.pipeline=2"}));
}

// Experts of 3 MiB, six of them in a layer.
constexpr TinyMoe kLargeExperts{.hidden = 128, .intermediate = 4096, .experts = 6};

TEST_F(MoeRankCount, AndStreamedExpertsDoNotChangeTheBytesOfMixtral) {
  make_tiny_mixtral(folder_ / "model", kLargeExperts);
  const auto [whole, streamed] = expect_same_bytes_when_streamed();
  EXPECT_EQ(whole, streamed) << "experts one by one are read once";
}

TEST_F(MoeRankCount, AndStreamedExpertsDoNotChangeTheBytesOfDeepseekInFp8Blocks) {
  make_tiny_deepseek(folder_ / "model", kLargeExperts);
  store_in_fp8_blocks(folder_ / "model");
  const auto [whole, streamed] = expect_same_bytes_when_streamed();
  EXPECT_EQ(whole, streamed);
}

TEST_F(MoeRankCount, AndStreamedExpertsDoNotChangeTheBytesOfLlama4) {
  make_tiny_llama4(folder_ / "model", kLargeExperts);
  const auto [whole, streamed] = expect_same_bytes_when_streamed();
  int64_t stacked = 0;
  for (const auto& [name, tensor] : read_tensors(folder_ / "model"))
    if (tensor.shape.size() == 3) stacked += static_cast<int64_t>(tensor.bytes.size());
  EXPECT_EQ(streamed, whole + stacked) << "the scale of stacked experts is known when all were seen: those that left memory come again";
}

TEST_F(MoeRankCount, AndStreamedExpertsDoNotChangeTheBytesOfGptOssInMxfp4) {
  make_tiny_gpt_oss(folder_ / "model", kLargeExperts);
  store_in_mxfp4(folder_ / "model");
  expect_same_bytes_when_streamed();
}

}  // namespace
}  // namespace ptq::test
