#include "recipes/engine_support.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

Recipe recipe_of(const std::string& format, const std::string& dialect, const std::string& kv_cache = "none",
                 std::vector<Rule> rules = {}) {
  Recipe recipe;
  recipe.file = "r.yaml";
  recipe.lines = {{"output.engine", 7}};
  recipe.format = format;
  recipe.dialect = dialect;
  recipe.kv_cache = kv_cache;
  recipe.rules = std::move(rules);
  return recipe;
}

ExportMetadata describe(const layers::ModelSpec& model, const Recipe& recipe) {
  return describe_export(model, decide_formats(model, recipe), uniform_kv_formats(model, kv_format(recipe.kv_cache)),
                         find_dialect(recipe.dialect, ""), {});
}

std::string loads(const layers::ModelSpec& model, const Recipe& recipe) {
  std::string text;
  for (const EngineSupport& engine : engine_support(describe(model, recipe), "out")) {
    EXPECT_EQ(engine.loads, engine.reason.empty()) << engine.engine;
    EXPECT_NE(engine.command.find("out"), std::string::npos) << engine.engine;
    if (engine.loads) text += (text.empty() ? "" : " ") + engine.engine;
  }
  return text;
}

/// Linears of 128 or 256 inputs: whole blocks and groups of every format.
layers::ModelSpec dense() {
  layers::ModelSpec model = test::tiny_llama(1);
  for (auto& linear : model.layers[0].linears) linear.in = linear.out = 128;
  return model;
}

layers::ModelSpec mixture() {
  layers::ModelSpec model = test::tiny_qwen3_moe(1, 4);
  for (auto& linear : model.layers[0].linears) linear.in = linear.out = 128;
  return model;
}

struct Row {
  const char *format, *dialect, *dense, *mixture;
};

TEST(EngineSupport, IsTheTable) {
  const char *all = "vllm sglang tensorrt-llm", *ct = "compressed-tensors";
  for (const Row& row : std::vector<Row>{
           {"none", "modelopt", all, all},
           {"fp8", "modelopt", all, all},
           {"fp8_pb_wo", "modelopt", "vllm tensorrt-llm", "tensorrt-llm"},
           {"fp8_pc_pt", "modelopt", "vllm tensorrt-llm", "tensorrt-llm"},
           {"nvfp4", "modelopt", all, all},
           {"w4a16_nvfp4", "modelopt", all, all},
           {"int8", "modelopt", "", ""},
           {"int8_wo", "modelopt", "tensorrt-llm", "tensorrt-llm"},
           {"int4", "modelopt", "tensorrt-llm", "tensorrt-llm"},
           {"w4a8", "modelopt", "tensorrt-llm", "tensorrt-llm"},
           {"mxfp8", "modelopt", "vllm tensorrt-llm", "vllm tensorrt-llm"},
           {"mxfp4", "modelopt", "", ""},
           {"fp8", ct, "vllm sglang", "vllm sglang"},
           {"fp8_pb_wo", ct, all, all},
           {"fp8_pc_pt", ct, all, all},
           {"nvfp4", ct, all, all},
           {"w4a16_nvfp4", ct, "vllm", "vllm"},
           {"int8", ct, "vllm sglang", "vllm sglang"},
           {"int8_wo", ct, "vllm sglang", "vllm sglang"},
           {"int4", ct, "vllm sglang", "vllm sglang"},
           {"w4a8", ct, "vllm", "vllm"},
           {"mxfp8", ct, "vllm", "vllm"},
           {"mxfp4", ct, "vllm", "vllm"},
           {"fp8_pb_wo", "deepseek-fp8", all, all},
       }) {
    EXPECT_EQ(loads(dense(), recipe_of(row.format, row.dialect)), row.dense) << row.format << " " << row.dialect;
    EXPECT_EQ(loads(mixture(), recipe_of(row.format, row.dialect)), row.mixture) << row.format << " " << row.dialect << " experts";
  }
}

TEST(EngineSupport, BlocksOfModelOptMustBeWholeForVllm) {
  layers::ModelSpec model = dense();
  model.layers[0].linears.back().in = 192;

  EXPECT_EQ(loads(model, recipe_of("fp8_pb_wo", "modelopt")), "tensorrt-llm");
  EXPECT_EQ(loads(model, recipe_of("fp8_pb_wo", "deepseek-fp8")), "vllm sglang tensorrt-llm");
}

TEST(EngineSupport, OfKvCaches) {
  EXPECT_EQ(loads(dense(), recipe_of("none", "modelopt", "fp8")), "tensorrt-llm");
  for (const char* kv_cache : {"fp8", "nvfp4"})
    EXPECT_EQ(loads(dense(), recipe_of("fp8", "modelopt", kv_cache)), "vllm sglang tensorrt-llm");
  EXPECT_EQ(loads(dense(), recipe_of("fp8", "modelopt", "nvfp4_affine")), "vllm sglang");
  EXPECT_EQ(loads(dense(), recipe_of("int8", "compressed-tensors", "fp8")), "vllm sglang");
}

TEST(EngineSupport, OfAKvCacheThatDiffersByLayer) {
  const layers::ModelSpec model = test::tiny_llama(2);
  const auto engines = engine_support(
      describe_export(model, decide_formats(model, recipe_of("fp8", "modelopt")),
                      {{model.layers[0].attention()->module, KvFormat::kFp8}, {model.layers[1].attention()->module, KvFormat::kNvfp4}},
                      Dialect::kModelOpt, {}),
      "out");

  EXPECT_TRUE(engines[0].loads);
  EXPECT_NE(engines[0].needs.find("layer-wise KV support"), std::string::npos) << engines[0].needs;
  for (const size_t e : {1, 2}) EXPECT_EQ(engines[e].reason, "reads one KV cache format for all layers");
  for (const EngineSupport& engine : engine_support(describe(model, recipe_of("fp8", "modelopt", "fp8")), "out"))
    EXPECT_EQ(engine.needs, "") << engine.engine;
}

TEST(EngineSupport, SglangWantsNvfp4InAMixture) {
  const std::vector<Rule> with_nvfp4{{"*.o_proj", "nvfp4", ""}}, without{{"*.o_proj", "mxfp8", ""}};

  EXPECT_EQ(loads(dense(), recipe_of("fp8", "modelopt", "none", with_nvfp4)), "vllm sglang tensorrt-llm");
  EXPECT_EQ(loads(dense(), recipe_of("fp8", "modelopt", "none", without)), "vllm tensorrt-llm");
}

TEST(EngineSupport, AMixtureIsLoadedByThoseThatLoadEachFormat) {
  EXPECT_EQ(loads(dense(), recipe_of("nvfp4", "modelopt", "none", {{"*.o_proj", "int4", ""}})), "tensorrt-llm");
  EXPECT_EQ(loads(dense(), recipe_of("int8", "compressed-tensors", "none", {{"*.o_proj", "int4", ""}})), "vllm sglang");
}

TEST(EngineSupport, NamesTheQuantizationForSglang) {
  const auto command = [](const std::string& format, const std::string& dialect, const std::string& kv_cache = "none") {
    return engine_support(describe(dense(), recipe_of(format, dialect, kv_cache)), "out")[1].command;
  };

  EXPECT_EQ(command("fp8", "modelopt"), "python3 -m sglang.launch_server --model-path out --quantization modelopt");
  EXPECT_EQ(command("nvfp4", "modelopt", "nvfp4"),
            "python3 -m sglang.launch_server --model-path out --quantization modelopt_fp4 --kv-cache-dtype fp4_e2m1");
  EXPECT_EQ(command("int4", "compressed-tensors"), "python3 -m sglang.launch_server --model-path out");
}

void expect_refused(const layers::ModelSpec& model, Recipe recipe, const std::string& engine, const std::string& words) {
  recipe.engine = engine;
  test::expect_error(ErrorKind::kUser, words, [&] { check_engine(recipe, describe(model, recipe)); });
}

TEST(CheckEngine, RefusesWhatTheEngineDoesNotLoad) {
  const Recipe kv_only = recipe_of("none", "modelopt", "fp8");

  for (const char* engine : {"vllm", "sglang"}) {
    expect_refused(dense(), kv_only, engine, "r.yaml:7  output.engine");
    expect_refused(dense(), kv_only, engine, std::string(engine) + " rejects");
  }
  for (const char* engine : {"any", "tensorrt-llm"}) {
    Recipe recipe = kv_only;
    recipe.engine = engine;
    EXPECT_NO_THROW(check_engine(recipe, describe(dense(), recipe)));
  }
}

TEST(CheckEngine, NamesTheNearestThatLoads) {
  expect_refused(dense(), recipe_of("int8", "modelopt"), "any", "use output.dialect: compressed-tensors");
  expect_refused(dense(), recipe_of("mxfp4", "modelopt"), "any", "use output.dialect: compressed-tensors");
  expect_refused(dense(), recipe_of("int4", "modelopt"), "vllm", "use output.dialect: compressed-tensors");
  expect_refused(dense(), recipe_of("int4", "compressed-tensors"), "tensorrt-llm", "use output.dialect: modelopt");
  expect_refused(mixture(), recipe_of("fp8_pb_wo", "modelopt"), "sglang", "use output.dialect: compressed-tensors");
  expect_refused(dense(), recipe_of("mxfp4", "compressed-tensors"), "tensorrt-llm", "use quantization.preset: nvfp4");
  expect_refused(dense(), recipe_of("int8", "compressed-tensors"), "tensorrt-llm", "output.dialect: modelopt");
}

TEST(CheckEngine, RefusesFactorsBesideFourBitWeightsOfWholeActivations) {
  Recipe recipe = recipe_of("w4a16_nvfp4", "modelopt");
  for (const char* fold : {"none", "modelopt"})
    for (const char* engine : {"any", "vllm", "sglang", "tensorrt-llm"}) {
      recipe.method = "awq";
      recipe.awq.fold = fold;
      recipe.engine = engine;
      test::expect_error(ErrorKind::kUser, "use quantization.awq.fold: all", [&] { check_engine(recipe, describe(dense(), recipe)); });
    }
  recipe.awq.fold = "all";
  EXPECT_NO_THROW(check_engine(recipe, describe(dense(), recipe)));
}

}  // namespace
}  // namespace ptq::recipes
