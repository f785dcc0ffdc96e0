// The KV cache's format chosen layer by layer: how good the mix is, that ranks change nothing, what verification finds, what is refused.

#include <set>

#include "tests/e2e/bad_input.h"
#include "tests/e2e/quality.h"
#include "tests/e2e/ways.h"

namespace ptq::test {
namespace {

const std::string kChoice = "quantization.autoquantize.kv_cache={formats: [fp8, nvfp4], effective_bits: 6.3}";

TEST(KvChoiceQuality, AMixLiesBetweenItsFormats) {
  PTQ_NEEDS_SHARED(shared);
  const auto kl = [&](const std::string& kv_cache) {
    return measure_kl(shared, {"llama", "auto", 0}, 32, 30,
                      {"quantization.autoquantize.effective_bits=8.05", "quantization.autoquantize.formats=[fp8]",
                       "quantization.autoquantize.kl_checks=1", kv_cache});
  };

  const double fp8 = kl("quantization.kv_cache=fp8"), nvfp4 = kl("quantization.kv_cache=nvfp4"), mix = kl(kChoice);

  EXPECT_LT(fp8, mix);
  EXPECT_LT(mix, 0.6 * nvfp4) << "half of the layers keep FP8, and those are the ones that need it";
}

class KvChoiceRanks : public Ways {
 protected:
  /// Both formats are chosen, and the output is sound.
  void expect_same_bytes_of(const std::string& model, const std::vector<Way>& ways) {
    PTQ_NEEDS_SHARED(shared);
    write_recipe(shared + "/fixtures/models/" + model, shared + "/fixtures/text/eval.jsonl", 9, 96, "auto");
    expect_same_bytes(
        ways, {"calibration.pack=false", "quantization.autoquantize.effective_bits=8", "quantization.autoquantize.kl_checks=1", kChoice});
    const std::string output = folder_ / "one";
    expect_success(run_program({"verify", output, "--source", shared + "/fixtures/models/" + model}));
    const Json quantization = read_json_file(output + "/hf_quant_config.json").at("quantization");
    EXPECT_EQ(quantization.at("kv_cache_quant_algo"), "MIXED_PRECISION");
    std::set<std::string> algorithms;
    for (const auto& [module, entry] : quantization.at("kv_cache_quantized_layers").items()) algorithms.insert(entry.at("quant_algo"));
    EXPECT_EQ(algorithms, (std::set<std::string>{"FP8", "NVFP4"}));
    const Json report = report_of(output).at("autoquantize").at("kv_cache");
    EXPECT_LE(report.at("effective_bits").get<double>(), 6.3);
    for (const Json& layer : report.at("layers")) {
      EXPECT_GT(layer.at("options")[0].at("score").get<double>(), 0) << layer;
      EXPECT_GT(layer.at("options")[1].at("score"), layer.at("options")[0].at("score")) << layer;
    }
  }
};

// Two kv heads: four tensor ranks share them.
TEST_F(KvChoiceRanks, DoNotChangeQwen3) {
  expect_same_bytes_of("qwen3", {{"data_2", 2, {}}, {"tensor_2", 2, {"parallel.tensor=2"}}, {"tensor_4", 4, {"parallel.tensor=4"}}});
}
TEST_F(KvChoiceRanks, DoNotChangeDeepseekV3) {
  expect_same_bytes_of("deepseek-v3", {{"tensor_2_expert_2", 2, {"parallel.tensor=2", "parallel.expert=2"}}});
}

class KvChoiceRun : public RecipeRuns {
 protected:
  /// An export at folder_ / "out" whose two layers have different formats.
  std::string make_export() {
    make_tiny_llama(folder_ / "model", {.hidden = 128, .intermediate = 256});
    folder_.write("data.jsonl", random_documents(9, 32, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 9, 32, "auto");
    return quantize("out", 1, words({}));
  }
  static std::vector<std::string> words(const std::vector<std::string>& more) {
    std::vector<std::string> all{"calibration.pack=false", "quantization.autoquantize.effective_bits=9", kChoice};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(KvChoiceRun, ItsScoresServeOtherBudgets) {
  const std::string output = make_export();
  EXPECT_NE(last_.err.find("layer-wise KV support"), std::string::npos) << last_.report();
  const std::string scores = "quantization.autoquantize.scores=" + output + "/ptq-runner/scores.h5";

  expect_same_output(output, quantize("again", 2, words({scores})));
  const std::string all = quantize("all", 1, words({scores, "quantization.autoquantize.kv_cache.effective_bits=8"}));
  const Json quantization = read_json_file(all + "/hf_quant_config.json").at("quantization");
  EXPECT_EQ(quantization.at("kv_cache_quant_algo"), "FP8") << "one format for all layers is told as ever";
  EXPECT_FALSE(quantization.contains("kv_cache_quantized_layers"));
  EXPECT_TRUE(read_json_file(all + "/config.json").at("quantization_config").contains("kv_cache_scheme"));
  expect_success(run_program({"verify", all, "--source", folder_ / "model"}));

  std::vector<std::string> other{folder_ / "recipe.yaml", "output.path=" + folder_ / "other"};
  for (const std::string& word :
       words({scores, "quantization.autoquantize.kv_cache.formats=[fp8, none]", "quantization.autoquantize.kv_cache.effective_bits=9"}))
    other.push_back(word);
  const ProgramResult refused = run_program(other);
  EXPECT_EQ(refused.exit_code, 2) << refused.report();
  EXPECT_NE(refused.err.find("candidates"), std::string::npos) << refused.report();
}

TEST_F(KvChoiceRun, LayersMayStayAsTheyAre) {
  make_export();

  const std::string output =
      quantize("some", 1, words({"quantization.autoquantize.kv_cache={formats: [nvfp4, none], effective_bits: 12}"}));

  const Json layers = read_json_file(output + "/config.json").at("quantization_config").at("kv_cache_quantized_layers");
  ASSERT_EQ(layers.size(), 1u);
  const StoredTensors tensors = read_tensors(output);
  for (const char* layer : {"model.layers.0.self_attn", "model.layers.1.self_attn"})
    EXPECT_EQ(tensors.count(std::string(layer) + ".k_proj.k_scale"), layers.contains(layer) ? 1u : 0u) << layer;
  expect_success(run_program({"verify", output, "--source", folder_ / "model"}));
}

TEST_F(KvChoiceRun, VerificationFindsLayersThatAreNotWhatTheMetadataSay) {
  const std::string output = make_export(), kept = folder_ / "kept";
  copy_folder(output, kept);
  const std::string layer = "model.layers.1.self_attn";
  const auto expect_found = [&](const std::string& words, const std::function<void()>& damage) {
    damage();
    const ProgramResult result = run_program({"verify", output});
    EXPECT_EQ(result.exit_code, 1) << result.report();
    EXPECT_NE(result.out.find(words), std::string::npos) << words << "\n" << result.report();
    std::filesystem::remove_all(output);
    copy_folder(kept, output);
  };
  const auto edit_words = [&](const std::function<void(Json&)>& edit) {
    edit_json_file(output + "/config.json", [&](Json& json) { edit(json.at("quantization_config").at("kv_cache_quantized_layers")); });
  };
  const auto edit_both = [&](const std::function<void(Json&)>& edit) {
    edit_words(edit);
    edit_json_file(output + "/hf_quant_config.json", [&](Json& json) { edit(json.at("quantization").at("kv_cache_quantized_layers")); });
  };
  const auto other = [](const Json& entry) { return entry.at("quant_algo") == "FP8" ? "NVFP4" : "FP8"; };

  expect_success(run_program({"verify", output}));
  expect_found("name different kv_cache_quantized_layers",
               [&] { edit_words([&](Json& map) { map[layer]["quant_algo"] = other(map[layer]); }); });
  expect_found("k_scale is there without a quantized KV cache", [&] { edit_both([&](Json& map) { map.erase(layer); }); });
  expect_found("is no attention block", [&] { edit_both([&](Json& map) { map["model.layers.7.self_attn"] = map[layer]; }); });
  expect_found("of a format this version does not read", [&] { edit_both([&](Json& map) { map[layer]["quant_algo"] = "INT8"; }); });
  expect_found("v_proj.v_scale is missing", [&] {
    edit_tensors(output + "/model.safetensors", [&](StoredTensors& tensors) { tensors.erase(layer + ".v_proj.v_scale"); });
  });
}

const std::vector<Case>& cases() {
  static const std::string key = "quantization.autoquantize.kv_cache";
  static const std::vector<Case> all{
      {"BudgetBelowReach",
       2,
       {"cannot be reached: the candidates give 4.5 (all the cheapest) to 8", "kv_cache.effective_bits"},
       [](Scene& scene) { scene.add(key + ".effective_bits=4"); }},
      {"BudgetAboveReach", 2, {"cannot be reached", "kv_cache.effective_bits"}, [](Scene& scene) { scene.add(key + ".effective_bits=9"); }},
      {"OneFormatForAllLayersToo",
       2,
       {"quantization.kv_cache and quantization.autoquantize.kv_cache do not go together"},
       [](Scene& scene) { scene.add("quantization.kv_cache=fp8"); }},
      {"EngineWithOneFormat",
       2,
       {"sglang reads one KV cache format for all layers", key},
       [](Scene& scene) { scene.add("output.engine=sglang"); }},
      {"DialectWithoutWords",
       2,
       {"compressed-tensors has no words for a KV cache whose format differs by layer"},
       [](Scene& scene) { scene.add("output.dialect=compressed-tensors"); }},
      {"HeadsWithoutBlocks",
       2,
       {"groups 16 channels of a head", key + ".formats"},
       [](Scene& scene) { make_tiny_llama(scene.model, {.hidden = 128, .intermediate = 256, .heads = 16}); }},
  };
  return all;
}

class BadKvChoice : public ::testing::TestWithParam<CaseAtRanks> {};

TEST_P(BadKvChoice, EndsWithOneClearMessage) {
  Scene scene([](const std::string& model) { make_tiny_llama(model, {.hidden = 128, .intermediate = 256}); });
  scene.recipe = recipe_text(scene.model, scene.data, scene.output, 4, 32, "auto");
  scene.add("quantization.autoquantize.effective_bits=9");
  scene.add(kChoice);
  expect_one_clear_message(scene, GetParam().input, GetParam().ranks);
}

INSTANTIATE_TEST_SUITE_P(Cases, BadKvChoice, ::testing::ValuesIn(at_ranks(cases())),
                         [](const auto& parameters) { return name_of(parameters); });

}  // namespace
}  // namespace ptq::test
