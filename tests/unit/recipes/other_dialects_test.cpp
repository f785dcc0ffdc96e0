#include "recipes/other_dialects.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

using Names = std::vector<std::string>;

ExportMetadata describe(layers::ModelSpec model, const std::string& format, Dialect dialect, std::vector<Rule> rules = {},
                        const std::string& kv_cache = "none") {
  for (auto& layer : model.layers)
    for (auto& linear : layer.linears) linear.in = linear.out = 128;
  Recipe recipe;
  recipe.format = format;
  recipe.dialect = dialect_name(dialect);
  recipe.rules = std::move(rules);
  return describe_export(model, decide_formats(model, recipe), uniform_kv_formats(model, kv_format(kv_cache)), dialect,
                         {"model.layers.9.eh_proj"});
}

Json compressed(const std::string& format, const std::string& kv_cache = "none") {
  return compressed_words(describe(test::tiny_llama(1), format, Dialect::kCompressedTensors, {}, kv_cache));
}

TEST(CompressedWords, OfAUniformFormat) {
  EXPECT_EQ(compressed("nvfp4").dump(),
            R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized","quantization_status":"compressed","config_groups":{)"
            R"("group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"float","symmetric":true,"strategy":"tensor_group",)"
            R"("dynamic":false,"group_size":16,"scale_dtype":"torch.float8_e4m3fn"},"input_activations":{"num_bits":4,"type":"float",)"
            R"("symmetric":true,"strategy":"tensor_group","dynamic":"local","group_size":16,"scale_dtype":"torch.float8_e4m3fn"},)"
            R"("output_activations":null,"format":"nvfp4-pack-quantized"}},"ignore":["lm_head","model.layers.9.eh_proj"],)"
            R"("kv_cache_scheme":null,"global_compression_ratio":null})");
}

TEST(CompressedWords, OfEveryFormat) {
  struct Expected {
    const char *name, *format, *strategy;
    Json inputs;  ///< strategy and dynamic
  };
  for (const Expected& expected : std::vector<Expected>{{"fp8", "float-quantized", "tensor", {"tensor", false}},
                                                        {"fp8_pc_pt", "float-quantized", "channel", {"token", true}},
                                                        {"fp8_pb_wo", "float-quantized", "block", {"group", true}},
                                                        {"int8", "int-quantized", "channel", {"tensor", false}},
                                                        {"int8_wo", "pack-quantized", "channel", nullptr},
                                                        {"int4", "pack-quantized", "group", nullptr},
                                                        {"w4a8", "pack-quantized", "group", {"token", true}},
                                                        {"nvfp4", "nvfp4-pack-quantized", "tensor_group", {"tensor_group", "local"}},
                                                        {"w4a16_nvfp4", "nvfp4-pack-quantized", "tensor_group", nullptr},
                                                        {"mxfp8", "mxfp8-quantized", "group", {"group", true}},
                                                        {"mxfp4", "mxfp4-pack-quantized", "group", {"group", true}}}) {
    const Json words = compressed(expected.name), group = words.at("config_groups").at("group_0");
    EXPECT_EQ(words.at("format"), expected.format) << expected.name;
    EXPECT_EQ(group.at("format"), expected.format) << expected.name;
    EXPECT_EQ(group.at("weights").at("strategy"), expected.strategy) << expected.name;
    const Json inputs = group.at("input_activations");
    EXPECT_EQ(inputs.is_null() ? Json(nullptr) : Json({inputs.at("strategy"), inputs.at("dynamic")}), expected.inputs) << expected.name;

    EXPECT_EQ(compressed_faults(words), Names{}) << expected.name;
    const CompressedFormats formats(words);
    EXPECT_EQ(info(formats.of("model.layers.0.self_attn.q_proj")).name, expected.name);
    EXPECT_EQ(formats.of("lm_head"), Format::kNone);
  }
}

TEST(CompressedWords, OfAKvCache) {
  EXPECT_EQ(compressed("int4", "fp8").at("kv_cache_scheme").dump(),
            R"({"num_bits":8,"type":"float","symmetric":true,"strategy":"tensor","dynamic":false})");
}

TEST(CompressedWords, OfAMixtureNameEveryModule) {
  const Json words = compressed_words(describe(test::tiny_qwen3_moe(2, 3), "fp8", Dialect::kCompressedTensors,
                                               {{"*.1.mlp.experts.*", "int4", ""}, {"*.0.mlp.experts.*", "none", ""}}));

  EXPECT_EQ(words.at("format"), "mixed-precision");
  EXPECT_EQ(words.at("config_groups").at("group_0").at("targets").size(), 8u);
  EXPECT_EQ(words.at("config_groups").at("group_1").at("targets"), Json({"re:model\\.layers\\.1\\.mlp\\.experts\\..*"}));
  EXPECT_EQ(words.at("ignore"), Json({"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "model.layers.9.eh_proj",
                                      "re:model\\.layers\\.0\\.mlp\\.experts\\..*"}));
  EXPECT_EQ(compressed_faults(words), Names{});
  const CompressedFormats formats(words);
  EXPECT_EQ(formats.of("model.layers.1.mlp.experts.2.up_proj"), Format::kInt4);
  EXPECT_EQ(formats.of("model.layers.0.mlp.experts.2.up_proj"), Format::kNone);
  EXPECT_EQ(formats.of("model.layers.1.self_attn.o_proj"), Format::kFp8);
  EXPECT_EQ(formats.of("model.layers.1.mlp.gate"), Format::kNone);
}

TEST(CompressedFaults, AreWhatNoServerReads) {
  const auto faults = [](const std::function<void(Json&)>& edit) {
    Json words = compressed("int4");
    edit(words);
    return compressed_faults(words);
  };

  EXPECT_EQ(faults([](Json& words) { words["format"] = "dense"; }), Names{"config.json: format is not that of group_0"});
  EXPECT_EQ(faults([](Json& words) { words["config_groups"] = Json::object(); }), Names{"config.json: config_groups is empty"});
  EXPECT_EQ(faults([](Json& words) { words["quantization_status"] = "frozen"; }),
            Names{"config.json: quantization_status is not compressed"});
  EXPECT_EQ(faults([](Json& words) {
              words["kv_cache_scheme"] = {{"num_bits", 4}};
            }),
            Names{"config.json: kv_cache_scheme is not FP8 with one static scale"});
  test::expect_error(ErrorKind::kData, "not known here",
                     [&] { faults([](Json& words) { words["config_groups"]["group_0"]["weights"]["num_bits"] = 3; }); });
}

TEST(ModuleNames, AreReadWholeAndByExpressions) {
  const ModuleNames names(Json({"a.b", "re:x\\.y\\..*", "re:.*gate"}));

  for (const char* module : {"a.b", "x.y.z", "x.y.z.w", "some.gate"}) EXPECT_TRUE(names.has(module)) << module;
  for (const char* module : {"a", "a.b.c", "x.y", "xxy.z", "gate.some"}) EXPECT_FALSE(names.has(module)) << module;
  EXPECT_TRUE(ModuleNames(Json({"Linear"})).has("anything"));
}

TEST(DeepseekWords, AreThoseOfItsConfig) {
  const Json words =
      deepseek_words(describe(test::tiny_qwen3_moe(1, 3), "fp8_pb_wo", Dialect::kDeepseekFp8, {{"*.mlp.experts.*", "none", ""}}));

  EXPECT_EQ(words.dump(),
            R"({"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[128,128],"modules_to_not_convert":)"
            R"(["lm_head","model.layers.0.mlp.gate","model.layers.9.eh_proj","model.layers.0.mlp.experts"]})");
  EXPECT_EQ(deepseek_faults(words), Names{});
  EXPECT_EQ(deepseek_faults(Json::object()).size(), 4u);
}

}  // namespace
}  // namespace ptq::recipes
