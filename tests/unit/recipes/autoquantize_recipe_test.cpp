// quantization.autoquantize: its keys, and what it refuses.

#include <gtest/gtest.h>

#include "recipes/recipe.h"
#include "tests/support/expect_error.h"

namespace ptq::recipes {
namespace {

Recipe parse(const std::string& text) { return parse_recipe(text, "r.yaml", {}); }

void expect_refused(const std::string& text, const std::string& words) {
  SCOPED_TRACE(text);
  test::expect_error(ErrorKind::kUser, words, [&] { parse(text); });
}

std::string auto_recipe(const std::string& words, const std::string& output = "") {
  return "model: {path: in}\nquantization:\n  preset: auto\n  autoquantize: {" + words + "}\noutput: {path: out" + output + "}\n";
}

TEST(AutoQuantizeRecipe, HasItsKeys) {
  const Recipe plain = parse("model: {path: in}\nquantization: {preset: auto}\noutput: {path: out}\n");
  EXPECT_EQ(plain.method, "autoquantize");
  EXPECT_EQ(plain.format, "none");
  EXPECT_EQ(plain.autoquantize.effective_bits, 4.8);
  EXPECT_EQ(plain.autoquantize.formats, (std::vector<std::string>{"nvfp4_awq", "fp8"}));
  EXPECT_EQ(plain.autoquantize.score_samples, 128);
  EXPECT_EQ(plain.autoquantize.kl_checks, 3);
  EXPECT_EQ(plain.autoquantize.cost, "weights");
  EXPECT_EQ(plain.autoquantize.expert_granularity, "layer");
  EXPECT_EQ(plain.autoquantize.scores, "");
  EXPECT_TRUE(plain.uses_method("awq"));
  EXPECT_FALSE(plain.uses_method("smoothquant"));

  for (const std::string& recipe_words :
       {auto_recipe(
            "effective_bits: 5.25, formats: [w4a16_nvfp4, fp8, none], score_samples: 7, kl_checks: 1, cost: active_moe, scores: s.h5"),
        to_yaml(
            parse(auto_recipe("effective_bits: 5.25, formats: [w4a16_nvfp4, fp8, none], score_samples: 7, kl_checks: 1, cost: active_moe, "
                              "scores: s.h5")),
            true)}) {
    const Recipe recipe = parse(recipe_words);
    EXPECT_EQ(recipe.method, "autoquantize");
    EXPECT_EQ(recipe.autoquantize.effective_bits, 5.25);
    EXPECT_EQ(recipe.autoquantize.formats, (std::vector<std::string>{"w4a16_nvfp4", "fp8", "none"}));
    EXPECT_EQ(recipe.autoquantize.score_samples, 7);
    EXPECT_EQ(recipe.autoquantize.kl_checks, 1);
    EXPECT_EQ(recipe.autoquantize.cost, "active_moe");
    EXPECT_EQ(recipe.autoquantize.scores, "s.h5");
  }
  EXPECT_EQ(to_yaml(parse("model: {path: in}\nquantization: {preset: nvfp4}\noutput: {path: out}\n"), true).find("autoquantize"),
            std::string::npos);
  const std::string awq = to_yaml(parse("model: {path: in}\nquantization: {preset: auto, awq: {grid: 7}}\noutput: {path: out}\n"), true);
  EXPECT_EQ(parse(awq).awq.grid, 7) << "a candidate's method keeps its keys";
}

TEST(AutoQuantizeRecipe, MayLeaveTheKvCacheOpen) {
  EXPECT_TRUE(parse(auto_recipe("")).autoquantize.kv_cache.formats.empty());
  const Recipe plain = parse(auto_recipe("kv_cache: {effective_bits: 5}"));
  EXPECT_EQ(plain.autoquantize.kv_cache.formats, (std::vector<std::string>{"fp8", "nvfp4"}));
  EXPECT_EQ(parse(auto_recipe("kv_cache: {formats: [fp8, nvfp4]}")).autoquantize.kv_cache.effective_bits, 6.0);
  const Recipe written = parse(auto_recipe("kv_cache: {formats: [nvfp4, fp8, none], effective_bits: 7.25}"));
  for (const Recipe& recipe : {written, parse(to_yaml(written, true))}) {
    EXPECT_EQ(recipe.autoquantize.kv_cache.formats, (std::vector<std::string>{"nvfp4", "fp8", "none"}));
    EXPECT_EQ(recipe.autoquantize.kv_cache.effective_bits, 7.25);
  }

  const std::string at = "r.yaml:4  quantization.autoquantize.kv_cache";
  for (const auto& [words, why] : std::vector<std::pair<std::string, std::string>>{
           {"kv_cache: {formats: [fp8, int8]}", "'int8' is no format of KV caches to choose from"},
           {"kv_cache: {formats: [fp8, nvfp4_affine]}", at + ".formats"},
           {"kv_cache: {formats: [fp8, fp8]}", "'fp8' is there twice"},
           {"kv_cache: {formats: [fp8]}", "fewer than two KV cache formats"},
           {"kv_cache: {formats: []}", "fewer than two KV cache formats"},
           {"kv_cache: {effective_bits: 0}", at + ".effective_bits"},
           {"kv_cache: {format: fp8}", "did you mean 'formats'?"}})
    expect_refused(auto_recipe(words), why);
  const std::string choice = "kv_cache: {formats: [fp8, nvfp4]}";
  expect_refused("model: {path: in}\nquantization: {preset: auto, kv_cache: fp8, autoquantize: {" + choice + "}}\noutput: {path: out}\n",
                 "quantization.kv_cache and quantization.autoquantize.kv_cache do not go together");
  for (const char* dialect : {"compressed-tensors", "deepseek-fp8"})
    expect_refused(auto_recipe("formats: [fp8_pb_wo], " + choice, std::string(", dialect: ") + dialect),
                   std::string("dialect ") + dialect + " has no words for a KV cache whose format differs by layer");
  for (const char* engine : {"sglang", "tensorrt-llm"}) {
    const std::string output = std::string(", engine: ") + engine;
    expect_refused(auto_recipe(choice, output), std::string(engine) + " reads one KV cache format for all layers");
    expect_refused(auto_recipe(choice, output), at);
  }
  EXPECT_NO_THROW(parse(auto_recipe(choice, ", engine: vllm")));
}

TEST(AutoQuantizeRecipe, RefusesWhatItCannotChooseFrom) {
  const std::string at = "r.yaml:4  quantization.autoquantize.";
  for (const auto& [words, why] : std::vector<std::pair<std::string, std::string>>{
           {"effective_bits: 0", at + "effective_bits"},
           {"effective_bits: -4", "is not a positive number"},
           {"effective_bits: .inf", "is not a positive number"},
           {"score_samples: 0", "less than 1"},
           {"kl_checks: 0", at + "kl_checks"},
           {"cost: size", "use one of: weights, active_moe"},
           {"expert_granularity: token", "use one of: layer, expert"},
           {"expert_granularity: expert", "runs all routed experts of a layer as one kernel"},
           {"formats: [nvfp4, fp5]", "use some of: none, fp8, fp8_pb_wo, fp8_pc_pt, nvfp4, nvfp4_awq"},
           {"formats: [nvfp4, fp5]", at + "formats"},
           {"formats: [fp8, auto]", "cannot be a candidate of itself"},
           {"formats: [fp8, nvfp4, fp8]", "candidate 'fp8' is there twice"},
           {"formats: [none]", "there is no candidate but none"},
           {"formats: []", "there is no candidate but none"},
           {"formats: [int8_sq]", "no engine asked for loads the candidate int8_sq"},
           {"format: [fp8]", "did you mean 'formats'?"}})
    expect_refused(auto_recipe(words), why);
  expect_refused("model: {path: in}\nquantization: {preset: auto, rules: [{match: a, format: fp8}]}\noutput: {path: out}\n",
                 "which leaves nothing to rules");
  expect_refused(auto_recipe("formats: [fp8, nvfp4]", ", dialect: deepseek-fp8"), "holds fp8_pb_wo alone, not the candidate fp8");
  expect_refused(auto_recipe("formats: [fp8, nvfp4]", ", dialect: deepseek-fp8"),
                 "use some of: none, fp8_pb_wo, or output.dialect: modelopt");
  expect_refused(auto_recipe("formats: [fp8, int4_awq]", ", engine: vllm"), "vllm rejects quant_algo W4A16_AWQ");
  expect_refused(auto_recipe("formats: [int4_awq]", ", engine: vllm"), "take it off the list, or use output.dialect: compressed-tensors");
  expect_refused(auto_recipe("formats: [int4_awq, fp8]", ", dialect: compressed-tensors, engine: tensorrt-llm"), "tensorrt-llm reads");
  expect_refused(auto_recipe("formats: [fp8, mxfp8]", ", engine: sglang"), "sglang looks for the scales of MXFP8 under another name");
  expect_refused(auto_recipe("formats: [int4_awq, fp8]") + "calibration: {sampels: 2}\n", "did you mean 'samples'?");
  const auto with = [](const std::string& words) {
    return "model: {path: in}\nquantization: {preset: auto, " + words + "}\noutput: {path: out}\n";
  };
  expect_refused(with("range: {weights: mse}"), "quantization.range and method autoquantize do not go together");
  expect_refused(with("awq: {fold: none}"), "quantization.awq.fold and method autoquantize do not go together");
  EXPECT_NO_THROW(parse(with("awq: {fold: all}")));
  expect_refused("calibration: {reuse: c.h5}\n" + with("kv_cache: fp8"), "calibration.reuse and method autoquantize do not go together");
  for (const char* words : {"formats: [int4_awq, fp8]", "formats: fp8", "formats: [nvfp4, nvfp4_awq]"})
    EXPECT_NO_THROW(parse(auto_recipe(words))) << words;
  EXPECT_NO_THROW(parse(auto_recipe("formats: [int4_awq, fp8]", ", dialect: compressed-tensors")));
}

}  // namespace
}  // namespace ptq::recipes
