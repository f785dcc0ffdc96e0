// What can be wrong with a mixture of experts, with FP8 and MXFP4 sources, and with the ways to run them: one clear message that names the
// culprit, nothing left behind and no hang, also while experts are streamed.

#include <cmath>

#include "tests/e2e/bad_input.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const std::string kExpert = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
const std::string kRouter = "model.layers.0.block_sparse_moe.gate.weight";
const std::string kDeepseekUp = "model.layers.1.mlp.experts.2.up_proj.weight";
const std::string kGateUp = "model.layers.1.mlp.experts.gate_up_proj";

void make_mixtral(const std::string& folder) { make_tiny_mixtral(folder); }

void make_fp8_deepseek(const Scene& scene) {
  make_tiny_deepseek(scene.model);
  store_in_fp8_blocks(scene.model);
}

void make_mxfp4_gpt_oss(const Scene& scene) {
  make_tiny_gpt_oss(scene.model);
  store_in_mxfp4(scene.model);
}

void set_float(StoredTensor& tensor, int64_t at, float value) { std::memcpy(tensor.bytes.data() + 4 * at, &value, 4); }

/// The words of another tool's config.json.
void say_quantized(const Scene& scene, const Json& words) {
  scene.config([&](Json& config) { config["quantization_config"] = words; });
}

std::vector<Case> damaged_experts() {
  return {
      {"ExpertMissing", 3, {kExpert}, [](Scene& s) { s.tensors([](StoredTensors& t) { t.erase(kExpert); }); }},
      {"ExpertOfAnotherShape",
       3,
       {kExpert, "[64, 32]", "[32, 64]"},
       [](Scene& s) { s.tensors([](StoredTensors& t) {
                        t.at(kExpert).shape = {64, 32};
                      }); }},
      {"ExpertOfIntegers", 3, {kExpert, "I16"}, [](Scene& s) { s.tensors([](StoredTensors& t) { t.at(kExpert).dtype = "I16"; }); }},
      {"RouterOfMoreRowsThanExperts",
       3,
       {kRouter, "[5, 64]", "[4, 64]"},
       [](Scene& s) {
         s.tensors([](StoredTensors& t) {
           t.at(kRouter).shape = {5, 64};
           t.at(kRouter).bytes.append(128, '\0');
         });
       }},
      {"MoreExpertsThanTheConfigSays",
       3,
       {"gate.weight", "[4, 64]", "[3, 64]"},
       [](Scene& s) { s.config([](Json& c) { c["num_local_experts"] = 3; }); }},
      {"FewerExpertsThanTheConfigSays",
       3,
       {"model.layers.0.block_sparse_moe."},
       [](Scene& s) { s.config([](Json& c) { c["num_local_experts"] = 6; }); }},
      {"NanInAnExpert",
       3,
       {kExpert, "NaN"},
       [](Scene& s) { s.tensors([](StoredTensors& t) { set_bf16(t.at(kExpert), 31 * 64 + 63, kNan); }); }},
      {"NanInAnExpertOfTheOtherRank",
       3,
       {kExpert, "NaN"},
       [](Scene& s) {
         s.tensors([](StoredTensors& t) { set_bf16(t.at(kExpert), 0, kNan); });
         s.add("parallel.expert=2");
       },
       {2, 4}},
      {"NanInARouter", 3, {kRouter, "NaN"}, [](Scene& s) { s.tensors([](StoredTensors& t) { set_bf16(t.at(kRouter), 100, kNan); }); }},
      {"NanInACorrectionBias",
       3,
       {"model.layers.1.mlp.gate.e_score_correction_bias", "NaN"},
       [](Scene& s) {
         make_tiny_deepseek(s.model);
         s.tensors([](StoredTensors& t) { set_float(t.at("model.layers.1.mlp.gate.e_score_correction_bias"), 2, kNan); });
       }},
      {"InfInAStackedExpert",
       3,
       {"model.layers.1.feed_forward.experts.down_proj", "Inf"},
       [](Scene& s) {
         make_tiny_llama4(s.model);
         s.tensors([](StoredTensors& t) { set_bf16(t.at("model.layers.1.feed_forward.experts.down_proj"), 3 * 32 * 64 + 7, INFINITY); });
       }},
      {"NanInAStackedBias",
       3,
       {kGateUp + "_bias", "NaN"},
       [](Scene& s) {
         make_tiny_gpt_oss(s.model);
         s.tensors([](StoredTensors& t) { set_bf16(t.at(kGateUp + "_bias"), 3, kNan); });
       }},
      {"ActivationsOverflowInAnExpert",
       3,
       {"model.layers.1.block_sparse_moe.experts.", "w2"},
       [](Scene& s) {
         // Any expert, so that the case does not hang on who is routed where.
         s.tensors([](StoredTensors& t) {
           for (int e = 0; e < 4; ++e)
             for (int64_t at = 0; at < 32 * 64; ++at)
               for (const char* name : {".w1.weight", ".w3.weight"})
                 set_bf16(t.at("model.layers.1.block_sparse_moe.experts." + std::to_string(e) + name), at, 3e38f);
         });
       }},
      {"ActivationsOverflowInAnExpertOfTheOtherRank",
       3,
       {"model.layers.1.block_sparse_moe.experts.3", "w2"},
       [](Scene& s) {
         s.tensors([](StoredTensors& t) {
           for (int64_t at = 0; at < 32 * 64; ++at)
             for (const char* name : {".w1.weight", ".w3.weight"})
               set_bf16(t.at(std::string("model.layers.1.block_sparse_moe.experts.3") + name), at, 3e38f);
         });
         s.add("parallel.expert=2");
       },
       {2}},
  };
}

std::vector<Case> damaged_native_sources() {
  return {
      {"ScaleMissing",
       3,
       {kDeepseekUp, kDeepseekUp + "_scale_inv"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) { t.erase(kDeepseekUp + "_scale_inv"); });
       }},
      {"ScaleOfAnotherGrid",
       3,
       {kDeepseekUp + "_scale_inv", "[1, 2]", "[1, 1]"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) {
           StoredTensor& scale = t.at(kDeepseekUp + "_scale_inv");
           scale.shape = {1, 2};
           scale.bytes += scale.bytes;
         });
       }},
      {"ScaleOfAnotherDtype",
       3,
       {kDeepseekUp + "_scale_inv", "I32"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) { t.at(kDeepseekUp + "_scale_inv") = {"I32", {1, 1}, std::string(4, '\1')}; });
       }},
      {"ScaleNan",
       3,
       {kDeepseekUp + "_scale_inv", "NaN"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) { set_float(t.at(kDeepseekUp + "_scale_inv"), 0, kNan); });
       }},
      {"ScaleNanOnTheOtherRank",
       3,
       {kDeepseekUp + "_scale_inv", "NaN"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) { set_float(t.at(kDeepseekUp + "_scale_inv"), 0, kNan); });
         s.add("parallel.expert=2");
       },
       {2}},
      {"CodeNan",
       3,
       {kDeepseekUp, "NaN"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.tensors([](StoredTensors& t) { t.at(kDeepseekUp).bytes[77] = '\x7f'; });
       }},
      {"BlockSizeNotTwoNumbers",
       3,
       {"weight_block_size", "config.json"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.config([](Json& c) { c["quantization_config"]["weight_block_size"] = {128, "wide"}; });
       }},
      {"BlockSizeWithoutEnd",
       3,
       {"weight_block_size", "config.json"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.config([](Json& c) { c["quantization_config"]["weight_block_size"] = {int64_t{1} << 60, 128}; });
       }},
      {"CodesThatTheConfigDoesNotKnow",
       3,
       {"model.layers.0.", "F8_E4M3", "BF16"},
       [](Scene& s) {
         make_fp8_deepseek(s);
         s.config([](Json& c) { c.erase("quantization_config"); });
       }},
      {"BlocksWithoutScales",
       3,
       {kGateUp + "_scales"},
       [](Scene& s) {
         make_mxfp4_gpt_oss(s);
         s.tensors([](StoredTensors& t) { t.erase(kGateUp + "_scales"); });
       }},
      {"ScalesOfAnotherShape",
       3,
       {kGateUp + "_scales", "[4, 64, 2]"},
       [](Scene& s) {
         make_mxfp4_gpt_oss(s);
         s.tensors([](StoredTensors& t) { t.at(kGateUp + "_scales").shape = {4, 2, 64}; });
       }},
      {"BlocksOfAnotherShape",
       3,
       {kGateUp},
       [](Scene& s) {
         make_mxfp4_gpt_oss(s);
         s.tensors([](StoredTensors& t) { t.at(kGateUp + "_blocks").shape = {4, 64, 32}; });
       }},
      {"ExponentNan",
       3,
       {kGateUp, "NaN"},
       [](Scene& s) {
         make_mxfp4_gpt_oss(s);
         s.tensors([](StoredTensors& t) { t.at(kGateUp + "_scales").bytes[9] = '\xff'; });
       }},
  };
}

std::vector<Case> unsupported_sources() {
  const auto deepseek_with = [](const char* key, const Json& value) {
    return [key, value](Scene& s) {
      make_tiny_deepseek(s.model);
      s.config([&](Json& c) { c[key] = value; });
    };
  };
  const auto quantized_with = [](const Json& words) { return [words](Scene& s) { say_quantized(s, words); }; };
  return {
      {"OtherScoringFunction", 3, {"scoring_func", "softmax", "config.json"}, deepseek_with("scoring_func", "softmax")},
      {"OtherTopKMethod", 3, {"topk_method", "group_limited_greedy"}, deepseek_with("topk_method", "group_limited_greedy")},
      {"MoreExpertsATokenThanThereAre",
       3,
       {"num_experts_per_tok", "5"},
       [](Scene& s) { s.config([](Json& c) { c["num_experts_per_tok"] = 5; }); }},
      {"ZeroExperts", 3, {"num_local_experts"}, [](Scene& s) { s.config([](Json& c) { c["num_local_experts"] = 0; }); }},
      {"GroupsThatDoNotDivideTheExperts", 3, {"n_group", "3"}, deepseek_with("n_group", 3)},
      {"QuantizedByModelOpt",
       3,
       {"modelopt", "NVFP4", "BF16"},
       [](Scene& s) {
         std::vector<std::string> words = s.command();
         words.push_back("output.path=" + s.folder / "export");
         expect_success(run_program(words));
         s.add("model.path=" + s.folder / "export");
       }},
      {"QuantizedByAwq", 3, {"awq", "BF16"}, quantized_with({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}})},
      {"QuantizedByGptq", 3, {"gptq"}, quantized_with({{"quant_method", "gptq"}, {"bits", 4}})},
      {"QuantizedByCompressedTensors",
       3,
       {"compressed-tensors", "pack-quantized", "BF16"},
       quantized_with({{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}})},
      {"QuantizedToFp8WithoutBlocks", 3, {"fbgemm_fp8"}, quantized_with({{"quant_method", "fbgemm_fp8"}})},
      {"Fp8WithoutABlockSize", 3, {"fp8"}, quantized_with({{"quant_method", "fp8"}, {"activation_scheme", "static"}})},
      {"NvFp4OfExpertsOfAnOddWidth",
       2,
       {"model.layers.0.block_sparse_moe.experts.0.w2", "24", "16", "*.block_sparse_moe.experts.*"},
       [](Scene& s) { make_tiny_mixtral(s.model, {.intermediate = 24}); }},
  };
}

std::vector<Case> bad_recipes() {
  return {
      {"MoreExpertRanksThanExperts",
       2,
       {"parallel.expert", "3", "2"},
       [](Scene& s) {
         make_tiny_mixtral(s.model, {.experts = 2});
         s.add("parallel.expert=3");
       },
       {3}},
      {"ExpertRanksThatDoNotDivideTheRanks", 2, {"parallel.expert", "2"}, [](Scene& s) { s.add("parallel.expert=2"); }, {1, 3}},
      {"ExpertRanksThatDoNotDivideAStage",
       2,
       {"parallel.expert", "4"},
       [](Scene& s) {
         s.add("parallel.expert=4");
         s.add("parallel.pipeline=2");
       },
       {4}},
      {"ExpertRanksOfADenseModel",
       2,
       {"parallel.expert", "llama"},
       [](Scene& s) {
         make_tiny_llama(s.model);
         s.add("parallel.expert=2");
       },
       {2}},
      {"ZeroExpertRanks", 2, {"parallel.expert", "0"}, [](Scene& s) { s.add("parallel.expert=0"); }, {1}},
      {"RuleThatSplitsTheExpertsOfALayer",
       2,
       {"model.layers.0.block_sparse_moe.experts.", "*.block_sparse_moe.experts.*"},
       [](Scene& s) { s.add(R"(quantization.rules=[{match: "*.experts.1.*", format: fp8}])"); }},
      {"RuleThatSplitsAnExpert",
       2,
       {"block_sparse_moe.experts.", "w2"},
       [](Scene& s) { s.add(R"(quantization.rules=[{match: "*.w2", format: none}])"); }},
      {"UnknownUnseen", 2, {"moe.unseen", "guess", "peer_max"}, [](Scene& s) { s.add("moe.unseen=guess"); }},
      {"CoverageAboveOne", 2, {"moe.fail_below_coverage"}, [](Scene& s) { s.add("moe.fail_below_coverage=95"); }},
      {"NegativeMinimum", 2, {"moe.min_tokens_per_expert", "-1"}, [](Scene& s) { s.add("moe.min_tokens_per_expert=-1"); }},
      {"UnknownMoeKey", 2, {"min_tokens", "min_tokens_per_expert"}, [](Scene& s) { s.recipe += "moe: {min_tokens: 3}\n"; }},
      {"MemoryForLessThanAnExpert", 2, {"memory.host", "expert"}, [](Scene& s) { s.add("memory.host=1MiB"); }},
  };
}

class MoeBadInput : public ::testing::TestWithParam<CaseAtRanks> {};

TEST_P(MoeBadInput, EndsWithOneClearMessage) {
  Scene scene(make_mixtral);
  expect_one_clear_message(scene, GetParam().input, GetParam().ranks);
}

INSTANTIATE_TEST_SUITE_P(Experts, MoeBadInput, ::testing::ValuesIn(at_one_rank(damaged_experts())), name_of);
INSTANTIATE_TEST_SUITE_P(Native, MoeBadInput, ::testing::ValuesIn(at_one_rank(damaged_native_sources())), name_of);
INSTANTIATE_TEST_SUITE_P(Unsupported, MoeBadInput, ::testing::ValuesIn(at_one_rank(unsupported_sources())), name_of);
INSTANTIATE_TEST_SUITE_P(Recipes, MoeBadInput, ::testing::ValuesIn(at_one_rank(bad_recipes())), name_of);

TEST(MoeBadInputAtSeveralRanks, EndsWithOneClearMessageForExperts) {
  expect_clear_messages(at_several_ranks(damaged_experts()), make_mixtral);
}
TEST(MoeBadInputAtSeveralRanks, EndsWithOneClearMessageForNativeSources) {
  expect_clear_messages(at_several_ranks(damaged_native_sources()), make_mixtral);
}
TEST(MoeBadInputAtSeveralRanks, EndsWithOneClearMessageForUnsupportedSources) {
  expect_clear_messages(at_several_ranks(unsupported_sources()), make_mixtral);
}
TEST(MoeBadInputAtSeveralRanks, EndsWithOneClearMessageForRecipes) { expect_clear_messages(at_several_ranks(bad_recipes()), make_mixtral); }

TEST(MoeBadInputScene, IsSoundUntilSpoiled) {
  const Scene scene(make_mixtral);
  expect_success(run_program(scene.command()));
}

// Experts of 3 MiB, and memory for few of them at a time.
constexpr TinyMoe kLargeExperts{.hidden = 128, .intermediate = 4096, .layers = 1, .experts = 6};

struct StreamedCase {
  const char* name;
  void (*make)(const std::string&, const TinyMoe&);
  int ranks;
  std::vector<std::string> words, culprit;
  std::function<void(const Scene&)> spoil;
};

void spoil_expert(const Scene& scene) {
  scene.tensors([](StoredTensors& t) { set_bf16(t.at("model.layers.0.block_sparse_moe.experts.4.w2.weight"), 5, kNan); });
}
void spoil_stack(const Scene& scene) {
  scene.tensors([](StoredTensors& t) { set_bf16(t.at("model.layers.0.feed_forward.experts.down_proj"), (int64_t{5} << 19) + 3, kNan); });
}
void truncate_shard(const Scene& scene) {
  split_into_shards(scene.model, 4);
  const std::string shard = scene.model + "/model-00003-of-00004.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 4096);
}

TEST(MoeBadInputWhileStreaming, EndsWithOneClearMessage) {
  const std::vector<std::string> expert{"model.layers.0.block_sparse_moe.experts.4.w2.weight", "NaN"},
      stack{"model.layers.0.feed_forward.experts.down_proj", "NaN"}, shard{"model-00003-of-00004.safetensors"};
  const std::vector<StreamedCase> cases{{"an expert", make_tiny_mixtral, 1, {}, expert, spoil_expert},
                                        {"an expert of two ranks", make_tiny_mixtral, 2, {"parallel.expert=2"}, expert, spoil_expert},
                                        {"an expert of replicas", make_tiny_mixtral, 2, {"parallel.tensor=2"}, expert, spoil_expert},
                                        {"an expert of a stack", make_tiny_llama4, 2, {"parallel.expert=2"}, stack, spoil_stack},
                                        {"a truncated shard", make_tiny_mixtral, 2, {"parallel.expert=2"}, shard, truncate_shard}};
  std::vector<std::unique_ptr<Scene>> scenes;
  std::vector<ProgramCall> calls;
  for (const StreamedCase& input : cases) {
    scenes.push_back(std::make_unique<Scene>([&](const std::string& folder) { input.make(folder, kLargeExperts); }));
    scenes.back()->words.insert(scenes.back()->words.end(), input.words.begin(), input.words.end());
    calls.push_back({scenes.back()->command(), {.ranks = input.ranks}});
    calls.back().arguments.emplace_back("memory.host=1MiB");
  }
  // The least memory there can be is in the refusal; a little more is enough for some experts, and not for all.
  const std::vector<ProgramResult> refusals = run_programs(calls, calls.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    const size_t at = refusals[i].err.find("this rank needs ");
    ASSERT_NE(at, std::string::npos) << refusals[i].report();
    calls[i].arguments.back() = "memory.host=" + std::to_string(static_cast<int>(std::stod(refusals[i].err.substr(at + 16))) + 4) + "MiB";
    cases[i].spoil(*scenes[i]);
  }

  const std::vector<ProgramResult> results = run_programs(calls, calls.size());

  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i].name);
    expect_clear_message(*scenes[i], {cases[i].name, 3, cases[i].culprit, nullptr}, false, results[i]);
  }
}

TEST(MoeBadInputWhileStreaming, AShardCutWhileItIsReadIsNoHang) {
  Scene scene(
      [](const std::string& folder) { make_tiny_mixtral(folder, {.hidden = 128, .intermediate = 4096, .layers = 4, .experts = 6}); });
  write_file(scene.data, random_documents(24, 128, 128));
  for (const char* word : {"calibration.samples=24", "calibration.sequence_length=128", "parallel.expert=2"}) scene.add(word);
  std::vector<std::string> words = scene.command();
  words.emplace_back("memory.host=1MiB");
  const ProgramResult refused = run_program(words, {.ranks = 2});
  const size_t at = refused.err.find("this rank needs ");
  ASSERT_NE(at, std::string::npos) << refused.report();
  words.back() = "memory.host=" + std::to_string(static_cast<int>(std::stod(refused.err.substr(at + 16))) + 4) + "MiB";

  split_into_shards(scene.model, 20);
  const Json index = read_json_file(scene.model + "/model.safetensors.index.json");
  const std::string shard =
      scene.model + "/" + index.at("weight_map").at("model.layers.3.block_sparse_moe.experts.3.w1.weight").get<std::string>();

  RunningProgram job(words, {.ranks = 2});
  const bool is_in_time = job.wait_for_words("layer 1/4", 50);
  fs::resize_file(shard, 1000);
  const ProgramResult result = job.wait();

  EXPECT_FALSE(result.is_timed_out) << result.report();
  if (!is_in_time || result.err.find("layer 4/4") != std::string::npos) GTEST_SKIP() << "the last layer was read before its shard was cut";
  EXPECT_EQ(result.exit_code, 3) << result.report();
  EXPECT_NE(result.err.find("truncated"), std::string::npos) << result.report();
  EXPECT_NE(result.err.find(shard), std::string::npos) << result.report();
  EXPECT_EQ(result.errors().size(), 1u) << result.report();
  EXPECT_FALSE(fs::exists(scene.output));
}

}  // namespace
}  // namespace ptq::test
