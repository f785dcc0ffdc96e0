// Searched weights are the same bytes however tokens, rows, layers and experts are split over ranks: Gram matrices, losses and the factors
// chosen by them depend on nothing but the calibration rows.

#include "tests/e2e/ways.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

const std::vector<Way> kDense{{"data_2", 2, {}},
                              {"data_3", 3, {}},
                              {"tensor_2", 2, {"parallel.tensor=2"}},
                              {"tensor_2_data_2", 4, {"parallel.tensor=2"}},
                              {"pipeline_2", 2, {"parallel.pipeline=2"}}};
const std::vector<Way> kExperts{{"data_2", 2, {}},
                                {"data_3", 3, {}},
                                {"tensor_2", 2, {"parallel.tensor=2"}},
                                {"expert_2", 2, {"parallel.expert=2"}},
                                {"expert_4", 4, {"parallel.expert=4"}},
                                {"tensor_2_expert_2", 2, {"parallel.tensor=2", "parallel.expert=2"}},
                                {"tensor_2_expert_2_data_2", 4, {"parallel.tensor=2", "parallel.expert=2"}},
                                {"pipeline_2", 2, {"parallel.pipeline=2"}}};

class SearchedRankCount : public Ways {
 protected:
  /// Of the fixture, on 7 short rows of unequal length: some ranks have none in the last micro-batch.
  void expect_same_bytes_of(const std::string& model, const std::string& preset, std::vector<std::string> words = {}) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 7, 96, preset);
    words.insert(words.end(), {"calibration.pack=false", "output.verify=false"});
    const bool has_experts = model != "llama" && model != "qwen3";
    expect_same_bytes(has_experts ? kExperts : kDense, words);
    expect_success(run_program({"verify", folder_ / "one", "--source", shared + "/fixtures/models/" + model}));
  }
};

const std::string kCompressed = "output.dialect=compressed-tensors";

TEST_F(SearchedRankCount, DoesNotChangeInt4OfLlamaNorItsReport) {
  expect_same_bytes_of("llama", "int4_awq", {kCompressed});
  if (IsSkipped()) return;

  const Json groups = report_of(folder_ / "one").at("smoothing");
  EXPECT_EQ(groups.size() % 6, 0u) << "the same groups in each of 6 layers";
  for (const Json& group : groups) EXPECT_LE(group.at("loss").get<double>(), group.at("loss_unsmoothed").get<double>()) << group;
  EXPECT_FALSE(report_of(folder_ / "one").contains("moe"));
}
TEST_F(SearchedRankCount, DoesNotChangeStoredFactorsOfLlama) {
  expect_same_bytes_of("llama", "int4_awq", {"output.engine=tensorrt-llm", "quantization.awq.fold=modelopt"});
}
TEST_F(SearchedRankCount, DoesNotChangeNvFp4OfQwen3WithItsCache) {
  expect_same_bytes_of("qwen3", "nvfp4_awq", {"quantization.kv_cache=nvfp4_affine"});
}
TEST_F(SearchedRankCount, DoesNotChangeInt8OfQwen3Moe) { expect_same_bytes_of("qwen3-moe", "int8_sq", {kCompressed}); }
TEST_F(SearchedRankCount, DoesNotChangeAChosenExponentOfInt8) {
  expect_same_bytes_of("llama", "int8_sq", {kCompressed, "quantization.smoothquant.alpha=auto"});
}
TEST_F(SearchedRankCount, DoesNotChangeW4a8OfDeepseekV3) { expect_same_bytes_of("deepseek-v3", "w4a8_awq"); }
TEST_F(SearchedRankCount, DoesNotChangeNvFp4OfLlama4) { expect_same_bytes_of("llama4", "nvfp4_awq"); }
TEST_F(SearchedRankCount, DoesNotChangeNvFp4OfMixtral) { expect_same_bytes_of("mixtral", "nvfp4_awq"); }

TEST_F(SearchedRankCount, MayLeaveRanksWithoutTokensOrExperts) {
  make_tiny_mixtral(folder_ / "model", {.experts = 3});
  folder_.write("data.jsonl", random_documents(2, 3, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 2, 3, "nvfp4_awq");
  expect_same_bytes({{"data_4", 4, {}},
                     {"expert_3", 3, {"parallel.expert=3"}},
                     {"expert_2_of_6", 6, {"parallel.expert=2"}},
                     {"all_of_8", 8, {"parallel.tensor=2", "parallel.expert=2", "parallel.pipeline=2"}}},
                    {"calibration.pack=false"});
}

// Experts of 3 MiB, six of them in a layer; their down projections read 4096 channels, whose Gram matrix has 64 MiB.
constexpr TinyMoe kLargeExperts{.hidden = 128, .intermediate = 4096, .experts = 6};

TEST_F(SearchedRankCount, AndStreamedExpertsDoNotChangeTheBytesOfMixtral) {
  make_tiny_mixtral(folder_ / "model", kLargeExperts);
  expect_same_bytes_when_streamed({"quantization.preset=nvfp4_awq"});
}

TEST_F(SearchedRankCount, AndStreamedExpertsDoNotChangeTheBytesOfLlama4) {
  make_tiny_llama4(folder_ / "model", kLargeExperts);
  expect_same_bytes_when_streamed({"quantization.preset=nvfp4_awq"});
}

}  // namespace
}  // namespace ptq::test
