// Parameter counts of published models, from their config.json alone, against the counts their publishers' weight files have.

#include <gtest/gtest.h>

#include <fstream>

#include "layers/models/models.h"
#include "tests/support/shared_folder.h"

namespace ptq::layers {
namespace {

int64_t parameters(const ModelSpec& model) {
  int64_t count = model.vocab * model.hidden * (model.tied ? 1 : 2) + model.hidden;  // embedding, head, final norm
  for (const LayerSpec& layer : model.layers)
    for (const TensorSpec& tensor : layer.tensors) count += element_count(tensor.shape);
  return count;
}

struct Published {
  const char* name;
  int64_t parameters;  ///< without multi-token prediction
  size_t layers;
  size_t experts = 0, mixtures = 0;  ///< of a mixture; layers that have one
};

class PublishedModel : public testing::TestWithParam<Published> {};

TEST_P(PublishedModel, HasAllItsParameters) {
  PTQ_NEEDS_SHARED(shared);
  const std::string file = shared + "/shapes/" + GetParam().name + "/config.json";

  const ModelSpec model = describe_model(Config(nlohmann::ordered_json::parse(std::ifstream(file)), file));

  EXPECT_EQ(parameters(model), GetParam().parameters);
  EXPECT_EQ(model.layers.size(), GetParam().layers);
  size_t mixtures = 0;
  for (const LayerSpec& layer : model.layers) {
    if (!layer.moe()) continue;
    ++mixtures;
    EXPECT_EQ(layer.moe()->experts.size(), GetParam().experts) << layer.prefix;
  }
  EXPECT_EQ(mixtures, GetParam().mixtures);
}

INSTANTIATE_TEST_SUITE_P(
    All, PublishedModel,
    testing::Values(Published{"Llama-3.1-8B", 8'030'261'248, 32}, Published{"Llama-3.1-70B", 70'553'706'496, 80},
                    Published{"Llama-3.1-405B", 405'853'388'800, 126}, Published{"Llama-3.3-Nemotron-Super-49B", 49'867'145'216, 80},
                    Published{"Llama-3.1-Nemotron-Ultra-253B", 253'401'268'224, 162},
                    Published{"Qwen3-30B-A3B", 30'532'122'624, 48, 128, 48}, Published{"Qwen3-235B-A22B", 235'093'634'560, 94, 128, 94},
                    Published{"Mixtral-8x7B", 46'702'792'704, 32, 8, 32}, Published{"DeepSeek-R1", 671'026'419'200, 61, 256, 58},
                    Published{"Kimi-K2", 1'026'408'232'448, 61, 384, 60}, Published{"GLM-4.5", 352'797'829'024, 92, 160, 89},
                    Published{"Llama-4-Scout", 107'769'861'120, 48, 16, 48}, Published{"Llama-4-Maverick", 400'711'848'960, 48, 128, 24},
                    Published{"gpt-oss-120b", 116'829'156'672, 36, 128, 36}),
    [](const auto& test) {
      std::string name = test.param.name;
      for (char& c : name)
        if (c == '-' || c == '.') c = '_';
      return name;
    });

}  // namespace
}  // namespace ptq::layers
