// What a quantized mixture of experts looks like on disk: names, dtypes and shapes of every tensor, the scales that servers expect to be
// one, the numbers behind the codes, and everything that is passed on untouched.

#include <fnmatch.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <set>

#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

/// "model.layers.3.mlp.experts.7.up_proj.weight" in its parts, as far as it has them.
struct Name {
  explicit Name(const std::string& tensor) : module(tensor) {
    if (module.ends_with(".weight")) module.resize(module.size() - 7);
    leaf = module.substr(module.rfind('.') + 1);
    parent = module.substr(0, module.size() - std::min(module.size(), leaf.size() + 1));
    if (const size_t at = module.find(".layers."); at != std::string::npos) layer = std::stoll(module.substr(at + 8));
    if (const size_t at = module.find(".experts"); at != std::string::npos) container = module.substr(0, at + 8);
  }
  std::string module, parent, leaf;
  int64_t layer = -1;
  std::string container;  ///< of routed experts: "model.layers.3.mlp.experts"
};

/// The decoder linears of a mixture, by the names their publishers gave them.
bool is_linear(const std::string& tensor, const StoredTensor& stored, int64_t layers) {
  static const std::set<std::string> leaves{
      "q_proj",  "k_proj",    "v_proj",       "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "gate_proj",
      "up_proj", "down_proj", "gate_up_proj", "w1",     "w2",       "w3"};
  const Name name(tensor);
  return stored.shape.size() >= 2 && name.layer >= 0 && name.layer < layers && leaves.count(name.leaf) > 0 &&
         tensor.find("vision") == std::string::npos;
}

bool feeds_down(const std::string& leaf) { return leaf != "down_proj" && leaf != "w2"; }

/// Modules that servers fuse into the linear whose first one is returned: one global weight scale.
std::string fused(const Name& name) {
  for (const char* leaf : {"q_proj", "k_proj", "v_proj"})
    if (name.leaf == leaf) return name.parent + ".q_proj";
  if (name.leaf == "kv_a_proj_with_mqa") return name.parent + ".q_a_proj";
  if (name.leaf == "up_proj") return name.parent + ".gate_proj";
  if (name.leaf == "w3") return name.parent + ".w1";
  return name.module;
}

double largest(const StoredTensor& tensor) {
  double amax = 0;
  for (const double value : tensor.values()) amax = std::max(amax, std::fabs(value));
  return amax;
}

/// A source as bf16: block FP8 weights of the first `layers` layers decoded, their scales gone.
StoredTensors plain_source(const std::string& model, int64_t layers) {
  StoredTensors tensors = read_tensors(model), plain;
  for (const auto& [name, tensor] : tensors) {
    const auto scales = tensors.find(name + "_scale_inv");
    if (scales != tensors.end() && is_linear(name, tensor, layers))
      plain[name] = decode_fp8_blocks(tensor, scales->second);
    else if (!name.ends_with("_scale_inv") || !is_linear(name.substr(0, name.size() - 10), tensor, layers))
      plain[name] = tensor;
  }
  return plain;
}

/// What the output must hold: dtype and shape of every tensor.
std::map<std::string, std::pair<std::string, std::vector<int64_t>>> expected_layout(const StoredTensors& source, int64_t layers,
                                                                                    bool nvfp4) {
  std::map<std::string, std::pair<std::string, std::vector<int64_t>>> layout;
  for (const auto& [name, tensor] : source) {
    if (!is_linear(name, tensor, layers)) {
      layout[name] = {tensor.dtype, tensor.shape};
      continue;
    }
    const bool stacked = tensor.shape.size() == 3;  // [E, in, out], packed and scaled along its inputs
    const std::string stem = stacked ? name + "_" : Name(name).module + ".";
    std::vector<int64_t> codes = tensor.shape, scales = tensor.shape;
    if (nvfp4) {
      codes[1] /= 2;
      scales[1] /= 16;
      layout[stem + "weight_scale"] = {"F8_E4M3", scales};
      layout[stem + "weight_scale_2"] = {"F32", {}};
    } else {
      layout[stem + "weight_scale"] = {"F32", {}};
    }
    layout[stem + "input_scale"] = {"F32", {}};
    layout[name] = {nvfp4 ? "U8" : "F8_E4M3", codes};
  }
  for (int64_t layer = 0; layer < layers; ++layer)
    for (const char* scale : {"k_proj.k_scale", "v_proj.v_scale"})
      layout["model.layers." + std::to_string(layer) + ".self_attn." + scale] = {"F32", {}};
  return layout;
}

float e4m3(char byte) {
  const auto code = static_cast<uint8_t>(byte);
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  return exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                       : std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
}

/// ‖decoded - weight‖ / ‖weight‖ of NVFP4 codes: [out, in/2], or of one stacked tensor [E, in/2, out].
double nvfp4_distance(const StoredTensor& weight, const StoredTensor& codes, const StoredTensor& scales, float global_scale) {
  constexpr float kSizes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const std::vector<double> wanted = weight.values();
  const bool stacked = weight.shape.size() == 3;
  const int64_t in = weight.shape[1], out = stacked ? weight.shape[2] : 1;  // one by one: element (o, i) at o · in + i, as if out were 1
  double difference = 0, whole = 0;
  for (int64_t at = 0; at < static_cast<int64_t>(wanted.size()); ++at) {
    const int64_t column = at % out, i = at / out % in, row = at / out / in;
    const auto byte = static_cast<uint8_t>(codes.bytes[static_cast<size_t>((row * in / 2 + i / 2) * out + column)]);
    const int nibble = i % 2 == 0 ? byte & 15 : byte >> 4;
    const float scale = e4m3(scales.bytes[static_cast<size_t>((row * in / 16 + i / 16) * out + column)]) * global_scale;
    const double value = (nibble & 8 ? -1 : 1) * kSizes[nibble & 7] * scale;
    difference += (value - wanted[static_cast<size_t>(at)]) * (value - wanted[static_cast<size_t>(at)]);
    whole += wanted[static_cast<size_t>(at)] * wanted[static_cast<size_t>(at)];
  }
  return std::sqrt(difference / whole);
}

/// Names of both JSON files, which must be the same.
std::vector<std::string> excluded(const std::string& output) {
  const auto file =
      read_json_file(output + "/hf_quant_config.json").at("quantization").at("exclude_modules").get<std::vector<std::string>>();
  EXPECT_EQ(read_json_file(output + "/config.json").at("quantization_config").at("ignore"), Json(file));
  return file;
}
bool is_excluded(const std::vector<std::string>& patterns, const std::string& module) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const auto& p) { return fnmatch(p.c_str(), module.c_str(), 0) == 0; });
}

void expect_verified(const std::string& output, const std::string& model) {
  for (const int ranks : {1, 2}) expect_success(run_program({"verify", output, "--source", model}, {.ranks = ranks}));
}

class MoeExport : public RecipeRuns {
 protected:
  /// The fixture, quantized; and what was in it. Returns false where there is none.
  void quantize_fixture(const std::string& model, const std::string& preset) {
    PTQ_NEEDS_SHARED(shared);
    model_ = shared + "/fixtures/models/" + model;
    write_recipe(model_, shared + "/fixtures/text/calib.jsonl", 6, 96, preset);
    output_ = quantize("out", 2, {"quantization.kv_cache=fp8", "parallel.expert=2"});
    ASSERT_EQ(last_.exit_code, 0);
    layers_ = read_json_file(model_ + "/config.json").at("num_hidden_layers");
    source_ = plain_source(model_, layers_);
    stored_ = read_tensors(output_);
  }
  /// Calibrates the model at folder_ / "model" on random text.
  std::string quantize_model(const std::string& name, std::vector<std::string> words = {}, int ranks = 1) {
    folder_.write("data.jsonl", random_documents(4, 32, 128));
    write_recipe(folder_ / "model", folder_ / "data.jsonl", 4, 32);
    words.emplace_back("calibration.pack=false");
    return quantize(name, ranks, words);
  }

  void expect_layout(bool nvfp4) {
    std::map<std::string, std::pair<std::string, std::vector<int64_t>>> found;
    for (const auto& [name, tensor] : stored_) found[name] = {tensor.dtype, tensor.shape};
    EXPECT_EQ(found, expected_layout(source_, layers_, nvfp4));
    size_t same = 0;
    for (const auto& [name, tensor] : source_)
      if (!is_linear(name, tensor, layers_)) {
        EXPECT_TRUE(stored_.at(name) == tensor) << name << " is not quantized, but not as in the source either";
        ++same;
      }
    EXPECT_GE(same, 3u);
  }
  float scalar(const Name& name, const std::string& part) const {
    return stored_.at(name.module + (stored_.count(name.module) ? "_" : ".") + part).scalar();
  }
  /// One global weight scale for what is fused, one input scale a layer for all gates and ups, one for all downs.
  void expect_shared_scales(bool nvfp4) {
    std::map<std::string, double> amax;
    for (const auto& [name, tensor] : source_)
      if (is_linear(name, tensor, layers_)) {
        double& group = amax[fused(Name(name))];
        group = std::max(group, largest(tensor));
      }
    std::map<std::pair<std::string, bool>, std::set<float>> inputs;
    for (const auto& [tensor, weight] : source_) {
      if (!is_linear(tensor, weight, layers_)) continue;
      const Name name(tensor);
      if (!name.container.empty()) inputs[{name.container, feeds_down(name.leaf)}].insert(scalar(name, "input_scale"));
      if (nvfp4)
        EXPECT_EQ(scalar(name, "weight_scale_2"), static_cast<float>(amax.at(fused(name))) / 2688.0f) << tensor;
      else if (!name.container.empty())
        EXPECT_EQ(scalar(name, "weight_scale"), static_cast<float>(amax.at(fused(name))) / 448.0f) << tensor;
      else
        EXPECT_EQ(scalar(name, "weight_scale"), static_cast<float>(largest(weight)) / 448.0f) << tensor;
    }
    EXPECT_GE(inputs.size(), 2u);
    for (const auto& [projection, scales] : inputs) EXPECT_EQ(scales.size(), 1u) << projection.first;
    for (const auto& [projection, scales] : inputs) EXPECT_GT(*scales.begin(), 0) << projection.first;
  }
  void expect_codes_near_the_weights() {
    for (const auto& [tensor, weight] : source_) {
      if (!is_linear(tensor, weight, layers_)) continue;
      const Name name(tensor);
      const std::string stem = name.module + (weight.shape.size() == 3 ? "_" : ".");
      EXPECT_LT(nvfp4_distance(weight, stored_.at(tensor), stored_.at(stem + "weight_scale"), scalar(name, "weight_scale_2")), 0.13)
          << tensor;
    }
  }
  /// Servers leave alone the routers and what lies outside the decoder, and nothing else.
  void expect_exclusions() {
    const std::vector<std::string> patterns = excluded(output_);
    EXPECT_TRUE(std::is_sorted(patterns.begin(), patterns.end()));
    for (const auto& [name, tensor] : source_) {
      const Name parts(name);
      if (is_linear(name, tensor, layers_)) {
        EXPECT_FALSE(is_excluded(patterns, parts.module)) << name;
        EXPECT_FALSE(is_excluded(patterns, parts.container)) << name;
        // vLLM looks for the pattern anywhere in the name, and knows gate and up by the name of both.
        for (const std::string& pattern : patterns)
          for (const std::string& known : {parts.module, parts.parent + ".gate_up_proj"})
            EXPECT_EQ(known.find(pattern.substr(0, pattern.find('*'))), std::string::npos) << pattern;
      } else if (tensor.shape.size() == 2 && name.ends_with(".weight")) {
        EXPECT_TRUE(is_excluded(patterns, parts.module)) << name;
      }
    }
    Json config = read_json_file(output_ + "/config.json"), wanted = read_json_file(model_ + "/config.json");
    EXPECT_EQ(config.at("quantization_config").at("quant_method"), "modelopt");
    EXPECT_FALSE(config.at("quantization_config").contains("weight_block_size"));
    config.erase("quantization_config");
    wanted.erase("quantization_config");
    EXPECT_EQ(config, wanted);
  }
  void expect_nvfp4_of(const std::string& model) {
    quantize_fixture(model, "nvfp4");
    if (output_.empty() || HasFailure()) return;
    expect_layout(true);
    expect_shared_scales(true);
    expect_codes_near_the_weights();
    expect_exclusions();
    expect_verified(output_, model_);
  }

  std::string model_, output_;
  int64_t layers_ = 0;
  StoredTensors source_, stored_;
};

TEST_F(MoeExport, OfQwen3MoeIsWhatServersRead) { expect_nvfp4_of("qwen3-moe"); }
TEST_F(MoeExport, OfMixtralIsWhatServersRead) { expect_nvfp4_of("mixtral"); }
TEST_F(MoeExport, OfDeepseekV3IsWhatServersRead) { expect_nvfp4_of("deepseek-v3"); }
TEST_F(MoeExport, OfLlama4IsWhatServersRead) { expect_nvfp4_of("llama4"); }

TEST_F(MoeExport, OfEqualExpertsHasTheInputScalesOfTheDenseModel) {
  // A mixture of experts that are all alike is the dense model: what each token goes through does not hang on its experts.
  make_tiny_llama(folder_ / "model", {.intermediate = 32});
  const std::string dense = quantize_model("dense");
  const StoredTensors llama = read_tensors(folder_ / "model");
  std::filesystem::remove_all(folder_ / "model");
  make_tiny_mixtral(folder_ / "model");
  edit_tensors(folder_ / "model/model.safetensors", [&](StoredTensors& tensors) {
    const std::map<std::string, std::string> names{{"w1", "gate_proj"}, {"w2", "down_proj"}, {"w3", "up_proj"}};
    for (auto& [tensor, stored] : tensors) {
      const Name name(tensor);
      if (const auto other = llama.find(tensor); other != llama.end()) stored = other->second;
      if (!name.container.empty())
        stored = llama.at("model.layers." + std::to_string(name.layer) + ".mlp." + names.at(name.leaf) + ".weight");
    }
  });

  const StoredTensors one = read_tensors(dense), mixture = read_tensors(quantize_model("mixture", {"parallel.expert=2"}, 2));

  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    for (const auto& [ours, theirs] : {std::pair{"w1", "gate_proj"}, {"w2", "down_proj"}, {"w3", "up_proj"}})
      for (int e = 0; e < 4; ++e) {
        const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e) + "." + ours, linear = layer + "mlp." + theirs;
        // The sum of two halves may round otherwise than the whole, which the second layer reads.
        const double tolerance = layer == "model.layers.0." ? 0.0 : 0.02;
        EXPECT_NEAR(mixture.at(expert + ".input_scale").scalar() / one.at(linear + ".input_scale").scalar(), 1.0, tolerance) << expert;
        EXPECT_TRUE(mixture.at(expert + ".weight_scale_2") == one.at(linear + ".weight_scale_2")) << expert;
        EXPECT_TRUE(mixture.at(expert + ".weight") == one.at(linear + ".weight")) << expert;
      }
}

TEST_F(MoeExport, OfExpertsReadsWhatTheSharedExpertReads) {
  // Every token visits the shared expert, and all experts together see every token; Llama 4's see it times a weight below 1.
  make_tiny_deepseek(folder_ / "model");
  const StoredTensors deepseek = read_tensors(quantize_model("deepseek"));
  std::filesystem::remove_all(folder_ / "model");
  make_tiny_llama4(folder_ / "model");
  const StoredTensors llama4 = read_tensors(quantize_model("llama4"));

  EXPECT_EQ(deepseek.at("model.layers.1.mlp.experts.0.up_proj.input_scale").scalar(),
            deepseek.at("model.layers.1.mlp.shared_experts.up_proj.input_scale").scalar());
  const float routed = llama4.at("model.layers.1.feed_forward.experts.gate_up_proj_input_scale").scalar();
  EXPECT_GT(routed, 0);
  EXPECT_LT(routed, llama4.at("model.layers.1.feed_forward.shared_expert.up_proj.input_scale").scalar());
}

TEST_F(MoeExport, InFp8SharesTheScaleOfGateAndUp) {
  for (const char* model : {"mixtral", "llama4"}) {
    quantize_fixture(model, "fp8");
    if (output_.empty() || HasFailure()) return;
    expect_layout(false);
    expect_shared_scales(false);
    expect_verified(output_, model_);
    std::filesystem::remove_all(output_);
  }
}

TEST_F(MoeExport, OfOneFormatForExpertsAndOneForTheRestNamesTheContainer) {
  make_tiny_mixtral(folder_ / "model");
  const std::string output = quantize_model("out", {R"(quantization.rules=[{match: "*.experts.*", format: fp8}])"});

  const Json layers = read_json_file(output + "/hf_quant_config.json").at("quantization").at("quantized_layers");
  EXPECT_EQ(layers.at("model.layers.0.block_sparse_moe.experts").at("quant_algo"), "FP8");
  EXPECT_EQ(layers.at("model.layers.0.self_attn.q_proj").at("quant_algo"), "NVFP4");
  EXPECT_EQ(layers.size(), 2u * (4 + 1)) << "no key for a single expert";
  EXPECT_EQ(read_json_file(output + "/config.json").at("quantization_config").at("quantized_layers"), layers);
  EXPECT_EQ(read_tensors(output).at("model.layers.1.block_sparse_moe.experts.3.w2.weight").dtype, "F8_E4M3");
  expect_verified(output, folder_ / "model");
}

TEST_F(MoeExport, OfMoreLayersThanTheModelHasKeepsThemInFp8) {
  make_tiny_deepseek(folder_ / "model", {.mtp_layers = 2});
  store_in_fp8_blocks(folder_ / "model");
  const std::string output = quantize_model("out", {"parallel.pipeline=2"}, 2);

  const StoredTensors source = read_tensors(folder_ / "model"), stored = read_tensors(output);
  const std::vector<std::string> patterns = excluded(output);
  int kept = 0, coded = 0;
  for (const auto& [name, tensor] : source) {
    if (Name(name).layer < 2) continue;
    ++kept;
    coded += tensor.dtype == "F8_E4M3";
    EXPECT_TRUE(stored.at(name) == tensor) << name;
    EXPECT_TRUE(is_excluded(patterns, Name(name).module)) << name;
  }
  EXPECT_EQ(kept, 2 * (7 + 20 * 2 + 2 + 3)) << "norms, linears with scales, router and correction, the rest";
  EXPECT_EQ(coded, 2 * 20);
  for (const char* layer : {"model.layers.2*", "model.layers.3*"})
    EXPECT_TRUE(std::count(patterns.begin(), patterns.end(), layer)) << "no exclude pattern " << layer;
  for (const auto& [name, tensor] : stored)
    EXPECT_TRUE(Name(name).layer >= 2 || !name.ends_with("_scale_inv")) << name << " is left of the publisher's format";
  expect_verified(output, folder_ / "model");
}

TEST_F(MoeExport, IgnoresFrequenciesThatEarlierReleasesStored) {
  make_tiny_deepseek(folder_ / "model");
  const std::string without = quantize_model("without");
  edit_tensors(folder_ / "model/model.safetensors", [](StoredTensors& tensors) {
    for (int layer = 0; layer < 2; ++layer)
      tensors["model.layers." + std::to_string(layer) + ".self_attn.rotary_emb.inv_freq"] = {"F32", {4}, std::string(16, '\x7f')};
  });

  const std::string with = quantize_model("with");

  StoredTensors stored = read_tensors(with);
  for (int layer = 0; layer < 2; ++layer) stored.erase("model.layers." + std::to_string(layer) + ".self_attn.rotary_emb.inv_freq");
  EXPECT_TRUE(stored == read_tensors(without));
  EXPECT_EQ(excluded(with), excluded(without));
  expect_verified(with, folder_ / "model");
}

/// The language part of both outputs, which must be the same.
void expect_same_language_model(const StoredTensors& text, const StoredTensors& whole) {
  for (const auto& [name, tensor] : text) EXPECT_TRUE(whole.at("language_model." + name) == tensor) << name;
}

TEST_F(MoeExport, OfAMultimodalLlama4PassesTheVisionTowerOn) {
  make_tiny_llama4(folder_ / "model", {.has_vision = true});
  const StoredTensors source = read_tensors(folder_ / "model");
  const std::string output = quantize_model("out", {"quantization.kv_cache=fp8", "parallel.expert=2"}, 2);
  expect_verified(output, folder_ / "model");
  std::filesystem::remove_all(folder_ / "model");
  make_tiny_llama4(folder_ / "model");
  const std::string text = quantize_model("text", {"quantization.kv_cache=fp8"});

  const StoredTensors stored = read_tensors(output);
  const std::vector<std::string> patterns = excluded(output);
  int vision = 0;
  for (const auto& [name, tensor] : source) {
    if (name.starts_with("language_model.")) continue;
    ++vision;
    EXPECT_TRUE(stored.at(name) == tensor) << name;
    if (tensor.shape.size() == 2 && name.ends_with(".weight")) {
      EXPECT_TRUE(is_excluded(patterns, Name(name).module)) << name;
    }
  }
  EXPECT_EQ(vision, 18);
  for (const char* module :
       {"language_model.lm_head", "language_model.model.embed_tokens", "language_model.model.layers.1.feed_forward.router"})
    EXPECT_TRUE(is_excluded(patterns, module)) << module;
  EXPECT_FALSE(is_excluded(patterns, "language_model.model.layers.1.feed_forward.experts.gate_up_proj"));
  expect_same_language_model(read_tensors(text), stored);
}

TEST_F(MoeExport, OfAMultimodalKimiPassesTheVisionTowerOn) {
  make_tiny_deepseek(folder_ / "model");
  const std::string text = quantize_model("text");
  edit_tensors(folder_ / "model/model.safetensors", [](StoredTensors& tensors) {
    StoredTensors renamed;
    for (const auto& [name, tensor] : tensors) renamed["language_model." + name] = tensor;
    renamed["vision_tower.encoder.blocks.0.wqkv.weight"] = {"BF16", {3, 2}, std::string(12, 'v')};
    renamed["mm_projector.proj.0.weight"] = {"BF16", {2, 2}, std::string(8, 'p')};
    tensors = renamed;
  });
  edit_json_file(folder_ / "model/config.json", [](Json& config) {
    const Json language = config;
    config = {{"architectures", {"KimiK25ForConditionalGeneration"}}, {"model_type", "kimi_k25"}, {"text_config", language}};
  });

  const std::string output = quantize_model("out");

  const StoredTensors stored = read_tensors(output);
  EXPECT_EQ(stored.at("vision_tower.encoder.blocks.0.wqkv.weight").bytes, std::string(12, 'v'));
  for (const char* module : {"vision_tower.encoder.blocks.0.wqkv", "mm_projector.proj.0", "language_model.lm_head"})
    EXPECT_TRUE(is_excluded(excluded(output), module)) << module;
  expect_same_language_model(read_tensors(text), stored);
  expect_verified(output, folder_ / "model");
}

}  // namespace
}  // namespace ptq::test
