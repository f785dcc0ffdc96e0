// Training checkpoints of Megatron-LM, Megatron-Bridge and NeMo are the Hugging Face models they stand for: converted bit for bit, and
// quantized to the same bytes, at any number of ranks.

#include <filesystem>

#include "tests/e2e/recipe_runs.h"
#include "tests/support/make_dist_checkpoint.h"
#include "tests/support/make_rank_file.h"
#include "tests/support/make_tar.h"
#include "tests/support/memory_arrays.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

struct Fixture {
  const char* path;
  const char* model;   ///< below hf/
  const char* format;  ///< what inspect calls it
};

constexpr Fixture kFixtures[] = {
    {"mcore_llama_tp2", "llama", "Megatron torch_dist"},
    {"mcore_llama_pp2/iter_0000005", "llama", "Megatron torch_dist"},
    {"mcore_qwen3moe_ep2", "qwen3_moe", "Megatron torch_dist"},
    {"mcore_qwen3moe_singleton", "qwen3_moe", "Megatron torch_dist"},
    {"mcore_dsv3_ep2", "deepseek_v3", "Megatron torch_dist"},
    {"bridge_llama", "llama", "Megatron-Bridge torch_dist"},
    {"nemo2_llama", "llama", "NeMo 2 torch_dist"},
    {"nemo2_llama/weights", "llama", "NeMo 2 torch_dist"},
    {"nemo1/llama_zarr.nemo", "llama", "NeMo 1 zarr"},
    {"nemo1/llama_mp_rank_tp2.nemo", "llama", "NeMo 1 mp_rank"},
    {"legacy_llama_tp2", "llama", "Megatron mp_rank"},
    {"legacy_llama_pp2", "llama", "Megatron mp_rank"},
    {"legacy_qwen3moe_ep2", "qwen3_moe", "Megatron mp_rank"},
};

class MegatronSource : public RecipeRuns {
 protected:
  void SetUp() override {
    if (shared_folder().empty()) GTEST_SKIP() << "no test material: neither $PTQ_SHARED nor ../shared is a folder";
    formats_ = shared_folder() + "/fixtures/input_formats/";
  }
  std::string config_of(const std::string& model) const { return formats_ + "hf/" + model; }
  /// Words that make a recipe read this source.
  std::vector<std::string> source(const std::string& path, const std::string& model) const {
    return {"model.path=" + path, "model.config=" + config_of(model)};
  }
  std::string convert(const std::string& name, const std::string& path, const std::string& model, int ranks,
                      const std::vector<std::string>& parallel = {}) {
    write_recipe("unset", "[]", 1, 1, "none");
    std::vector<std::string> words = source(path, model);
    words.insert(words.end(), parallel.begin(), parallel.end());
    return quantize(name, ranks, words);
  }
  /// A folder with the config of a model, edited.
  std::string edited_config(const std::string& model, const std::function<void(Json&)>& edit) {
    write_file(folder_.write("config/config.json", read_file(config_of(model) + "/config.json")),
               read_file(config_of(model) + "/config.json"));
    edit_json_file(folder_ / "config/config.json", edit);
    return folder_ / "config";
  }

  std::string formats_;
};

TEST_F(MegatronSource, IsTheModelItStandsFor) {
  int number = 0;
  for (const Fixture& fixture : kFixtures) {
    SCOPED_TRACE(fixture.path);
    const std::string output = convert("whole_" + std::to_string(number++), formats_ + fixture.path, fixture.model, 1);
    EXPECT_TRUE(read_tensors(output) == read_tensors(config_of(fixture.model) + "/model.safetensors"));
    EXPECT_TRUE(read_json_file(output + "/config.json") == read_json_file(config_of(fixture.model) + "/config.json"));
  }
}

TEST_F(MegatronSource, IsTheSameAtAnyNumberOfRanks) {
  int number = 0;
  for (const Fixture& fixture : kFixtures) {
    SCOPED_TRACE(fixture.path);
    const StoredTensors wanted = read_tensors(config_of(fixture.model) + "/model.safetensors");
    const std::string name = "at_" + std::to_string(number++), path = formats_ + fixture.path;
    const bool has_experts = std::string(fixture.model) != "llama";
    EXPECT_TRUE(read_tensors(convert(name + "_two", path, fixture.model, 2, {"parallel.tensor=2"})) == wanted);
    const std::vector<std::string> four =
        has_experts ? std::vector<std::string>{"parallel.expert=2"} : std::vector<std::string>{"parallel.tensor=2"};
    EXPECT_TRUE(read_tensors(convert(name + "_four", path, fixture.model, 4, four)) == wanted);
  }
}

TEST_F(MegatronSource, IsQuantizedToTheBytesOfItsHuggingFaceForm) {
  folder_.write("data.jsonl", random_documents(4, 32, 100));
  for (const std::string preset : {"fp8", "nvfp4", "int4_awq"}) {
    write_recipe(config_of("llama"), folder_ / "data.jsonl", 4, 32, preset);
    // The model is small: larger groups do not divide its widths, nor these that of down_proj.
    const std::vector<std::string> groups =
        preset == "int4_awq" ? std::vector<std::string>{"quantization.group_size=32", R"(quantization.ignore=["lm_head", "*.down_proj"])"}
                             : std::vector<std::string>{};
    const auto read_from = [&](const std::string& path) {
      std::vector<std::string> words = source(formats_ + path, "llama");
      words.insert(words.end(), groups.begin(), groups.end());
      return words;
    };
    const std::string wanted = quantize(preset, 1, groups);
    for (const std::string path : {"bridge_llama", "nemo2_llama", "mcore_llama_tp2"}) {
      SCOPED_TRACE(preset + " " + path);
      expect_same_output(wanted, quantize(preset + "_" + path, 1, read_from(path)));
    }
    std::vector<std::string> words = read_from("mcore_llama_tp2");
    words.emplace_back("parallel.tensor=2");
    expect_same_output(wanted, quantize(preset + "_at_two", 2, words));
  }
}

TEST_F(MegatronSource, OfTorchDistMayLieInAnArchive) {
  const std::string weights = formats_ + "mcore_llama_tp2/iter_0000005";
  std::string archive = tar_header("./", 0, '5') + tar_member("./model_config.yaml", "precision: bf16\n");
  for (const auto& file : fs::directory_iterator(weights))
    archive += tar_member("./model_weights/" + file.path().filename().string(), read_file(file.path()));
  const std::string path = folder_.write("model.nemo", archive + tar_end());
  const StoredTensors wanted = read_tensors(config_of("llama") + "/model.safetensors");

  EXPECT_TRUE(read_tensors(convert("archived", path, "llama", 1)) == wanted);
  EXPECT_TRUE(read_tensors(convert("archived_two", path, "llama", 2, {"parallel.tensor=2"})) == wanted);
  const ProgramResult result = run_program({"inspect", path, "--json"});
  expect_success(result);
  EXPECT_EQ(Json::parse(result.out, nullptr, false).value("format", ""), "NeMo 1 torch_dist");
}

TEST_F(MegatronSource, IsNamedByInspect) {
  for (const Fixture& fixture : kFixtures) {
    const ProgramResult alone = run_program({"inspect", formats_ + fixture.path, "--json"});
    expect_success(alone);
    EXPECT_EQ(Json::parse(alone.out, nullptr, false).value("format", ""), fixture.format) << alone.report();
    const ProgramResult result = run_program({"inspect", formats_ + fixture.path, "--config", config_of(fixture.model), "--json"});
    expect_success(result);
    const Json json = Json::parse(result.out, nullptr, false);
    EXPECT_EQ(json.value("format", ""), fixture.format);
    EXPECT_EQ(json.value("vocab_size", 0), read_json_file(config_of(fixture.model) + "/config.json").at("vocab_size"));
  }
}

TEST_F(MegatronSource, BringsItsLayersOfMultiTokenPrediction) {
  StoredTensors tensors = read_tensors(config_of("deepseek_v3"));
  const Json config = read_json_file(config_of("deepseek_v3") + "/config.json");
  const int64_t layers = config.at("num_hidden_layers"), hidden = config.at("hidden_size");
  const std::string last = "model.layers." + std::to_string(layers - 1) + ".", extra = "model.layers." + std::to_string(layers) + ".";
  for (const auto& [name, tensor] : StoredTensors(tensors))
    if (name.starts_with(last)) tensors[extra + name.substr(last.size())] = tensor;
  std::mt19937_64 random(1);
  for (const char* norm : {"enorm", "hnorm", "shared_head.norm"}) tensors[extra + norm + ".weight"] = random_tensor({hidden}, 1.0f, random);
  tensors[extra + "eh_proj.weight"] = random_tensor({hidden, 2 * hidden}, 1.0f, random);
  tensors[extra + "embed_tokens.weight"] = tensors.at("model.embed_tokens.weight");
  tensors[extra + "shared_head.head.weight"] = tensors.at("lm_head.weight");
  std::vector<RankTensor> arrays;
  for (const auto& [name, array] : to_megatron(tensors, 1, layers, 128))
    arrays.push_back({name, array.shape, array.bytes, array.dtype == "BF16" ? "torch BFloat16Storage" : "torch FloatStorage"});
  folder_.write("mtp/mp_rank_00/model_optim_rng.pt", rank_file({}, {arrays}));

  // As published: in FP8 blocks, which the training run's weights are not.
  const std::string published = edited_config("deepseek_v3", [](Json& json) {
    json["num_nextn_predict_layers"] = 1;
    json["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
  });
  write_recipe(folder_ / "mtp", "[]", 1, 1, "none");
  const std::string output = quantize("mtp_output", 1, {"model.config=" + published});
  EXPECT_TRUE(read_tensors(output) == tensors);
  EXPECT_FALSE(read_json_file(output + "/config.json").contains("quantization_config"));
}

TEST_F(MegatronSource, IsEvaluatedAsItsHuggingFaceForm) {
  const std::string config = config_of("llama"), ids = folder_.write("data.jsonl", random_documents(4, 32, 100));
  const Json wanted = evaluate({"--model", config, "--text", ids});
  for (const char* path : {"mcore_llama_tp2", "legacy_llama_tp2"}) {
    SCOPED_TRACE(path);
    const Json found = evaluate({"--model", formats_ + path, "--config", config, "--text", ids});
    EXPECT_EQ(found.at("perplexity"), wanted.at("perplexity"));
    EXPECT_EQ(found.at("tokens"), wanted.at("tokens"));
  }
  const Json compared = evaluate({"--model", config, "--reference", formats_ + "nemo2_llama", "--reference-config", config, "--text", ids});
  EXPECT_EQ(compared.at("reference_perplexity"), wanted.at("perplexity"));
  EXPECT_EQ(compared.at("kl").get<double>(), 0.0);
  const ProgramResult without = run_program({"evaluate", "--model", formats_ + "mcore_llama_tp2", "--text", ids});
  EXPECT_EQ(without.exit_code, 2) << without.report();
}

TEST_F(MegatronSource, SaysWhatItIgnored) {
  for (const std::string source : {"legacy_llama_tp2", "mcore_llama_tp2"}) {
    SCOPED_TRACE(source);
    const std::string path = formats_ + source;
    const Json alone = Json::parse(run_program({"inspect", path, "--json"}).out, nullptr, false);
    const Json ignored = alone.value("ignored", Json());
    ASSERT_TRUE(ignored.is_array() && !ignored.empty()) << alone;
    for (const Json& name : ignored) EXPECT_NE(name.get<std::string>().find("_extra_state"), std::string::npos) << name;
    const ProgramResult whole = run_program({"inspect", path, "--config", config_of("llama"), "--json"});
    EXPECT_EQ(Json::parse(whole.out, nullptr, false).value("ignored", Json()), ignored);

    const std::string words = "ignored: " + std::to_string(ignored.size()) +
                              " arrays or objects that only training needs: " + std::to_string(ignored.size()) + " _extra_state (";
    const ProgramResult said = run_program({"inspect", path, "--config", config_of("llama")});
    EXPECT_NE(said.out.find(words), std::string::npos) << said.report();
    const std::string output = convert("said_" + source, path, "llama", 1);
    EXPECT_NE(last_.err.find(words), std::string::npos) << last_.report();
    EXPECT_EQ(read_json_file(output + "/ptq-runner/report.json").at("source").at("ignored"), ignored);
  }
}

TEST_F(MegatronSource, BringsTheTokenizerThatWasSavedWithIt) {
  copy_folder(formats_ + "nemo2_llama", folder_ / "nemo");
  folder_.write("nemo/context/nemo_tokenizer/tokenizer.json", read_file(shipped_llama() + "/tokenizer.json"));
  const Json words = read_json_file(shipped_llama() + "/tokenizer.json");
  if (words.at("model").at("vocab").size() > 128) {  // more than the embedding has rows: any other tokenizer will do
    Json small = words;
    small["model"]["vocab"] = {{"a", 0}, {"b", 1}};
    small["model"]["merges"] = Json::array();
    small["added_tokens"] = Json::array();
    folder_.write("nemo/context/nemo_tokenizer/tokenizer.json", small.dump());
  }
  const std::string output = convert("nemo_output", folder_ / "nemo", "llama", 1);
  EXPECT_EQ(read_file(output + "/tokenizer.json"), read_file(folder_ / "nemo/context/nemo_tokenizer/tokenizer.json"));
}

TEST_F(MegatronSource, IsLeftForAnExportThatLiesBesideIt) {
  copy_folder(formats_ + "bridge_llama", folder_ / "bridge");
  fs::create_directories(folder_ / "bridge/iter_0000005/hf");
  for (const std::string name : {"/config.json", "/model.safetensors"})
    fs::copy_file(config_of("llama") + name, folder_ / ("bridge/iter_0000005/hf" + name));
  write_recipe(folder_ / "bridge", "[]", 1, 1, "none");
  const std::string output = quantize("exported", 1, {});
  EXPECT_TRUE(read_tensors(output) == read_tensors(config_of("llama") + "/model.safetensors"));
}

TEST_F(MegatronSource, WithoutAConfigIsRefused) {
  expect_refused(formats_ + "mcore_llama_tp2", "", 2, "set model.config to a folder");
  expect_refused(formats_ + "mcore_llama_tp2", folder_.path(), 2, "the folder has no config.json");
  expect_refused(formats_ + "hf/llama", config_of("llama"), 2, "'model.config' is for checkpoints without a config.json");
}

TEST_F(MegatronSource, OfAnotherModelThanItsConfigIsRefused) {
  const std::string path = formats_ + "mcore_llama_tp2", same = "must be of the same model";
  expect_refused(path, edited_config("llama", [](Json& config) { config["num_hidden_layers"] = 3; }), 3, same);
  expect_refused(path, edited_config("llama", [](Json& config) { config["intermediate_size"] = 64; }), 3, same);
  expect_refused(path, edited_config("llama", [](Json& config) { config["num_key_value_heads"] = 4; }), 3, same);
  expect_refused(path, edited_config("llama", [](Json& config) { config["vocab_size"] = 129; }), 3, "has 128 rows, padding included");
  expect_refused(path, edited_config("llama", [](Json& config) { config["tie_word_embeddings"] = true; }), 3, "embeddings are tied");
  expect_refused(path, config_of("qwen3_moe"), 3, same);
  expect_refused(formats_ + "legacy_llama_pp2", edited_config("llama", [](Json& config) { config["num_hidden_layers"] = 1; }), 3,
                 "has no place for");
}

TEST_F(MegatronSource, WithATokenizerOfMoreIdsThanRowsIsRefused) {
  const std::string config = edited_config("llama", [](Json&) {});
  folder_.write("config/tokenizer.json", R"({"model": {"vocab": {"a": 0, "b": 127}}, "added_tokens": [{"id": 128}]})");
  expect_refused(formats_ + "mcore_llama_tp2", config, 2, "the tokenizer has 129 ids");
}

TEST_F(MegatronSource, WithFilesOfSomeRanksOnlyIsRefused) {
  copy_folder(formats_ + "legacy_llama_tp2", folder_ / "legacy");
  fs::remove_all(folder_ / "legacy/iter_0000005/mp_rank_01");
  expect_refused(folder_ / "legacy", config_of("llama"), 3, "tensor_model_parallel_size = 2, but there are the files of 1");

  copy_folder(formats_ + "mcore_llama_tp2", folder_ / "mcore");
  fs::remove(folder_ / "mcore/iter_0000005/__1_0.distcp");
  expect_refused(folder_ / "mcore", config_of("llama"), 3,
                 "'__1_0.distcp' of the checkpoint is missing: it holds parts of 5 arrays: 'decoder.layers.");

  folder_.write("mcore/latest_checkpointed_iteration.txt", "6");
  expect_refused(folder_ / "mcore", config_of("llama"), 3, "the latest checkpoint is iter_0000006");
}

TEST_F(MegatronSource, WithArgsOfMoreTensorRanksThanFilesIsRefused) {
  const std::string file = rank_file({.tensor = 4}, {{{"decoder.final_layernorm.weight", {2}, "nn"}}});
  folder_.write("ranks/mp_rank_00/model_optim_rng.pt", file);
  folder_.write("ranks/mp_rank_01/model_optim_rng.pt", file);
  expect_refused(folder_ / "ranks", config_of("llama"), 3, "tensor_model_parallel_size = 4, but there are the files of 2");
}

TEST_F(MegatronSource, OfAnOptimizerAloneIsRefused) {
  folder_.write("ranks/mp_rank_00/distrib_optim.pt", "not looked at");
  folder_.write("ranks/mp_rank_01/distrib_optim.pt", "not looked at");
  expect_refused(folder_ / "ranks", config_of("llama"), 3,
                 "holds no weights of a model, only 'mp_rank_00/distrib_optim.pt', 'mp_rank_01/distrib_optim.pt'");

  const auto state = [](const std::string& name) { return DistArray{name, "uint8", {4}, {byte_chunk({0}, {4}, "__0_0.distcp", 'x')}}; };
  write_dist_checkpoint(folder_, {state("optimizer.state.exp_avg.w"), state("chained_1.optimizer.state.exp_avg.w")});
  folder_.write("metadata.json", R"({"sharded_backend": "torch_dist", "sharded_backend_version": 1})");
  expect_refused(folder_.path(), config_of("llama"), 3,
                 "holds no weights of a model, only 'optimizer.state.exp_avg.w', 'chained_1.optimizer.state.exp_avg.w', 'step'");
}

TEST_F(MegatronSource, CompressedIsRefusedWithTheCommandThatHelps) {
  folder_.write("model.nemo", std::string("\x1f\x8b\x08\x00", 4) + std::string(600, 'x'));
  expect_refused(folder_ / "model.nemo", config_of("llama"), 2, "gunzip < ");
}

}  // namespace
}  // namespace ptq::test
