// Mixtures of experts: the same bytes however experts, heads, layers and tokens are split, and however few experts fit into memory.

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
  /// The recipe at one rank and one thread, and in these ways, all in folders of their names.
  void expect_same_bytes(const std::vector<Way>& ways, const std::vector<std::string>& words) {
    std::vector<Way> all{{"one", 1, {"--threads", "1"}}};
    all.insert(all.end(), ways.begin(), ways.end());
    const std::vector<ProgramResult> results = run_ways(all, words);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(all[i].name);
      expect_success(results[i]);
      if (results[0].exit_code == 0 && results[i].exit_code == 0) expect_same_output(folder_ / "one", folder_ / all[i].name);
    }
  }
  /// Of the fixture, with a quantized KV cache and rows of unequal length.
  void expect_same_bytes_of(const std::string& model, std::vector<std::string> words = {}) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 7, 96);
    words.insert(words.end(), {"quantization.kv_cache=fp8", "calibration.pack=false"});
    expect_same_bytes(ways(), words);
  }

  /// The model at folder_ / "model", whole and with experts streamed: at one rank, at two expert ranks, at two that share all experts and
  /// in two stages. Returns the bytes read of the source: with all experts in memory, and streamed.
  std::pair<int64_t, int64_t> expect_same_bytes_when_streamed(std::vector<std::string> words = {}) {
    folder_.write("data.jsonl", random_documents(6, 48, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 6, 48);
    words.insert(words.end(), {"calibration.pack=false", "output.verify=false"});
    const std::string whole = quantize("whole", 1, words);
    EXPECT_EQ(last_.err.find("at a time"), std::string::npos) << last_.report();

    // The least memory there can be is in the refusal; a little more is enough for some experts, and not for all.
    const std::vector<Way> streamed{{"streamed", 1, {}},
                                    {"streamed_expert_2", 2, {"parallel.expert=2"}},
                                    {"streamed_data_2", 2, {}},
                                    {"streamed_pipeline_2", 2, {"parallel.pipeline=2"}}};
    std::vector<Way> scarce = streamed;
    for (Way& way : scarce) way.words.emplace_back("memory.host=1MiB");
    const std::vector<ProgramResult> refusals = run_ways(scarce, words);
    std::vector<int64_t> mebibytes;
    for (size_t i = 0; i < scarce.size(); ++i) {
      const size_t at = refusals[i].err.find("this rank needs ");
      if (at == std::string::npos) {
        ADD_FAILURE() << refusals[i].report();
        return {};
      }
      mebibytes.push_back(static_cast<int64_t>(std::stod(refusals[i].err.substr(at + 16))) + 4);
      scarce[i].words.back() = "memory.host=" + std::to_string(mebibytes.back()) + "MiB";
    }
    const std::vector<ProgramResult> results = run_ways(scarce, words);
    for (size_t i = 0; i < scarce.size(); ++i) {
      SCOPED_TRACE(scarce[i].name);
      expect_success(results[i]);
      EXPECT_NE(results[i].err.find("a layer's experts did not fit into memory.host: "), std::string::npos) << results[i].report();
      EXPECT_NE(results[i].err.find(" at a time"), std::string::npos) << results[i].report();
      if (results[i].exit_code != 0) continue;
      expect_same_output(whole, folder_ / scarce[i].name);
      EXPECT_LE(event(folder_ / scarce[i].name, "finished").at("peak_bytes_of_any_rank").get<int64_t>(), (mebibytes[i] + 1) << 20);
    }
    if (HasFailure()) return {};
    return {event(whole, "transferred").at("bytes_read").get<int64_t>(),
            event(folder_ / "streamed", "transferred").at("bytes_read").get<int64_t>()};
  }

 private:
  /// Some at a time: most of what mpirun takes is waiting.
  std::vector<ProgramResult> run_ways(const std::vector<Way>& ways, const std::vector<std::string>& words) {
    std::vector<ProgramCall> calls;
    for (const Way& way : ways) {
      calls.push_back({{folder_ / "recipe.yaml", "output.path=" + folder_ / way.name}, {.ranks = way.ranks}});
      for (const auto* more : {&words, &way.words}) calls.back().arguments.insert(calls.back().arguments.end(), more->begin(), more->end());
    }
    return run_programs(calls, 3);
  }
};

TEST_F(MoeRankCount, DoesNotChangeTheBytesOfQwen3Moe) { expect_same_bytes_of("qwen3-moe"); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfMixtralInShards) { expect_same_bytes_of("mixtral", {"output.max_shard_size=2MB"}); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfDeepseekV3) { expect_same_bytes_of("deepseek-v3"); }
TEST_F(MoeRankCount, DoesNotChangeTheBytesOfLlama4) { expect_same_bytes_of("llama4"); }

TEST_F(MoeRankCount, DoesNotChangeTheBytesOfGptOssInFp8AndFp32) {
  make_tiny_gpt_oss(folder_ / "model", {.experts = 5});
  store_in_mxfp4(folder_ / "model");
  folder_.write("data.jsonl", random_documents(5, 40, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 5, 40, "fp8");
  expect_same_bytes(ways(), {"calibration.pack=false", "compute=fp32"});
}

TEST_F(MoeRankCount, DoesNotChangeTheBytesOfGlm4MoeInFp8) {
  PTQ_NEEDS_SHARED(shared);
  folder_.write("data.jsonl", random_documents(5, 40, 64));
  write_recipe(shared + "/fixtures/input_formats/hf/glm4_moe", folder_ / "data.jsonl", 5, 40, "fp8");
  expect_same_bytes({{"expert_3", 3, {"parallel.expert=3"}},
                     {"tensor_2_expert_4", 4, {"parallel.tensor=2", "parallel.expert=4"}},
                     {"pipeline_2_expert_2", 4, {"parallel.pipeline=2", "parallel.expert=2"}}},
                    {"calibration.pack=false", "quantization.kv_cache=fp8"});
}

TEST_F(MoeRankCount, MayLeaveRanksWithoutTokensOrExperts) {
  // 2 rows and 3 experts a layer: some of the ranks have no row, some no expert of a chunk, some neither.
  make_tiny_mixtral(folder_ / "model", {.experts = 3});
  folder_.write("data.jsonl", random_documents(2, 3, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 2, 3);
  expect_same_bytes({{"data_4", 4, {}},
                     {"expert_3", 3, {"parallel.expert=3"}},
                     {"expert_2_of_6", 6, {"parallel.expert=2"}},
                     {"all_of_8", 8, {"parallel.tensor=2", "parallel.expert=2", "parallel.pipeline=2"}}},
                    {"calibration.pack=false"});
}

// Experts of 3 MiB, six of them in a layer.
constexpr TinyMoe kLargeExperts{.hidden = 128, .intermediate = 4096, .experts = 6};

TEST_F(MoeRankCount, AndStreamedExpertsDoNotChangeTheBytesOfMixtralWithForcedTokens) {
  make_tiny_mixtral(folder_ / "model", kLargeExperts);
  const auto [whole, streamed] = expect_same_bytes_when_streamed({"moe.force_route=true", "moe.min_tokens_per_expert=100"});
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
