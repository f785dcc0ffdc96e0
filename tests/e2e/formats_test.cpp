// Every number format in every dialect, from the recipe to what a server would make of it: the run verifies itself, `verify` finds nothing,
// `evaluate` reads it back, and rank counts change no byte.

#include <cmath>

#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

struct Case {
  const char *format, *dialect;
  double kl;  ///< a ceiling that only a fault reaches
};

std::ostream& operator<<(std::ostream& out, const Case& one) { return out << one.format << " " << one.dialect; }

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  std::string name = std::string(info.param.format) + "_" + info.param.dialect;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

const char *const kMo = "modelopt", *const kCt = "compressed-tensors";

class EveryFormat : public ::testing::TestWithParam<Case> {
 protected:
  void expect_sound(const std::string& shared, const std::string& model) {
    const std::string source = shared + "/fixtures/models/" + model, output = folder_ / model;
    const std::string text = "model: {path: " + source + "}\ncalibration: {data: " + shared +
                             "/fixtures/text/calib.jsonl, samples: 8, sequence_length: 256}\nquantization: {format: " + GetParam().format +
                             "}\noutput: {path: " + output + ", dialect: " + GetParam().dialect + "}\n";
    expect_success(run_program({folder_.write(model + ".yaml", text)}));
    EXPECT_EQ(std::filesystem::exists(output + "/hf_quant_config.json"), std::string(GetParam().dialect) == kMo);

    expect_success(run_program({"verify", output, "--source", source}, {.ranks = 2}));
    const Json result =
        evaluate({"--model", output, "--reference", source, "--text", shared + "/fixtures/text/eval.jsonl", "--samples", "4"});
    const double kl = result.at("kl");
    std::cout << model << " " << GetParam() << ": KL " << kl << "\n";
    EXPECT_TRUE(std::isfinite(kl));
    EXPECT_LT(kl, GetParam().kl);
  }

  TemporaryFolder folder_;
};

TEST_P(EveryFormat, IsWrittenVerifiedAndEvaluated) {
  PTQ_NEEDS_SHARED(shared);
  expect_sound(shared, "llama");
  expect_sound(shared, "qwen3-moe");
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat,
                         ::testing::Values(Case{"fp8", kMo, 0.03}, Case{"fp8_pc_pt", kMo, 0.03}, Case{"fp8_pb_wo", kMo, 0.015},
                                           Case{"int8_wo", kMo, 0.012}, Case{"int4", kMo, 0.6}, Case{"w4a8", kMo, 0.6},
                                           Case{"nvfp4", kMo, 1.2}, Case{"w4a16_nvfp4", kMo, 0.4}, Case{"mxfp8", kMo, 0.03},
                                           Case{"fp8", kCt, 0.03}, Case{"fp8_pc_pt", kCt, 0.03}, Case{"fp8_pb_wo", kCt, 0.03},
                                           Case{"int8", kCt, 4}, Case{"int8_wo", kCt, 0.012}, Case{"int4", kCt, 0.6},
                                           Case{"w4a8", kCt, 0.6}, Case{"nvfp4", kCt, 1.2}, Case{"w4a16_nvfp4", kCt, 0.4},
                                           Case{"mxfp8", kCt, 0.03}, Case{"mxfp4", kCt, 4}, Case{"fp8_pb_wo", "deepseek-fp8", 0.015}),
                         name_of);

/// A format on every kind of linear, so that each is cut over the ranks.
class FormatRanks : public RecipeRuns {
 protected:
  void expect_same_bytes(const std::vector<std::string>& words) {
    const std::string one = quantize("one", 1, words);
    if (last_.exit_code != 0) return;
    for (const auto& [ranks, more] :
         {std::pair{2, std::vector<std::string>{"parallel.tensor=2"}}, std::pair{3, std::vector<std::string>{}},
          std::pair{4, std::vector<std::string>{"parallel.tensor=2"}}, std::pair{4, std::vector<std::string>{"parallel.tensor=4"}}}) {
      std::vector<std::string> all = words;
      all.insert(all.end(), more.begin(), more.end());
      const std::string output = quantize("ranks" + std::to_string(ranks) + (more.empty() ? "" : more[0]), ranks, all);
      if (last_.exit_code == 0) expect_same_output(one, output);
    }
    expect_success(run_program({"verify", one, "--source", model_}));
    expect_success(
        run_program({"evaluate", "--model", one, "--reference", model_, "--text", folder_ / "data.jsonl", "--json"}, {.ranks = 2}));
  }
  void use(const std::string& model) {
    model_ = model;
    folder_.write("data.jsonl", random_documents(8, 64, 128));
    write_recipe(model, folder_ / "data.jsonl", 8, 64);
  }
  /// Rows of k and v that no block of 128 holds whole, and an MLP whose last block is partial.
  void use_llama() {
    make_tiny_llama(folder_ / "model", {.hidden = 128, .intermediate = 320, .layers = 2, .heads = 4, .kv_heads = 2});
    use(folder_ / "model");
  }
  void use_mixtral() {
    make_tiny_mixtral(folder_ / "model", {.hidden = 128, .intermediate = 64});
    use(folder_ / "model");
  }

  std::string model_;
};

std::vector<std::string> preset(const std::string& format, const std::string& dialect = kMo) {
  return {"quantization={format: " + format + ", group_size: " + (format == "int4" || format == "w4a8" ? "32" : "0") + "}",
          "output.dialect=" + dialect};
}

TEST_F(FormatRanks, DoNotChangeBlocks) {
  use_llama();
  expect_same_bytes(preset("fp8_pb_wo"));
}

TEST_F(FormatRanks, DoNotChangeDeepseeksBlocks) {
  use_mixtral();
  expect_same_bytes(preset("fp8_pb_wo", "deepseek-fp8"));
}

TEST_F(FormatRanks, DoNotChangePairsOfRows) {
  use_llama();
  expect_same_bytes(preset("int4"));
}

TEST_F(FormatRanks, DoNotChangeAMixtureInModelOptsLayout) {
  use_llama();
  expect_same_bytes(
      {"quantization={format: w4a8, group_size: 32, kv_cache: nvfp4, ignore: [], rules: [{match: lm_head, format: "
       "fp8_pb_wo}, {match: '*.o_proj', format: mxfp8}, {match: '*.1.self_attn.[qkv]_proj', format: int8_wo}, {match: "
       "'*.1.mlp.down_proj', format: fp8_pc_pt}, {match: '*.1.mlp.[gu]*', format: nvfp4}]}",
       "output.engine=any"});
}

TEST_F(FormatRanks, DoNotChangeAMixtureInCompressedTensorsLayout) {
  use_mixtral();
  expect_same_bytes(
      {"quantization={format: int4, group_size: 32, kv_cache: fp8, ignore: [], rules: [{match: lm_head, format: fp8_pb_wo}, "
       "{match: '*.o_proj', format: mxfp4}, {match: '*.1.self_attn.[qkv]_proj', format: int8}, {match: '*.0.*.experts.*', "
       "format: w4a8}, {match: '*.0.self_attn.[qkv]_proj', format: int8_wo}]}",
       "output.dialect=compressed-tensors"});
}

TEST_F(FormatRanks, DoNotChangeStackedExperts) {
  make_tiny_llama4(folder_ / "llama4");
  make_tiny_gpt_oss(folder_ / "gpt_oss");
  for (const char* model : {"llama4", "gpt_oss"})
    for (const char* format : {"w4a8", "fp8_pc_pt"}) {
      use(folder_ / model);
      const std::vector<std::string> words = preset(format);
      const std::string name = std::string(model) + format;
      const std::string one = quantize(name + "1", 1, words), two = quantize(name + "2", 2, {words[0], words[1], "parallel.expert=2"});
      expect_same_output(one, two);
      expect_success(run_program({"verify", one, "--source", model_}));
      const Json result = evaluate({"--model", one, "--reference", model_, "--text", folder_ / "data.jsonl"});
      EXPECT_LT(result.at("kl").get<double>(), 0.5) << name;
    }
}

TEST_F(FormatRanks, NativeBlocksComeBackAsTheyWere) {
  make_tiny_deepseek(folder_ / "model", {.hidden = 128, .intermediate = 64});
  store_in_fp8_blocks(folder_ / "model");
  use(folder_ / "model");
  const std::string output = quantize("out", 2, preset("fp8_pb_wo", "deepseek-fp8"));
  const Json result = evaluate({"--model", output, "--reference", model_, "--text", folder_ / "data.jsonl"});
  EXPECT_LT(result.at("kl").get<double>(), 1e-4) << "the blocks' own scales are found again, but for their rounding";
}

TEST_F(FormatRanks, PredictionInNativeBlocksIsNotCalledPlain) {
  make_tiny_deepseek(folder_ / "model", {.hidden = 128, .intermediate = 64, .mtp_layers = 1});
  store_in_fp8_blocks(folder_ / "model");
  use(folder_ / "model");
  const std::string output = quantize("out", 1, preset("fp8_pb_wo", "deepseek-fp8"));
  const StoredTensors tensors = read_tensors(output);
  const Json kept = read_json_file(output + "/config.json").at("quantization_config").at("modules_to_not_convert");
  for (const Json& name : kept) EXPECT_EQ(tensors.count(name.get<std::string>() + ".weight_scale_inv"), 0u) << name;
  EXPECT_GT(kept.size(), 1u);
}

struct Damage {
  const char *name, *format, *dialect;
  void (*inflict)(const std::string& folder);
  std::string words;
};

std::ostream& operator<<(std::ostream& out, const Damage& damage) { return out << damage.name; }

void edit(const std::string& folder, const std::function<void(StoredTensors&)>& change) {
  edit_tensors(folder + "/model.safetensors", change);
}
void edit_words(const std::string& folder, const std::function<void(Json&)>& change) {
  edit_json_file(folder + "/config.json", [&](Json& config) { change(config["quantization_config"]); });
}

const std::string kUp = "model.layers.1.mlp.up_proj";

const std::vector<Damage>& damages() {
  static const std::vector<Damage> all{
      {"NanExponent", "mxfp8", kMo,
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight_scale").bytes[3] = '\xff'; }); },
       "up_proj.weight_scale holds a NaN exponent"},
      {"ZeroRowScale", "fp8_pc_pt", kMo,
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight_scale").bytes.replace(4, 4, 4, '\0'); }); },
       "up_proj.weight_scale holds a scale that is not a positive finite number"},
      {"NanBlock", "fp8_pb_wo", "deepseek-fp8",
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight").bytes[9] = '\x7f'; }); }, "NaN codes"},
      {"CodeOfMinusEight", "w4a8", kMo,
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight").bytes[9] = '\x18'; }); },
       "codes of -8, below -7"},
      {"SmallSecondScale", "w4a8", kMo,
       [](const std::string& folder) {
         edit(folder, [](StoredTensors& t) {
           for (const char* name : {"up_proj", "gate_proj"})
             t.at("model.layers.1.mlp." + std::string(name) + ".weight_scale_2").bytes.replace(0, 4, "\0\0\0\x35", 4);
         });
       },
       "up_proj.weight_scale_2 is too small"},
      {"NegativeSmoothing", "int4", kMo,
       [](const std::string& folder) {
         edit(folder, [](StoredTensors& t) { t.at("model.layers.1.mlp.down_proj.pre_quant_scale").bytes[1] = '\xbf'; });
       },
       "pre_quant_scale holds a factor"},
      {"InputScaleOfWeightsAlone", "int8_wo", kMo,
       [](const std::string& folder) {
         edit(folder, [](StoredTensors& t) {
           t["model.layers.1.mlp.up_proj.weight_scale_2"] = {"F32", {}, std::string("\0\0\x80\x3f", 4)};
         });
       },
       "up_proj is quantized to int8_wo but has"},
      {"WrongShape", "int4", kCt,
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight_shape").bytes[0] = 1; }); },
       "weight_shape is not the shape"},
      {"InfiniteGlobalScale", "nvfp4", kCt,
       [](const std::string& folder) { edit(folder, [](StoredTensors& t) { t.at(kUp + ".weight_global_scale").bytes.assign(4, '\0'); }); },
       "weight_global_scale is inf"},
      {"HeadNotIgnored", "int4", kCt,
       [](const std::string& folder) { edit_words(folder, [](Json& words) { words["ignore"] = Json::array(); }); },
       "lm_head is stored as none, but config_groups and ignore say otherwise"},
      {"FileOfModelOpt", "int4", kCt, [](const std::string& folder) { write_file(folder + "/hf_quant_config.json", "{}"); },
       "which no dialect but ModelOpt's has"},
      {"OtherFormat", "int8_wo", kCt,
       [](const std::string& folder) { edit_words(folder, [](Json& words) { words["format"] = "int-quantized"; }); },
       "format is not that of group_0"},
      {"UnknownGroup", "int8_wo", kCt,
       [](const std::string& folder) {
         edit_words(folder, [](Json& words) { words["config_groups"]["group_0"]["weights"]["num_bits"] = 5; });
       },
       "a format that is not known here"},
      {"HeadConverted", "fp8_pb_wo", "deepseek-fp8",
       [](const std::string& folder) { edit_words(folder, [](Json& words) { words["modules_to_not_convert"] = Json::array(); }); },
       "modules_to_not_convert lacks it"},
      {"OtherBlocks", "fp8_pb_wo", "deepseek-fp8",
       [](const std::string& folder) { edit_words(folder, [](Json& words) { words["fmt"] = "e5m2"; }); }, "fmt is not e4m3"},
  };
  return all;
}

class VerifyFormats : public ::testing::TestWithParam<Damage> {};

TEST_P(VerifyFormats, FindsTheDamage) {
  const Damage& damage = GetParam();
  const TemporaryFolder folder;
  const std::string output = folder / "out";
  make_tiny_llama(folder / "model");
  folder.write("data.jsonl", random_documents(4, 32, 128));
  folder.write("recipe.yaml", recipe_text(folder / "model", folder / "data.jsonl", output, 4, 32));
  std::vector<std::string> words = preset(damage.format, damage.dialect);
  words.insert(words.begin(), folder / "recipe.yaml");
  expect_success(run_program(words));
  damage.inflict(output);

  const ProgramResult result = run_program({"verify", output});

  EXPECT_EQ(result.exit_code, 1) << result.report();
  EXPECT_NE(result.out.find(damage.words), std::string::npos) << damage.words << "\n" << result.report();
}

INSTANTIATE_TEST_SUITE_P(Damages, VerifyFormats, ::testing::ValuesIn(damages()),
                         [](const auto& damage) { return std::string(damage.param.name); });

class KvCaches : public RecipeRuns {};

TEST_F(KvCaches, HaveTheSameBiasesOnAnyRanks) {
  make_tiny_llama(folder_ / "model");
  folder_.write("data.jsonl", random_documents(8, 64, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 8, 64);
  const std::string one = quantize("one", 1, {"quantization.kv_cache=nvfp4_affine"});
  for (const int tensor : {1, 2, 4})  // two kv heads: whole, one each, each on two ranks
    expect_same_output(one, quantize("tensor" + std::to_string(tensor), 4,
                                     {"quantization.kv_cache=nvfp4_affine", "parallel.tensor=" + std::to_string(tensor)}));
}

TEST_F(KvCaches, NeedTheirBiases) {
  make_tiny_llama(folder_ / "model");
  folder_.write("data.jsonl", random_documents(4, 32, 128));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 4, 32);
  const std::string output = quantize("out", 1, {"quantization.kv_cache=nvfp4_affine"});
  const StoredTensors tensors = read_tensors(output);
  EXPECT_EQ(tensors.at("model.layers.0.self_attn.k_proj.k_bias").shape, (std::vector<int64_t>{1, 2, 1, 16}));
  EXPECT_EQ(tensors.at("model.layers.0.self_attn.v_proj.v_bias").dtype, "BF16");
  expect_success(run_program({"verify", output, "--source", folder_ / "model"}));

  edit_tensors(output + "/model.safetensors", [](StoredTensors& all) { all.erase("model.layers.0.self_attn.k_proj.k_bias"); });

  const ProgramResult result = run_program({"verify", output});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.out.find("k_proj.k_bias is missing"), std::string::npos) << result.report();
}

}  // namespace
}  // namespace ptq::test
