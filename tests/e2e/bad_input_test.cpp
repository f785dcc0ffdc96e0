// Everything a user can get wrong, and everything a disk or a download can: one clear message, the right exit code, nothing left behind
// and no hang, at one rank and at several.

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests/e2e/bad_input.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

void make_llama(const std::string& folder) { make_tiny_llama(folder); }

void set_length(const Scene& scene, uint64_t length) {
  std::string file = read_file(scene.weights());
  std::memcpy(file.data(), &length, 8);
  write_file(scene.weights(), file);
}

/// Puts the output on a file system of so many bytes that only this process and its children see, or says why not.
void use_small_disk(Scene& scene, int64_t bytes) {
  const std::string disk = scene.folder / "disk", options = "size=" + std::to_string(bytes);
  fs::create_directories(disk);
  if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("tmpfs", disk.c_str(), "tmpfs", 0, options.c_str()) != 0) {
    scene.skip = std::string("no small disk can be mounted here: ") + std::strerror(errno);
    return;
  }
  scene.output = disk + "/out";
  scene.add("output.path=" + scene.output);
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

std::vector<Case> damaged_weights() {
  return {
      {"TruncatedSafetensors", 3, {"model.safetensors"}, [](Scene& s) { fs::resize_file(s.weights(), fs::file_size(s.weights()) - 1000); }},
      {"TrailingBytes", 3, {"model.safetensors"}, [](Scene& s) { write_file(s.weights(), read_file(s.weights()) + "more"); }},
      {"EmptySafetensors", 3, {"model.safetensors"}, [](Scene& s) { write_file(s.weights(), ""); }},
      {"OverlappingOffsets",
       3,
       {"model.safetensors", "overlap"},
       [](Scene& s) {
         s.header([](Json& header) {
           const auto bytes = header[kUp]["data_offsets"][1].get<int64_t>() - header[kUp]["data_offsets"][0].get<int64_t>();
           header[kUp]["data_offsets"] = {0, bytes};
         });
       }},
      {"HeaderLongerThanTheFile", 3, {"model.safetensors"}, [](Scene& s) { set_length(s, 50'000'000); }},
      {"HeaderOfExabytes", 3, {"model.safetensors"}, [](Scene& s) { set_length(s, uint64_t{1} << 63); }},
      {"HeaderTooShort", 3, {"model.safetensors"}, [](Scene& s) { set_length(s, 20); }},
      {"HeaderNotJson",
       3,
       {"model.safetensors"},
       [](Scene& s) {
         std::string file = read_file(s.weights());
         file[8] = 'x';
         write_file(s.weights(), file);
       }},
      {"ShapeAndBytesDisagree", 3, {"model.safetensors", kUp}, [](Scene& s) { s.header([](Json& h) {
                                                                                h[kUp]["shape"] = {96, 63};
                                                                              }); }},
      {"MissingShard",
       3,
       {"model-00002-of-00003.safetensors"},
       [](Scene& s) {
         split_into_shards(s.model, 3);
         fs::remove(s.model + "/model-00002-of-00003.safetensors");
       }},
      {"TruncatedShard",
       3,
       {"model-00003-of-00003.safetensors"},
       [](Scene& s) {
         split_into_shards(s.model, 3);
         const std::string shard = s.model + "/model-00003-of-00003.safetensors";
         fs::resize_file(shard, fs::file_size(shard) / 2);
       }},
      {"IndexOutsideTheFolder",
       3,
       {"../x", "model.safetensors.index.json"},
       [](Scene& s) {
         split_into_shards(s.model, 2);
         edit_json_file(s.model + "/model.safetensors.index.json", [](Json& index) { index["weight_map"][kUp] = "../x.safetensors"; });
       }},
      {"MissingTensor", 3, {kUp}, [](Scene& s) { s.tensors([](StoredTensors& tensors) { tensors.erase(kUp); }); }},
      {"NanInTheWeights",
       3,
       {kUp, "NaN"},
       [](Scene& s) { s.tensors([](StoredTensors& t) { set_bf16(t.at(kUp), 95 * 64 + 63, std::numeric_limits<float>::quiet_NaN()); }); }},
      {"InfInTheWeights",
       3,
       {kUp, "Inf"},
       [](Scene& s) { s.tensors([](StoredTensors& t) { set_bf16(t.at(kUp), 3, -std::numeric_limits<float>::infinity()); }); }},
      {"NanInANorm",
       3,
       {"model.layers.0.input_layernorm.weight"},
       [](Scene& s) {
         s.tensors(
             [](StoredTensors& t) { set_bf16(t.at("model.layers.0.input_layernorm.weight"), 3, std::numeric_limits<float>::quiet_NaN()); });
       }},
      {"NanInTheHead",
       3,
       {"lm_head.weight"},
       [](Scene& s) {
         s.tensors([](StoredTensors& t) { set_bf16(t.at("lm_head.weight"), 127 * 64, std::numeric_limits<float>::quiet_NaN()); });
       }},
      {"NanInTheEmbedding",
       3,
       {"model.embed_tokens.weight"},
       [](Scene& s) {
         s.tensors([](StoredTensors& t) {
           for (int64_t token = 0; token < 128; ++token)
             set_bf16(t.at("model.embed_tokens.weight"), token * 64, std::numeric_limits<float>::quiet_NaN());
         });
       }},
      {"ActivationsOverflow", 3, {"model.layers.1.mlp.down_proj", "sample 2"}, make_overflow},
      {"ActivationsOverflowUnderTensorRanks",
       3,
       {"model.layers.1.mlp.down_proj", "sample 2"},
       [](Scene& s) {
         make_overflow(s);
         s.add("parallel.tensor=2");
       },
       {2, 4}},
      {"ActivationsOverflowInTheSecondStage",
       3,
       {"model.layers.1.mlp.down_proj", "sample 2"},
       [](Scene& s) {
         make_overflow(s);
         s.add("parallel.pipeline=2");
       },
       {2}},
  };
}

std::vector<Case> damaged_configs() {
  return {
      {"ConfigWithoutHeads",
       3,
       {"num_attention_heads", "config.json"},
       [](Scene& s) { s.config([](Json& c) { c.erase("num_attention_heads"); }); }},
      {"ConfigWithTextForANumber",
       3,
       {"hidden_size", "config.json"},
       [](Scene& s) { s.config([](Json& c) { c["hidden_size"] = "many"; }); }},
      {"ConfigWithZeroLayers", 3, {"num_hidden_layers"}, [](Scene& s) { s.config([](Json& c) { c["num_hidden_layers"] = 0; }); }},
      {"ConfigNotJson", 3, {"config.json"}, [](Scene& s) { write_file(s.model + "/config.json", "{\"hidden_size\": "); }},
      {"ConfigOfATrillionLayers",
       3,
       {"num_hidden_layers"},
       [](Scene& s) { s.config([](Json& c) { c["num_hidden_layers"] = int64_t{1} << 40; }); }},
      {"ConfigOfANegativeHeadDim", 3, {"head_dim"}, [](Scene& s) { s.config([](Json& c) { c["head_dim"] = -8; }); }},
      {"ConfigAbsurdRope",
       3,
       {"rope"},
       [](Scene& s) { s.config([](Json& c) {
                        c["rope_scaling"] = {{"rope_type", "moebius"}, {"factor", 2.0}};
                      }); }},
      {"UnknownArchitecture",
       3,
       {"MambaForCausalLM"},
       [](Scene& s) { s.config([](Json& c) { c["architectures"] = {"MambaForCausalLM"}; }); }},
      {"ConfigAndWeightsDisagree",
       3,
       {"model.embed_tokens.weight", "[128, 64]"},
       [](Scene& s) { s.config([](Json& c) { c["hidden_size"] = 128; }); }},
      {"ConfigOfMoreLayers", 3, {"model.layers.2."}, [](Scene& s) { s.config([](Json& c) { c["num_hidden_layers"] = 3; }); }},
      {"NoConfig", 2, {"config.json"}, [](Scene& s) { fs::remove(s.model + "/config.json"); }},
      {"NoModel", 2, {"model_of_dreams"}, [](Scene& s) { s.add("model.path=" + s.folder / "model_of_dreams"); }},
      {"ModelWithoutWeights", 2, {"model"}, [](Scene& s) { fs::remove(s.weights()); }},
      {"NvFp4OfAnOddWidth",
       2,
       {"model.layers.0.mlp.down_proj", "24", "16"},
       [](Scene& s) { make_tiny_llama(s.model, {.intermediate = 24}); }},
  };
}

std::vector<Case> bad_data() {
  return {
      {"DataEmpty", 2, {"data.jsonl"}, [](Scene& s) { write_file(s.data, ""); }},
      {"DataNotUtf8",
       2,
       {"data.jsonl:2", "UTF-8"},
       [](Scene& s) { write_file(s.data, "{\"input_ids\": [1, 2]}\n{\"text\": \"\xff\xfe\"}\n"); }},
      {"DataNotJson", 2, {"data.jsonl:1"}, [](Scene& s) { write_file(s.data, "once upon a time\n"); }},
      {"DataTooShort", 2, {"data.jsonl", "only 8", "100"}, [](Scene& s) { s.add("calibration.samples=100"); }},
      {"DataWithTooShortRows",
       2,
       {"data.jsonl", "only 0"},
       [](Scene& s) {
         s.add("calibration.sequence_length=33");
         s.add("calibration.drop_short=true");
       }},
      {"DataMissing", 2, {"nowhere.jsonl"}, [](Scene& s) { s.add("calibration.data=" + s.folder / "nowhere.jsonl"); }},
      {"DataNotGiven", 2, {"calibration.data"}, [](Scene& s) { replace(s.recipe, "data: " + s.data + ", ", ""); }},
      {"DataAFolder", 2, {"model"}, [](Scene& s) { s.add("calibration.data=" + s.model); }},
      {"DataOfMessages",
       2,
       {"data.jsonl:1", "messages"},
       [](Scene& s) { write_file(s.data, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n"); }},
      {"DataOfTextWithoutTokenizer", 2, {"data.jsonl:1", "tokenizer"}, [](Scene& s) { write_file(s.data, "{\"text\": \"x\"}\n"); }},
      {"DataOfUnknownTokens", 2, {"data.jsonl:1", "128"}, [](Scene& s) { write_file(s.data, "{\"input_ids\": [1, 128]}\n"); }},
      {"DataOfNegativeTokens", 2, {"data.jsonl:1", "-1"}, [](Scene& s) { write_file(s.data, "{\"input_ids\": [1, -1]}\n"); }},
  };
}

std::vector<Case> bad_recipes() {
  return {
      {"UnknownKey",
       2,
       {"recipe.yaml:2", "sampels", "did you mean 'samples'"},
       [](Scene& s) { replace(s.recipe, "samples:", "sampels:"); }},
      {"UnknownSection",
       2,
       {"recipe.yaml:3", "quantisation", "'quantization'"},
       [](Scene& s) { replace(s.recipe, "quantization:", "quantisation:"); }},
      {"RecipeNotYaml", 2, {"recipe.yaml:2"}, [](Scene& s) { replace(s.recipe, "calibration: {", "calibration: {{["); }},
      {"RecipeEmpty", 2, {"recipe.yaml"}, [](Scene& s) { s.recipe = ""; }},
      {"RecipeAList", 2, {"recipe.yaml"}, [](Scene& s) { s.recipe = "- a\n- b\n"; }},
      {"RecipeOfBytes", 2, {"recipe.yaml"}, [](Scene& s) { s.recipe = std::string("\x00\x01\xff\xfe{", 5); }},
      {"KeyTwice", 2, {"recipe.yaml:5", "output"}, [](Scene& s) { s.recipe += "output: {path: /nowhere/else}\n"; }},
      {"WrongType",
       2,
       {"recipe.yaml:2", "calibration.samples", "integer"},
       [](Scene& s) { replace(s.recipe, "samples: 4", "samples: many"); }},
      {"ListForANumber", 2, {"recipe.yaml:2", "calibration.samples"}, [](Scene& s) { replace(s.recipe, "samples: 4", "samples: [1, 2]"); }},
      {"TextForASection",
       2,
       {"recipe.yaml:4", "'output' is not a mapping"},
       [](Scene& s) { replace(s.recipe, "output: {path: " + s.output + "}", "output: nowhere"); }},
      {"NegativeSamples", 2, {"calibration.samples", "-4"}, [](Scene& s) { s.add("calibration.samples=-4"); }},
      {"HugeSamples", 2, {"calibration.samples"}, [](Scene& s) { s.add("calibration.samples=99999999999999999999"); }},
      {"UnknownPreset", 2, {"recipe.yaml:3", "nvfp5", "nvfp4"}, [](Scene& s) { replace(s.recipe, "preset: nvfp4", "preset: nvfp5"); }},
      {"PresetAndFormat", 2, {"preset", "format"}, [](Scene& s) { s.add("quantization.format=fp8"); }},
      {"RuleWithoutAMatch",
       2,
       {"recipe.yaml", "*.mixer.*"},
       [](Scene& s) { replace(s.recipe, "preset: nvfp4", "preset: nvfp4, rules: [{match: \"*.mixer.*\", format: fp8}]"); }},
      {"RuleThatSplitsAFusedGroup",
       2,
       {"q_proj", "k_proj"},
       [](Scene& s) { s.add(R"(quantization.rules=[{match: "*.q_proj", format: fp8}])"); }},
      {"RuleNotARegex", 2, {"re:(", "rule"}, [](Scene& s) { s.add(R"x(quantization.rules=[{match: "re:(", format: fp8}])x"); }},
      {"RuleWithUnknownKey", 2, {"formats"}, [](Scene& s) { s.add(R"(quantization.rules=[{match: "*", formats: fp8}])"); }},
      {"OverrideNotAKeyAndValue", 2, {"overwrite"}, [](Scene& s) { s.add("overwrite"); }},
      {"OverrideOfUnknownKey", 2, {"output.pth"}, [](Scene& s) { s.add("output.pth=/x"); }},
      {"NoOutputPath",
       2,
       {"output.path"},
       [](Scene& s) { replace(s.recipe, "output: {path: " + s.output + "}", "output: {overwrite: true}"); }},
      {"NoModelPath", 2, {"model.path"}, [](Scene& s) { replace(s.recipe, "model: {path: " + s.model + "}", "device: cpu"); }},
      {"DeviceCuda", 2, {"device", "CUDA"}, [](Scene& s) { s.add("device=cuda"); }},
      {"UnknownDevice", 2, {"device", "tpu"}, [](Scene& s) { s.add("device=tpu"); }},
      {"MemoryTooSmall", 2, {"memory.host", "1.00 MiB"}, [](Scene& s) { s.add("memory.host=1MiB"); }},
      {"MemoryNotASize", 2, {"memory.host", "plenty"}, [](Scene& s) { s.add("memory.host=plenty"); }},
      {"TensorRanksThatDoNotDivideTheHeads",
       2,
       {"tensor", "3", "8"},
       [](Scene& s) {
         make_tiny_llama(s.model, {.heads = 8, .kv_heads = 4});
         s.add("parallel.tensor=3");
       },
       {3}},
      {"MorePipelineRanksThanLayers", 2, {"parallel.pipeline", "2"}, [](Scene& s) { s.add("parallel.pipeline=3"); }, {3}},
      {"RanksThatTheMeshDoesNotDivide", 2, {"parallel.tensor", "2"}, [](Scene& s) { s.add("parallel.tensor=2"); }, {1, 3}},
  };
}

std::vector<Case> bad_places() {
  return {
      {"OutputBelowAFile",
       4,
       {"a_file"},
       [](Scene& s) {
         write_file(s.folder / "a_file", "x");
         s.output = s.folder / "a_file/out";
         s.add("output.path=" + s.output);
       }},
      {"OutputInProc",
       4,
       {"/proc/"},
       [](Scene& s) {
         s.output = "/proc/ptq/out";
         s.add("output.path=" + s.output);
       }},
      {"OutputInsideTheModel",
       2,
       {"output.path"},
       [](Scene& s) {
         s.output = s.model;
         s.add("output.path=" + s.output);
         s.add("output.overwrite=true");
       }},
      {"DiskTooSmall", 4, {"disk"}, [](Scene& s) { use_small_disk(s, 64 << 10); }},
      {"DiskFullOfCompanions",
       4,
       {"No space left"},
       [](Scene& s) {
         write_file(s.model + "/notes.txt", std::string(2'000'000, 'x'));
         use_small_disk(s, 1 << 20);
       }},
      {"ScratchMissing",
       4,
       {"no_such_folder"},
       [](Scene& s) {
         // Spilling needs a budget just above the least, which only the program knows: it is asked.
         write_file(s.data, random_documents(64, 1024, 128));
         write_file(s.folder / "recipe.yaml", s.recipe);
         for (const char* word : {"calibration.samples=64", "calibration.sequence_length=1024"}) s.add(word);
         std::vector<std::string> words = s.words;
         words.insert(words.begin(), s.folder / "recipe.yaml");
         words.emplace_back("memory.host=1MiB");
         const std::string err = run_program(words).err;
         const size_t at = err.find("this rank needs ");
         ASSERT_NE(at, std::string::npos) << err;
         s.add("memory.host=" + std::to_string(static_cast<int>(std::stod(err.substr(at + 16))) + 3) + "MiB");
         s.add("scratch=" + s.folder / "no_such_folder");
       },
       {1}},
  };
}

class BadInput : public ::testing::TestWithParam<CaseAtRanks> {};

TEST_P(BadInput, EndsWithOneClearMessage) {
  Scene scene(make_llama);
  expect_one_clear_message(scene, GetParam().input, GetParam().ranks);
}

INSTANTIATE_TEST_SUITE_P(Weights, BadInput, ::testing::ValuesIn(at_ranks(damaged_weights())), name_of);
INSTANTIATE_TEST_SUITE_P(Configs, BadInput, ::testing::ValuesIn(at_ranks(damaged_configs())), name_of);
INSTANTIATE_TEST_SUITE_P(Data, BadInput, ::testing::ValuesIn(at_ranks(bad_data())), name_of);
INSTANTIATE_TEST_SUITE_P(Recipes, BadInput, ::testing::ValuesIn(at_ranks(bad_recipes())), name_of);
INSTANTIATE_TEST_SUITE_P(Places, BadInput, ::testing::ValuesIn(at_ranks(bad_places())), name_of);

TEST(BadInputScene, IsSoundUntilSpoiled) {
  const Scene scene(make_llama);
  expect_success(run_program(scene.command()));
}

struct BadEvaluation {
  const char* name;
  int code;
  std::vector<std::string> arguments, words;
};

TEST(BadEvaluation, EndsWithOneClearMessage) {
  const Scene scene(make_llama);
  Scene other(make_llama);
  make_tiny_llama(other.model, {.vocab = 64});
  write_tensors(scene.folder / "beyond.safetensors", {{"input_ids", {"I32", {1, 2}, std::string("\x01\0\0\0\x80\0\0\0", 8)}}});
  write_tensors(scene.folder / "nameless.safetensors", {{"ids", {"I32", {1, 1}, std::string("\x01\0\0\0", 4)}}});
  const std::string logits = scene.folder / "logits.safetensors", m = scene.model;
  const std::vector<BadEvaluation> cases{
      {"no text", 2, {"--model", m, "--text", "nowhere.jsonl"}, {"nowhere.jsonl"}},
      {"no model", 2, {"--model", "nowhere", "--text", scene.data}, {"nowhere"}},
      {"no reference", 2, {"--model", m, "--reference", "nowhere", "--text", scene.data}, {"nowhere"}},
      {"text and ids", 2, {"--model", m, "--text", scene.data, "--input-ids", "x.safetensors", "--logits", logits}, {"--text"}},
      {"ids without logits", 2, {"--model", m, "--input-ids", "x.safetensors"}, {"--logits"}},
      {"unknown tokens", 2, {"--model", m, "--input-ids", scene.folder / "beyond.safetensors", "--logits", logits}, {"128"}},
      {"no input_ids", 2, {"--model", m, "--input-ids", scene.folder / "nameless.safetensors", "--logits", logits}, {"input_ids"}},
      {"other vocabulary", 2, {"--model", m, "--reference", other.model, "--text", scene.data}, {"vocabular"}},
      {"logits nowhere",
       4,
       {"--model", m, "--input-ids", scene.folder / "ids.safetensors", "--logits", "/proc/ptq/logits"},
       {"/proc/ptq/logits"}},
      {"unknown compute", 2, {"--model", m, "--text", scene.data, "--compute", "int3"}, {"int3"}},
  };
  write_tensors(scene.folder / "ids.safetensors", {{"input_ids", {"I32", {1, 1}, std::string("\x01\0\0\0", 4)}}});
  for (const BadEvaluation& bad : cases)
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(std::string(bad.name) + ", ranks: " + std::to_string(ranks));
      std::vector<std::string> words{"evaluate"};
      words.insert(words.end(), bad.arguments.begin(), bad.arguments.end());
      const ProgramResult result = run_program(words, {.ranks = ranks});
      EXPECT_EQ(result.exit_code, bad.code) << result.report();
      EXPECT_EQ(result.errors().size(), 1u) << result.report();
      for (const auto& part : bad.words) EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.report();
    }
}

}  // namespace
}  // namespace ptq::test
