// Checkpoints that their publishers quantized - FP8 in blocks of 128 x 128, MXFP4 experts - are the bf16 models they stand for.

#include <filesystem>
#include <set>

#include "kernels/core/dtype.h"
#include "tests/e2e/recipe_runs.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

class NativeSource : public RecipeRuns {
 protected:
  /// The model at `model` without its quantization.
  StoredTensors unquantized(const std::string& model, int ranks = 1, const std::vector<std::string>& words = {}) {
    write_recipe(model, "[]", 1, 1, "none");
    const std::string output = quantize("none_" + std::to_string(ranks), ranks, words);
    if (last_.exit_code != 0) return {};
    EXPECT_FALSE(read_json_file(output + "/config.json").contains("quantization_config"));
    EXPECT_FALSE(fs::exists(output + "/hf_quant_config.json"));
    EXPECT_NE(last_.err.find("no calibration"), std::string::npos) << last_.report();
    return read_tensors(output);
  }
  /// Export and logits of two folders that hold the same model: the same bytes, but for what names the source.
  void expect_same_model(const std::string& coded, const std::string& decoded) {
    const StoredTensors wanted = read_tensors(decoded), found = unquantized(coded, 2, {"parallel.tensor=2"});
    EXPECT_TRUE(found == wanted);
    write_tensors(folder_ / "ids.safetensors",
                  {{"input_ids", {"I32", {2, 3}, std::string("\1\0\0\0\5\0\0\0\11\0\0\0\6\0\0\0\3\0\0\0\7\0\0\0", 24)}}});
    EXPECT_TRUE(logits(coded, 1) == logits(decoded, 1));
    EXPECT_TRUE(logits(coded, 2) == logits(decoded, 1));

    folder_.write("data.jsonl", random_documents(4, 32, 128));
    write_recipe(coded, folder_ / "data.jsonl", 4, 32);
    const StoredTensors from_coded = read_tensors(quantize("from_coded", 1, {})),
                        at_two = read_tensors(quantize("from_coded_2", 2, {"parallel.tensor=2", "parallel.expert=2"})),
                        from_decoded = read_tensors(quantize("from_decoded", 1, {"model.path=" + decoded}));
    EXPECT_TRUE(from_coded == from_decoded);
    EXPECT_TRUE(at_two == from_decoded);
    const std::string config = "/config.json";
    EXPECT_EQ(read_file(folder_ / "from_coded" + config), read_file(folder_ / "from_decoded" + config));
  }

 private:
  StoredTensors logits(const std::string& model, int ranks) {
    const std::string output = folder_ / "logits.safetensors";
    fs::remove(output);
    expect_success(
        run_program({"evaluate", "--model", model, "--input-ids", folder_ / "ids.safetensors", "--logits", output, "--compute", "fp32"},
                    {.ranks = ranks}));
    return read_tensors(output);
  }
};

/// A folder's config and weights alone: the fixtures keep what is expected beside them.
void copy_model(const std::string& from, const std::string& to) {
  fs::create_directories(to);
  for (const char* file : {"/config.json", "/model.safetensors"}) write_file(to + file, read_file(from + file));
}

/// F32 as bf16.
StoredTensor rounded(const StoredTensor& tensor) {
  StoredTensor result{"BF16", tensor.shape, {}};
  for (const double value : tensor.values()) {
    const BF16 stored = to_bf16(static_cast<float>(value));
    result.bytes.append(reinterpret_cast<const char*>(&stored), 2);
  }
  return result;
}

TEST_F(NativeSource, InFp8BlocksIsWhatTorchDecodes) {
  PTQ_NEEDS_SHARED(shared);
  const std::string fixture = shared + "/fixtures/input_formats/hf_dsv3_fp8_block";
  copy_model(fixture, folder_ / "model");
  const StoredTensors expected = read_tensors(fixture + "/expected_bf16.safetensors");

  EXPECT_TRUE(unquantized(folder_ / "model") == expected);
  EXPECT_TRUE(unquantized(folder_ / "model", 2, {"parallel.expert=2"}) == expected);
}

TEST_F(NativeSource, InFp8BlocksMayHavePartialOnesAtItsEdges) {
  PTQ_NEEDS_SHARED(shared);
  const StoredTensors blocks = read_tensors(shared + "/fixtures/input_formats/hf_dsv3_fp8_block/multiblock_130x132.safetensors");
  const std::string up = "model.layers.1.mlp.experts.2.up_proj.weight";
  make_tiny_deepseek(folder_ / "model", {.hidden = 132, .intermediate = 130});
  store_in_fp8_blocks(folder_ / "model");
  edit_tensors(folder_ / "model/model.safetensors", [&](StoredTensors& tensors) {
    EXPECT_EQ(tensors.at(up).shape, blocks.at("w.weight").shape);
    tensors[up] = blocks.at("w.weight");
    tensors[up + "_scale_inv"] = blocks.at("w.weight_scale_inv");
  });

  EXPECT_TRUE(unquantized(folder_ / "model").at(up) == rounded(blocks.at("expected_f32")));
}

TEST_F(NativeSource, DeepseekV3WithoutItsFp8IsTheModelItStandsFor) {
  PTQ_NEEDS_SHARED(shared);
  const std::string model = shared + "/fixtures/models/deepseek-v3";
  const StoredTensors source = read_tensors(model), found = unquantized(model, 3, {"parallel.expert=3"});
  int decoded = 0;
  for (const auto& [name, tensor] : source) {
    const auto scales = source.find(name + "_scale_inv");
    if (scales == source.end() || name.starts_with("model.layers.4.")) continue;
    ++decoded;
    EXPECT_TRUE(found.at(name) == decode_fp8_blocks(tensor, scales->second)) << name;
    EXPECT_FALSE(found.count(name + "_scale_inv")) << name;
  }
  EXPECT_EQ(decoded, 4 * 5 + 3 + 3 * (16 + 1) * 3);
}

TEST_F(NativeSource, InFp8BlocksIsQuantizedLikeItsBf16Form) {
  // Blocks are cut by the matrices' edges and by the tensor ranks' rows.
  make_tiny_deepseek(folder_ / "model", {.hidden = 160, .intermediate = 144});
  store_in_fp8_blocks(folder_ / "model", folder_ / "decoded");
  EXPECT_EQ(read_tensors(folder_ / "model").at("model.layers.0.mlp.up_proj.weight_scale_inv").shape, (std::vector<int64_t>{3, 2}));

  expect_same_model(folder_ / "model", folder_ / "decoded");
}

TEST_F(NativeSource, MayHaveItsScalesInOtherShardsThanItsWeights) {
  make_tiny_deepseek(folder_ / "model");
  store_in_fp8_blocks(folder_ / "model", folder_ / "decoded");
  const StoredTensors all = read_tensors(folder_ / "model");
  StoredTensors scales, weights;
  Json places = Json::object();
  for (const auto& [name, tensor] : all) {
    const bool is_scale = name.ends_with("_scale_inv");
    (is_scale ? scales : weights)[name] = tensor;
    places[name] = is_scale ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  fs::remove(folder_ / "model/model.safetensors");
  write_tensors(folder_ / "model/model-00001-of-00002.safetensors", scales);
  write_tensors(folder_ / "model/model-00002-of-00002.safetensors", weights);
  write_file(folder_ / "model/model.safetensors.index.json",
             Json{{"metadata", {{"total_size", tensor_bytes(all)}}}, {"weight_map", places}}.dump());

  EXPECT_TRUE(unquantized(folder_ / "model", 2) == read_tensors(folder_ / "decoded"));
}

TEST_F(NativeSource, MayLeaveSomeLinearsUnquantized) {
  make_tiny_deepseek(folder_ / "model");
  store_in_fp8_blocks(folder_ / "model", folder_ / "decoded");
  const StoredTensors decoded = read_tensors(folder_ / "decoded");
  edit_tensors(folder_ / "model/model.safetensors", [&](StoredTensors& tensors) {
    for (const char* name : {"model.layers.1.mlp.experts.1.gate_proj.weight", "model.layers.0.self_attn.kv_b_proj.weight"}) {
      tensors[name] = decoded.at(name);
      tensors.erase(std::string(name) + "_scale_inv");
    }
  });

  EXPECT_TRUE(unquantized(folder_ / "model") == decoded);
}

TEST_F(NativeSource, InMxfp4IsWhatTransformersDecodes) {
  PTQ_NEEDS_SHARED(shared);
  const StoredTensors fixture = read_tensors(shared + "/fixtures/input_formats/mxfp4/mxfp4.safetensors");
  const std::string gate_up = "model.layers.1.mlp.experts.gate_up_proj";
  make_tiny_gpt_oss(folder_ / "model", {.intermediate = 4, .experts = 2});
  edit_tensors(folder_ / "model/model.safetensors", [&](StoredTensors& tensors) {
    tensors.erase(gate_up);
    tensors[gate_up + "_blocks"] = fixture.at("gate_up_proj_blocks");
    tensors[gate_up + "_scales"] = fixture.at("gate_up_proj_scales");
  });
  edit_json_file(folder_ / "model/config.json", [](Json& config) { config["quantization_config"] = {{"quant_method", "mxfp4"}}; });

  const StoredTensors found = unquantized(folder_ / "model");

  EXPECT_TRUE(found.at(gate_up) == rounded(fixture.at("expected_hf_param")));
  EXPECT_FALSE(found.count(gate_up + "_blocks") + found.count(gate_up + "_scales"));
}

TEST_F(NativeSource, InMxfp4IsQuantizedLikeItsBf16Form) {
  make_tiny_gpt_oss(folder_ / "model");
  store_in_mxfp4(folder_ / "model", folder_ / "decoded");

  expect_same_model(folder_ / "model", folder_ / "decoded");
}

}  // namespace
}  // namespace ptq::test
