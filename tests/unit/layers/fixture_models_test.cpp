// The checkpoints of the shared folder against the specs of their configs: the same tensors with the same shapes, none more on either side.

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "layers/models/models.h"
#include "tests/support/model_files.h"
#include "tests/support/shared_folder.h"

namespace ptq::layers {
namespace {

using Shapes = std::map<std::string, Shape>;

Shapes described(const ModelSpec& model) {
  Shapes shapes{{model.embedding, {model.vocab, model.hidden}}, {model.head_weight(), {model.vocab, model.hidden}}};
  LayerSpec outside;
  add_norm(outside, model.final_norm, model.hidden);
  for (const TensorSpec& tensor : outside.tensors) shapes[tensor.name] = tensor.shape;
  for (const LayerSpec& layer : model.layers)
    for (const TensorSpec& tensor : layer.tensors) EXPECT_TRUE(shapes.emplace(tensor.name, tensor.shape).second) << tensor.name;
  return shapes;
}

/// Without FP8 scales and the layers for multi-token prediction, which no spec has.
Shapes stored(const std::string& folder, const ModelSpec& model) {
  Shapes shapes;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const std::string name = file.path().filename().string();
    if (name.rfind("model", 0) != 0 || file.path().extension() != ".safetensors") continue;
    for (const auto& [tensor, value] : test::read_tensors(file.path().string()))
      if (tensor.find("_scale_inv") == std::string::npos &&
          tensor.rfind("model.layers." + std::to_string(model.layers.size()) + ".", 0) != 0)
        shapes[tensor] = value.shape;
  }
  return shapes;
}

class FixtureModel : public testing::TestWithParam<const char*> {};

TEST_P(FixtureModel, HasExactlyTheTensorsOfItsFiles) {
  PTQ_NEEDS_SHARED(shared);
  const std::string folder = shared + "/fixtures/" + GetParam(), file = folder + "/config.json";

  const ModelSpec model = describe_model(Config(test::read_json_file(file), file));

  const Shapes expected = stored(folder, model), found = described(model);
  EXPECT_GT(expected.size(), 20u);
  for (const auto& [name, shape] : expected) {
    const auto at = found.find(name);
    if (at == found.end())
      ADD_FAILURE() << "no spec of " << name;
    else
      EXPECT_EQ(at->second, shape) << name;
  }
  for (const auto& [name, shape] : found) EXPECT_EQ(expected.count(name), 1u) << "not in the files: " << name;
}

INSTANTIATE_TEST_SUITE_P(All, FixtureModel,
                         testing::Values("models/llama", "models/qwen3", "models/nemotron-nas", "models/qwen3-moe", "models/mixtral",
                                         "models/deepseek-v3", "models/llama4", "input_formats/hf/llama", "input_formats/hf/qwen2",
                                         "input_formats/hf/nemotron", "input_formats/hf/qwen3_moe", "input_formats/hf/mixtral",
                                         "input_formats/hf/deepseek_v3", "input_formats/hf/glm4_moe", "input_formats/hf/llama4",
                                         "input_formats/hf/gpt_oss"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name)
                             if (c == '-' || c == '/') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace ptq::layers
