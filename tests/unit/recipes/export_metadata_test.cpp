#include "recipes/export_metadata.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <tuple>

#include "recipes/exclusions.h"
#include "tests/support/expect_error.h"
#include "tests/unit/recipes/tiny_model.h"
#include "tests/unit/recipes/tiny_moe.h"

namespace ptq::recipes {
namespace {

using Names = std::vector<std::string>;

ExportMetadata describe(int64_t layers, const std::string& format, std::vector<Rule> rules = {}, const std::string& kv_cache = "none",
                        Names ignore = {"lm_head"}) {
  Recipe recipe;
  recipe.format = format;
  recipe.rules = std::move(rules);
  recipe.ignore = std::move(ignore);
  const auto model = test::tiny_llama(layers);
  return describe_export(model, decide_formats(model, recipe), uniform_kv_formats(model, kv_format(kv_cache)), Dialect::kModelOpt, {});
}

/// Layer 0 has an FP8 cache, layer 1 an NVFP4 one, layer 2 none.
ExportMetadata describe_mixed_kv(const std::string& format, std::vector<Rule> rules = {}) {
  Recipe recipe;
  recipe.format = format;
  recipe.rules = std::move(rules);
  const auto model = test::tiny_llama(3);
  return describe_export(model, decide_formats(model, recipe),
                         {{"model.layers.0.self_attn", KvFormat::kFp8},
                          {"model.layers.1.self_attn", KvFormat::kNvfp4},
                          {"model.layers.2.self_attn", KvFormat::kNone}},
                         Dialect::kModelOpt, {});
}

ExportMetadata describe(const layers::ModelSpec& model, const std::string& format, std::vector<Rule> rules = {}, const Names& outside = {},
                        const std::vector<std::string>& ignore = {"lm_head"}) {
  Recipe recipe;
  recipe.format = format;
  recipe.rules = std::move(rules);
  recipe.ignore = ignore;
  const auto decisions = decide_formats(model, recipe);
  ExportMetadata metadata = describe_export(model, decisions, uniform_kv_formats(model, KvFormat::kNone), Dialect::kModelOpt, outside);
  // Whatever the metadata are: no server may read them as anything but these decisions.
  if (metadata.quant_algo != "MIXED_PRECISION") {
    std::set<std::string> quantized, plain(outside.begin(), outside.end());
    for (const auto& [module, decision] : decisions) (!decision.encoding.is_quantized() ? plain : quantized).insert(module);
    for (const auto& layer : model.layers) {
      if (!layer.moe()) continue;
      plain.insert(layer.moe()->router.module);
      const bool container = quantized.count(layer.linears[static_cast<size_t>(layer.moe()->experts[0].down)].module) > 0;
      (container ? quantized : plain).insert(layer.moe()->module);
    }
    EXPECT_EQ(exclusion_faults(metadata.excluded, quantized, plain), Names{});
  }
  return metadata;
}

const Names kMtp{"model.layers.4.eh_proj",  "model.layers.4.embed_tokens",       "model.layers.4.mlp.experts.0.gate_proj",
                 "model.layers.4.mlp.gate", "model.layers.4.self_attn.q_a_proj", "model.layers.4.shared_head.head"};

TEST(DescribeMoe, EveryRouterIsNamed) {
  EXPECT_EQ(describe(test::tiny_qwen3_moe(2, 4), "nvfp4").excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}));
  EXPECT_EQ(describe(test::tiny_qwen3_moe(1, 4, "block_sparse_moe", {"w1", "w3", "w2"}), "fp8").excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.0.block_sparse_moe.gate"}));
}

TEST(DescribeMoe, DeepSeekNamesNoRouterOfItsDenseLayersAndAllOfItsPrediction) {
  EXPECT_EQ(describe(test::tiny_deepseek(4, 2, 4), "nvfp4", {}, kMtp).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.2.mlp.gate", "model.layers.3.mlp.gate", "model.layers.4*"}));
}

TEST(DescribeMoe, PredictionBehindTenLayersIsNotTakenForTheFirst) {
  const auto model = test::tiny_deepseek(11, 10, 2);

  EXPECT_EQ(describe(model, "fp8", {}, {"model.layers.11.eh_proj"}).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.10.mlp.gate", "model.layers.11*"}));
}

TEST(DescribeMoe, ExpertsLeftOutAreOnePatternPerLayer) {
  EXPECT_EQ(describe(test::tiny_qwen3_moe(2, 4), "fp8", {{"*.mlp.experts.*", "none", ""}}).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.0.mlp*", "model.layers.1.mlp*"}));
  EXPECT_EQ(describe(test::tiny_deepseek(2, 1, 4), "fp8", {{"*.mlp.experts.*", "none", ""}}).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.1.mlp.experts*", "model.layers.1.mlp.gate"}));
  EXPECT_EQ(describe(test::tiny_llama4(1, 4), "fp8", {{"*.experts.*", "none", ""}}).excluded,
            (Names{"language_model.lm_head", "language_model.model.embed_tokens", "language_model.model.layers.0.feed_forward.experts*",
                   "language_model.model.layers.0.feed_forward.router"}));
}

TEST(DescribeMoe, ExpertsAloneLeaveAttentionAndSharedExpertsOut) {
  EXPECT_EQ(describe(test::tiny_deepseek(2, 1, 4), "none", {{"*.mlp.experts.*", "nvfp4", ""}}, {"model.layers.2.eh_proj"}).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.0*", "model.layers.1.mlp.gate", "model.layers.1.mlp.shared_experts*",
                   "model.layers.1.self_attn*", "model.layers.2*"}));
}

TEST(DescribeMoe, AVisionTowerIsOnePattern) {
  const Names vision{"vision_model.layers.0.fc1", "vision_model.layers.0.self_attn.q_proj", "multi_modal_projector.linear_1"};

  EXPECT_EQ(describe(test::tiny_llama4(1, 4), "nvfp4", {}, vision).excluded,
            (Names{"language_model.lm_head", "language_model.model.embed_tokens", "language_model.model.layers.0.feed_forward.router",
                   "multi_modal_projector*", "vision_model*"}));
}

TEST(DescribeMoe, AMixtureHasOneKeyForAllExpertsOfALayer) {
  for (const auto& [model, container, attention] :
       {std::tuple{test::tiny_deepseek(2, 0, 4), "model.layers.%.mlp.experts", "model.layers.%.self_attn.o_proj"},
        std::tuple{test::tiny_llama4(2, 4), "language_model.model.layers.%.feed_forward.experts",
                   "language_model.model.layers.%.self_attn.o_proj"}}) {
    const ExportMetadata metadata = describe(model, "none", {{"*.experts.*", "nvfp4", ""}, {"*.o_proj", "fp8", ""}}, kMtp);
    const auto in_layer = [](std::string name, char layer) { return name.replace(name.find('%'), 1, 1, layer); };
    const std::vector<std::pair<std::string, Format>> expected{{in_layer(attention, '0'), Format::kFp8},
                                                               {in_layer(container, '0'), Format::kNvfp4},
                                                               {in_layer(attention, '1'), Format::kFp8},
                                                               {in_layer(container, '1'), Format::kNvfp4}};

    EXPECT_EQ(metadata.quant_algo, "MIXED_PRECISION");
    std::vector<std::pair<std::string, Format>> found;
    for (const auto& [name, encoding] : metadata.quantized_layers) found.emplace_back(name, encoding.format);
    EXPECT_EQ(found, expected);
    EXPECT_TRUE(metadata.excluded.empty());
    const Json words = quantized_config(Json::object(), metadata)["quantization_config"];
    EXPECT_EQ(words["config_groups"]["group_1"]["targets"], Json({in_layer(container, '0'), in_layer(container, '1')}));
    EXPECT_EQ(words["quantized_layers"][in_layer(container, '1')], Json::parse(R"({"quant_algo":"NVFP4","group_size":16})"));
    EXPECT_EQ(metadata_faults(*hf_quant_config(metadata), words), Names{});
  }
}

/// The words between these two are ours in every file.
const std::string kProducer = R"({"name":"modelopt","version":"0.47.0","generator":"ptq-runner 0.1.0"})";

TEST(DescribeExport, APlainLlamaNamesHeadAndEmbedding) {
  EXPECT_EQ(describe(12, "nvfp4").excluded, (Names{"lm_head", "model.embed_tokens"}));
}

TEST(DescribeExport, AttentionLeftOutIsOnePatternPerLayer) {
  EXPECT_EQ(
      describe(3, "nvfp4", {{"*.self_attn.*", "none", ""}}).excluded,
      (Names{"lm_head", "model.embed_tokens", "model.layers.0.self_attn*", "model.layers.1.self_attn*", "model.layers.2.self_attn*"}));
}

TEST(DescribeExport, AWholeLayerEndsInADotWhereAnotherBeginsLikeIt) {
  EXPECT_EQ(describe(11, "fp8", {{"model.layers.1.*", "none", ""}}).excluded, (Names{"lm_head", "model.embed_tokens", "model.layers.1.*"}));
  EXPECT_EQ(describe(10, "fp8", {{"model.layers.1.*", "none", ""}}).excluded, (Names{"lm_head", "model.embed_tokens", "model.layers.1*"}));
}

TEST(DescribeExport, OneLinearIsNamedInFull) {
  EXPECT_EQ(describe(2, "fp8", {{"model.layers.0.mlp.down_proj", "none", ""}}).excluded,
            (Names{"lm_head", "model.embed_tokens", "model.layers.0.mlp.down_proj"}));
}

TEST(DescribeExport, NoPatternReachesAQuantizedModule) {
  const ExportMetadata metadata = describe(21, "fp8", {{"model.layers.2.*", "none", ""}, {"*.1.self_attn.*", "none", ""}});
  Recipe recipe;
  recipe.format = "fp8";
  recipe.rules = {{"model.layers.2.*", "none", ""}, {"*.1.self_attn.*", "none", ""}};

  for (const auto& [module, decision] : decide_formats(test::tiny_llama(21), recipe)) {
    bool excluded = false;
    for (const std::string& pattern : metadata.excluded) excluded = excluded || matches(pattern, module);
    EXPECT_EQ(excluded, !decision.encoding.is_quantized()) << module;
  }
}

TEST(HfQuantConfig, OfNvfp4) {
  EXPECT_EQ(
      hf_quant_config(describe(2, "nvfp4"))->dump(),
      R"({"producer":)" + kProducer +
          R"(,"quantization":{"quant_algo":"NVFP4","kv_cache_quant_algo":null,"group_size":16,"exclude_modules":["lm_head","model.embed_tokens"]}})");
}

TEST(HfQuantConfig, OfFp8WithAKvCache) {
  EXPECT_EQ(hf_quant_config(describe(2, "fp8", {}, "fp8"))->dump(),
            R"({"producer":)" + kProducer +
                R"(,"quantization":{"quant_algo":"FP8","kv_cache_quant_algo":"FP8","exclude_modules":["lm_head","model.embed_tokens"]}})");
}

TEST(HfQuantConfig, OfWeightsOnly) {
  EXPECT_EQ(
      hf_quant_config(describe(1, "w4a16_nvfp4", {}, "none", {}))->dump(),
      R"({"producer":)" + kProducer +
          R"(,"quantization":{"quant_algo":"W4A16_NVFP4","kv_cache_quant_algo":null,"group_size":16,"exclude_modules":["model.embed_tokens"]}})");
}

TEST(HfQuantConfig, OfAMixtureNamesEveryLayerAndExcludesNone) {
  const ExportMetadata metadata = describe(1, "none", {{"*.o_proj", "fp8", ""}, {"*.down_proj", "nvfp4", ""}});

  EXPECT_EQ(
      hf_quant_config(metadata)->dump(),
      R"({"producer":)" + kProducer +
          R"(,"quantization":{"quant_algo":"MIXED_PRECISION","kv_cache_quant_algo":null,"quantized_layers":{)"
          R"("model.layers.0.self_attn.o_proj":{"quant_algo":"FP8"},"model.layers.0.mlp.down_proj":{"quant_algo":"NVFP4","group_size":16}}}})");
}

TEST(HfQuantConfig, OfAKvCacheAlone) {
  EXPECT_EQ(hf_quant_config(describe(1, "none", {}, "fp8"))->dump(),
            R"({"producer":)" + kProducer + R"(,"quantization":{"quant_algo":null,"kv_cache_quant_algo":"FP8","quantized_layers":{}}})");
}

constexpr const char* kKvLayers =
    R"("kv_cache_quantized_layers":{"model.layers.0.self_attn":{"quant_algo":"FP8"},"model.layers.1.self_attn":{"quant_algo":"NVFP4"}},)"
    R"("kv_cache_schema_version":1)";

TEST(HfQuantConfig, OfAMixedKvCacheNamesItsLayers) {
  EXPECT_EQ(
      hf_quant_config(describe_mixed_kv("none", {{"model.layers.0.*.o_proj", "fp8", ""}, {"*.0.*.down_proj", "nvfp4", ""}}))->dump(),
      R"({"producer":)" + kProducer +
          R"(,"quantization":{"quant_algo":"MIXED_PRECISION","kv_cache_quant_algo":"MIXED_PRECISION","quantized_layers":{)"
          R"("model.layers.0.self_attn.o_proj":{"quant_algo":"FP8"},"model.layers.0.mlp.down_proj":{"quant_algo":"NVFP4","group_size":16}},)" +
          kKvLayers + "}}");
}

TEST(HfQuantConfig, WeightsOfOneFormatAreListedBesideAMixedKvCache) {
  EXPECT_EQ(hf_quant_config(describe_mixed_kv("none", {{"model.layers.0.*.o_proj", "nvfp4", ""}}))->dump(),
            R"({"producer":)" + kProducer +
                R"(,"quantization":{"quant_algo":"MIXED_PRECISION","kv_cache_quant_algo":"MIXED_PRECISION","quantized_layers":{)"
                R"("model.layers.0.self_attn.o_proj":{"quant_algo":"NVFP4","group_size":16}},)" +
                kKvLayers + "}}");
}

const Json kSource =
    Json::parse(R"({"model_type":"llama","quantization_config":{"quant_method":"old"},"hidden_size":32,"list":[1,{"a":null}]})");

TEST(QuantizedConfig, OfNvfp4) {
  EXPECT_EQ(quantized_config(kSource, describe(2, "nvfp4")).dump(),
            R"({"model_type":"llama","hidden_size":32,"list":[1,{"a":null}],"quantization_config":{"config_groups":{"group_0":{)"
            R"("input_activations":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},)"
            R"("weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},"targets":["Linear"]}},)"
            R"("ignore":["lm_head","model.embed_tokens"],"quant_algo":"NVFP4","group_size":16,"producer":)" +
                kProducer + R"(,"quant_method":"modelopt"}})");
}

TEST(QuantizedConfig, OfFp8WithAKvCache) {
  EXPECT_EQ(quantized_config(Json::object(), describe(2, "fp8", {}, "fp8")).dump(),
            R"({"quantization_config":{"config_groups":{"group_0":{"input_activations":{"dynamic":false,"num_bits":8,"type":"float"},)"
            R"("weights":{"dynamic":false,"num_bits":8,"type":"float"},"targets":["Linear"]}},"ignore":["lm_head","model.embed_tokens"],)"
            R"("quant_algo":"FP8","kv_cache_scheme":{"dynamic":false,"num_bits":8,"type":"float"},"producer":)" +
                kProducer + R"(,"quant_method":"modelopt"}})");
}

TEST(QuantizedConfig, OfWeightsOnlyHasNoActivations) {
  const Json group = quantized_config(Json::object(), describe(2, "w4a16_nvfp4"))["quantization_config"]["config_groups"]["group_0"];

  EXPECT_EQ(group.dump(), R"({"weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},"targets":["Linear"]})");
}

TEST(QuantizedConfig, OfAMixtureHasAGroupPerFormatInOrderOfAppearance) {
  const ExportMetadata metadata = describe(2, "none", {{"*.o_proj", "fp8", ""}, {"*.down_proj", "nvfp4", ""}});

  EXPECT_EQ(
      quantized_config(Json::object(), metadata).dump(),
      R"({"quantization_config":{"config_groups":{"group_0":{"input_activations":{"dynamic":false,"num_bits":8,"type":"float"},)"
      R"("weights":{"dynamic":false,"num_bits":8,"type":"float"},"targets":["model.layers.0.self_attn.o_proj","model.layers.1.self_attn.o_proj"]},)"
      R"("group_1":{"input_activations":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},)"
      R"("weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},)"
      R"("targets":["model.layers.0.mlp.down_proj","model.layers.1.mlp.down_proj"]}},)"
      R"("quantized_layers":{"model.layers.0.self_attn.o_proj":{"quant_algo":"FP8"},)"
      R"("model.layers.0.mlp.down_proj":{"quant_algo":"NVFP4","group_size":16},"model.layers.1.self_attn.o_proj":{"quant_algo":"FP8"},)"
      R"("model.layers.1.mlp.down_proj":{"quant_algo":"NVFP4","group_size":16}},"ignore":[],"quant_algo":"MIXED_PRECISION","producer":)" +
          kProducer + R"(,"quant_method":"modelopt"}})");
}

TEST(QuantizedConfig, OfAMixedKvCacheHasNoScheme) {
  EXPECT_EQ(quantized_config(Json::object(), describe_mixed_kv("none", {{"model.layers.0.*.o_proj", "nvfp4", ""}})).dump(),
            R"({"quantization_config":{"config_groups":{"group_0":{)"
            R"("input_activations":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},)"
            R"("weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},"targets":["model.layers.0.self_attn.o_proj"]}},)"
            R"("quantized_layers":{"model.layers.0.self_attn.o_proj":{"quant_algo":"NVFP4","group_size":16}},"ignore":[],)"
            R"("quant_algo":"MIXED_PRECISION","kv_cache_quant_algo":"MIXED_PRECISION",)" +
                std::string(kKvLayers) + R"(,"producer":)" + kProducer + R"(,"quant_method":"modelopt"}})");
}

TEST(QuantizedConfig, OfNothingForgetsAnOlderQuantization) {
  EXPECT_EQ(quantized_config(kSource, describe(1, "none")).dump(), R"({"model_type":"llama","hidden_size":32,"list":[1,{"a":null}]})");
}

TEST(QuantizedConfig, ForgetsAnOlderQuantizationWhereverItIs) {
  const Json source = Json::parse(R"({"text_config":{"a":1,"quantization_config":{"quant_method":"fp8"}},"compression_config":{}})");

  EXPECT_EQ(quantized_config(source, describe(1, "none")).dump(), R"({"text_config":{"a":1}})");
}

TEST(MetadataFaults, AreWhereTheFilesDisagree) {
  const ExportMetadata metadata = describe(2, "nvfp4", {}, "fp8");
  const Json file = *hf_quant_config(metadata), words = quantized_config(Json::object(), metadata)["quantization_config"];
  const auto faults_with = [&](const std::function<void(Json&, Json&)>& edit) {
    Json edited_file = file, edited_words = words;
    edit(edited_file, edited_words);
    return metadata_faults(edited_file, edited_words);
  };

  EXPECT_EQ(metadata_faults(file, words), Names{});
  EXPECT_EQ(faults_with([](Json& f, Json&) { f["quantization"]["quant_algo"] = "FP8"; }),
            Names{"the two JSON files name different quant_algo"});
  EXPECT_EQ(faults_with([](Json&, Json& w) { w["ignore"] = {"lm_head"}; }), Names{"exclude_modules and ignore differ"});
  EXPECT_EQ(faults_with([](Json&, Json& w) { w.erase("kv_cache_scheme"); }), Names{"kv_cache_scheme and kv_cache_quant_algo disagree"});
  EXPECT_EQ(faults_with([](Json& f, Json&) { f.erase("producer"); }), Names{"hf_quant_config.json: producer.name is not modelopt"});
  EXPECT_EQ(faults_with([](Json& f, Json& w) {
              w["ignore"] = f["quantization"]["exclude_modules"] = {"b", "a"};
            }),
            Names{"exclude_modules is not sorted and unique"});
}

TEST(MetadataFaults, OfAMixedKvCache) {
  const ExportMetadata metadata = describe_mixed_kv("fp8");
  const Json file = *hf_quant_config(metadata), words = quantized_config(Json::object(), metadata)["quantization_config"];
  const auto faults_with = [&](const std::function<void(Json&, Json&)>& edit) {
    Json edited_file = file, edited_words = words;
    edit(edited_file["quantization"], edited_words);
    return metadata_faults(edited_file, edited_words);
  };

  EXPECT_EQ(metadata_faults(file, words), Names{});
  EXPECT_EQ(faults_with([](Json&, Json& w) { w["kv_cache_quantized_layers"].erase("model.layers.1.self_attn"); }),
            Names{"the two JSON files name different kv_cache_quantized_layers"});
  EXPECT_EQ(faults_with([](Json& f, Json&) { f["kv_cache_quantized_layers"]["model.layers.1.self_attn"]["quant_algo"] = "FP8"; }),
            Names{"the two JSON files name different kv_cache_quantized_layers"});
  EXPECT_EQ(faults_with([](Json&, Json& w) { w.erase("kv_cache_quant_algo"); }),
            Names{"the two JSON files name different kv_cache_quant_algo"});
  EXPECT_EQ(faults_with([](Json& f, Json& w) {
              f.erase("kv_cache_quantized_layers");
              w.erase("kv_cache_quantized_layers");
            }),
            Names{"kv_cache_quantized_layers and kv_cache_quant_algo disagree"});
  EXPECT_EQ(faults_with([](Json& f, Json& w) { f["kv_cache_schema_version"] = w["kv_cache_schema_version"] = 2; }),
            Names{"kv_cache_schema_version is not 1"});
  EXPECT_EQ(faults_with([](Json&, Json& w) { w["kv_cache_scheme"] = "NVFP4"; }).size(), 2u);
}

TEST(BothFiles, SayTheSame) {
  for (const char* format : {"fp8", "nvfp4", "w4a16_nvfp4"}) {
    const ExportMetadata metadata = describe(3, format, {{"model.layers.1.*", "none", ""}}, "fp8");
    const Json file = hf_quant_config(metadata)->at("quantization"), config = quantized_config(kSource, metadata)["quantization_config"];

    EXPECT_EQ(file["quant_algo"], config["quant_algo"]);
    EXPECT_EQ(file["exclude_modules"], config["ignore"]);
    EXPECT_EQ(file.value("group_size", 0), config.value("group_size", 0));
  }
}

TEST(GenerationConfig, SamplesWhereItSetsHowToSample) {
  EXPECT_EQ(generation_config(Json::parse(R"({"do_sample":false,"top_k":5})")).dump(), R"({"do_sample":true,"top_k":5})");
  EXPECT_EQ(generation_config(Json::parse(R"({"top_p":0.9,"eos_token_id":[1]})")).dump(),
            R"({"top_p":0.9,"eos_token_id":[1],"do_sample":true})");
  EXPECT_EQ(generation_config(Json::parse(R"({"do_sample":false,"top_p":null})")).dump(), R"({"do_sample":false,"top_p":null})");
  EXPECT_EQ(generation_config(Json::parse(R"({"eos_token_id":2})")).dump(), R"({"eos_token_id":2})");
}

}  // namespace
}  // namespace ptq::recipes
