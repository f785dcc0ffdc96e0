// Perplexity against the number that the fixtures' makers measured, and bf16 against fp32.

#include <cmath>

#include "tests/e2e/fixtures.h"

namespace ptq::test {
namespace {

void expect_fixture_perplexity(const std::string& model, const std::string& text) {
  const Json fixture = read_json_file(model + "/fixture.json");
  const Json result = evaluate({"--model", model, "--text", text, "--compute", "fp32"});

  const double wanted = fixture.at("eval_perplexity_float32"), found = result.at("perplexity");
  EXPECT_NEAR(found / wanted, 1.0, 5e-4);
  EXPECT_EQ(result.at("tokens"), fixture.at("eval_tokens"));
  std::cout << "perplexity " << found << ", transformers " << wanted << "\n";
}

void expect_bf16_near_fp32(const std::string& model, const std::string& text) {
  const Json result = evaluate({"--model", model, "--text", text, "--reference", model, "--reference-compute", "fp32"});

  EXPECT_LE(result.at("kl").get<double>(), 2e-4);
  EXPECT_GE(result.at("kl").get<double>(), 0.0);
  std::cout << "KL(fp32 || bf16) = " << result.at("kl") << ", same top-1 " << result.value("top1_agreement", 0.0) << "\n";
}

#define PTQ_PERPLEXITY_TEST(Name, folder)                                                                 \
  TEST(Perplexity, Of##Name##IsThatOfTransformers) {                                                      \
    PTQ_NEEDS_SHARED(shared);                                                                             \
    expect_fixture_perplexity(shared + "/fixtures/models/" folder, shared + "/fixtures/text/eval.jsonl"); \
  }
#define PTQ_BF16_TEST(Name, folder)                                                                   \
  TEST(Perplexity, Of##Name##InBf16IsNearFp32) {                                                      \
    PTQ_NEEDS_SHARED(shared);                                                                         \
    expect_bf16_near_fp32(shared + "/fixtures/models/" folder, shared + "/fixtures/text/eval.jsonl"); \
  }

PTQ_PERPLEXITY_TEST(Llama, "llama")
PTQ_PERPLEXITY_TEST(Qwen3, "qwen3")
PTQ_PERPLEXITY_TEST(NemotronNas, "nemotron-nas")
PTQ_PERPLEXITY_TEST(Qwen3Moe, "qwen3-moe")
PTQ_PERPLEXITY_TEST(Mixtral, "mixtral")
PTQ_PERPLEXITY_TEST(DeepseekV3, "deepseek-v3")
PTQ_PERPLEXITY_TEST(Llama4, "llama4")

PTQ_BF16_TEST(Llama, "llama")
PTQ_BF16_TEST(Qwen3, "qwen3")
PTQ_BF16_TEST(NemotronNas, "nemotron-nas")

TEST(Perplexity, OfTheShippedLlamaInBf16IsNearFp32) { expect_bf16_near_fp32(shipped_llama(), shipped_text()); }

TEST(Perplexity, IsPrintedAlikeByOneAndThreeRanks) {
  const std::vector<std::string> arguments{"evaluate", "--model",      shipped_llama(),       "--reference", shipped_llama(),
                                           "--text",   shipped_text(), "--reference-compute", "fp32",        "--json"};

  const ProgramResult one = run_program(arguments), three = run_program(arguments, {.ranks = 3});

  expect_success(one);
  expect_success(three);
  EXPECT_FALSE(one.out.empty());
  EXPECT_EQ(one.out, three.out);
}

}  // namespace
}  // namespace ptq::test
