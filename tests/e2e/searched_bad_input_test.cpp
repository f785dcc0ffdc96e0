// What a search of weights can stumble over: recipes that ask for what cannot be, zeros wherever a loss or a scale divides, activations
// that overflow, and next to nothing to calibrate on.

#include <cmath>

#include "tests/e2e/bad_input.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

void make_llama(const std::string& folder) { make_tiny_llama(folder, {.hidden = 128, .intermediate = 256}); }
void make_mixtral(const std::string& folder) { make_tiny_mixtral(folder, {.hidden = 128, .intermediate = 128}); }

void use_preset(Scene& scene, const std::string& preset, const std::string& dialect = "modelopt") {
  scene.add("quantization.preset=" + preset);
  scene.add("output.dialect=" + dialect);
}

std::vector<Case> bad_searches() {
  return {
      {"GroupSizeThatDoesNotDivide",
       2,
       {"model.layers.0.self_attn.q_proj has 128 inputs", "not a multiple of the 96"},
       [](Scene& s) {
         use_preset(s, "int4_awq");
         s.add("quantization.group_size=96");
       }},
      {"OddRowsOfPackedInt4",
       2,
       {"lm_head", "129"},
       [](Scene& s) {
         make_tiny_llama(s.model, {.hidden = 128, .intermediate = 256, .vocab = 129});
         use_preset(s, "int4_awq");
         s.add("quantization.ignore=[]");
       }},
      {"AlphaAboveOne",
       2,
       {"quantization.smoothquant.alpha", "from 0 to 1"},
       [](Scene& s) {
         use_preset(s, "int8_sq", "compressed-tensors");
         s.add("quantization.smoothquant.alpha=1.01");
       }},
      {"AlphaBelowZero",
       2,
       {"quantization.smoothquant.alpha", "from 0 to 1"},
       [](Scene& s) {
         use_preset(s, "int8_sq", "compressed-tensors");
         s.add("quantization.smoothquant.alpha=-0.5");
       }},
      {"AlphaNotANumber",
       2,
       {"quantization.smoothquant.alpha", "from 0 to 1"},
       [](Scene& s) {
         use_preset(s, "int8_sq", "compressed-tensors");
         s.add("quantization.smoothquant.alpha=.nan");
       }},
      {"RuleThatSplitsAFusedGroup",
       2,
       {"q_proj", "k_proj", "fuse"},
       [](Scene& s) {
         use_preset(s, "int4_awq");
         s.add(R"(quantization.rules=[{match: "*.q_proj", format: nvfp4}])");
       }},
      {"FactorsThatNoTensorHolds",
       2,
       {"compressed-tensors cannot hold smoothing factors", "use awq.fold: all"},
       [](Scene& s) {
         use_preset(s, "int4_awq", "compressed-tensors");
         s.add("quantization.awq.fold=none");
       }},
      {"SomeFactorsThatNoTensorHolds",
       2,
       {"compressed-tensors cannot hold smoothing factors", "use awq.fold: all"},
       [](Scene& s) {
         use_preset(s, "nvfp4_awq", "compressed-tensors");
         s.add("quantization.awq.fold=modelopt");
       }},
      {"SmoothQuantFactorsThatNoTensorHolds",
       2,
       {"compressed-tensors cannot hold smoothing factors"},
       [](Scene& s) {
         use_preset(s, "int8_sq", "compressed-tensors");
         s.add("quantization.awq.fold=none");
       }},
      {"FactorsThatAnEngineRejects",
       2,
       {"vllm rejects quant_algo NVFP4_AWQ"},
       [](Scene& s) {
         use_preset(s, "nvfp4_awq");
         s.add("quantization.awq.fold=none");
         s.add("output.engine=vllm");
       }},
  };
}

std::vector<Case> overflows() {
  const auto overflow = [](const std::string& preset, const std::string& dialect, const std::string& word) {
    return [=](Scene& s) {
      make_tiny_llama(s.model);
      make_overflow(s);
      use_preset(s, preset, dialect);
      if (!word.empty()) s.add(word);
    };
  };
  const std::vector<std::string> words{"model.layers.1.mlp.down_proj", "sample 2"};
  return {
      {"ActivationsOverflowUnderAwq", 3, words, overflow("nvfp4_awq", "modelopt", ""), {1, 2, 3}},
      {"ActivationsOverflowUnderAwqAndTensorRanks", 3, words, overflow("nvfp4_awq", "modelopt", "parallel.tensor=2"), {2, 4}},
      {"ActivationsOverflowUnderAwqInTheSecondStage", 3, words, overflow("nvfp4_awq", "modelopt", "parallel.pipeline=2"), {2}},
      {"ActivationsOverflowUnderSmoothQuant", 3, words, overflow("int8_sq", "compressed-tensors", ""), {1, 2}},
  };
}

class BadSearch : public ::testing::TestWithParam<CaseAtRanks> {};

TEST_P(BadSearch, EndsWithOneClearMessage) {
  Scene scene(make_llama);
  expect_one_clear_message(scene, GetParam().input, GetParam().ranks);
}

INSTANTIATE_TEST_SUITE_P(Recipes, BadSearch, ::testing::ValuesIn(at_one_rank(bad_searches())), name_of);
INSTANTIATE_TEST_SUITE_P(Overflows, BadSearch, ::testing::ValuesIn(at_ranks(overflows())), name_of);

TEST(BadSearches, EndWithOneClearMessageAtTwoRanks) { expect_clear_messages(at_several_ranks(bad_searches()), make_llama); }

/// Zeros in every matrix of the layers, in some way.
struct Zeros {
  const char* name;
  void (*put)(const std::string& tensor, StoredTensor& weight);
};

bool is_matrix(const std::string& name, const StoredTensor& weight) {
  return name.starts_with("model.layers.") && weight.shape.size() == 2 && !name.ends_with("gate.weight");
}
void zero(StoredTensor& weight, int64_t rows, int64_t first_column, int64_t columns) {
  const int64_t in = weight.shape.back();
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = first_column; column < first_column + columns; ++column) set_bf16(weight, row * in + column, 0.0f);
}

const std::vector<Zeros>& zeros() {
  static const std::vector<Zeros> all{
      {"Tensors",
       [](const std::string& name, StoredTensor& weight) {
         for (const char* one : {"0.self_attn.v_proj", "0.mlp.down_proj", "1.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.o_proj",
                                 "0.block_sparse_moe.experts.0.w1", "0.block_sparse_moe.experts.1.w2", "1.block_sparse_moe.experts.2.w3"})
           if (name == "model.layers." + std::string(one) + ".weight") zero(weight, weight.shape[0], 0, weight.shape[1]);
       }},
      {"Rows",
       [](const std::string& name, StoredTensor& weight) {
         if (is_matrix(name, weight)) zero(weight, 3, 0, weight.shape[1]);
       }},
      {"Blocks",
       [](const std::string& name, StoredTensor& weight) {
         if (is_matrix(name, weight)) zero(weight, 5, 16, 32);
       }},
      {"Channels",
       [](const std::string& name, StoredTensor& weight) {
         if (is_matrix(name, weight)) zero(weight, weight.shape[0], 17, 1);
       }},
      {"ActivationsOfSomeChannels",
       [](const std::string& name, StoredTensor& weight) {
         if (name.ends_with("layernorm.weight"))
           for (int64_t c = 3; c < 30; ++c) set_bf16(weight, c, 0.0f);
       }},
      {"ActivationsOfAllChannels",
       [](const std::string& name, StoredTensor& weight) {
         if (name.starts_with("model.layers.1.") && name.ends_with("layernorm.weight"))
           for (int64_t c = 0; c < weight.shape[0]; ++c) set_bf16(weight, c, 0.0f);
       }},
  };
  return all;
}

struct Search {
  const char *preset, *dialect;
  std::vector<std::string> words = {};
};
const std::vector<Search> kSearches{{"int4_awq", "compressed-tensors"},
                                    {"int4_awq", "modelopt", {"quantization.awq.fold=none", "output.engine=tensorrt-llm"}},
                                    {"w4a8_awq", "modelopt"},
                                    {"nvfp4_awq", "modelopt"},
                                    {"nvfp4_awq", "modelopt", {"quantization.awq.fold=modelopt"}},
                                    {"w4a16_nvfp4", "modelopt"},
                                    {"int8_sq", "compressed-tensors"},
                                    {"int8_sq", "compressed-tensors", {"quantization.smoothquant.alpha=auto"}}};

/// Runs, verifies beside the source and evaluates: nothing in it may be infinite or NaN.
void expect_sound(Scene& scene, const Search& search) {
  use_preset(scene, search.preset, search.dialect);
  for (const std::string& word : search.words) scene.add(word);
  const ProgramResult result = run_program(scene.command());
  expect_success(result);
  if (result.exit_code != 0) return;
  expect_success(run_program({"verify", scene.output, "--source", scene.model}));
  const Json judged = evaluate({"--model", scene.output, "--reference", scene.model, "--text", scene.data, "--samples", "4"});
  EXPECT_TRUE(judged.at("kl").is_number() && std::isfinite(judged.at("kl").get<double>())) << judged.dump();
  EXPECT_LT(judged.at("kl").get<double>(), 2.0);
}

class SearchOfZeros : public ::testing::TestWithParam<Zeros> {
 protected:
  void expect_all_sound(void (*make_model)(const std::string&)) {
    for (const Search& search : kSearches) {
      SCOPED_TRACE(std::string(search.preset) + " " + search.dialect + (search.words.empty() ? "" : " " + search.words[0]));
      Scene scene(make_model);
      scene.tensors([](StoredTensors& tensors) {
        for (auto& [name, weight] : tensors) GetParam().put(name, weight);
      });
      expect_sound(scene, search);
    }
  }
};

TEST_P(SearchOfZeros, IsSoundInLlama) { expect_all_sound(make_llama); }
TEST_P(SearchOfZeros, IsSoundInMixtral) { expect_all_sound(make_mixtral); }

INSTANTIATE_TEST_SUITE_P(Zeros, SearchOfZeros, ::testing::ValuesIn(zeros()),
                         [](const auto& parameters) { return std::string(parameters.param.name); });

TEST(SearchOfOneToken, IsSoundInEveryPreset) {
  const std::vector<Search> others{
      {"fp8", "modelopt"},     {"fp8_pb_wo", "modelopt"}, {"fp8_pc_pt", "modelopt"},      {"nvfp4", "modelopt"},
      {"int8_wo", "modelopt"}, {"mxfp8", "modelopt"},     {"mxfp4", "compressed-tensors"}};
  for (const auto make_model : {make_llama, make_mixtral})
    for (const auto* searches : {&kSearches, &others})
      for (const Search& search : *searches) {
        SCOPED_TRACE(std::string(search.preset) + " " + search.dialect + (make_model == make_llama ? " llama" : " mixtral"));
        Scene scene(make_model);
        write_file(scene.data, "{\"input_ids\": [5]}\n");
        scene.add("calibration.samples=1");
        use_preset(scene, search.preset, search.dialect);
        for (const std::string& word : search.words) scene.add(word);
        const ProgramResult result = run_program(scene.command());
        expect_success(result);
        if (result.exit_code != 0) continue;
        expect_success(run_program({"verify", scene.output, "--source", scene.model}));
        write_file(scene.data, random_documents(4, 32, 128));
        const Json judged = evaluate({"--model", scene.output, "--reference", scene.model, "--text", scene.data, "--samples", "4"});
        EXPECT_TRUE(judged.at("kl").is_number() && std::isfinite(judged.at("kl").get<double>())) << judged.dump();
      }
}

}  // namespace
}  // namespace ptq::test
