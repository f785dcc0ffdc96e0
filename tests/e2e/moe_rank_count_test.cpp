// Mixtures of experts: the same bytes however experts, heads, layers and tokens are split, and however few experts fit into memory.

#include "tests/e2e/ways.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

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

class MoeRankCount : public Ways {
 protected:
  /// Of the fixture, with a quantized KV cache and rows of unequal length.
  void expect_same_bytes_of(const std::string& model, std::vector<std::string> words = {}) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 7, 96);
    words.insert(words.end(), {"quantization.kv_cache=fp8", "calibration.pack=false"});
    expect_same_bytes(ways(), words);
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

// Experts of 6 MiB, six of them in a layer: far more than what a program's resident memory differs by from one start to the next.
constexpr TinyMoe kLargeExperts{.hidden = 128, .intermediate = 8192, .experts = 6};

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
