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
  int64_t parameters;
  size_t layers;
};

class PublishedModel : public testing::TestWithParam<Published> {};

TEST_P(PublishedModel, HasAllItsParameters) {
  PTQ_NEEDS_SHARED(shared);
  const std::string file = shared + "/shapes/" + GetParam().name + "/config.json";

  const ModelSpec model = describe_model(Config(nlohmann::ordered_json::parse(std::ifstream(file)), file));

  EXPECT_EQ(parameters(model), GetParam().parameters);
  EXPECT_EQ(model.layers.size(), GetParam().layers);
}

INSTANTIATE_TEST_SUITE_P(All, PublishedModel,
                         testing::Values(Published{"Llama-3.1-8B", 8'030'261'248, 32}, Published{"Llama-3.1-70B", 70'553'706'496, 80},
                                         Published{"Llama-3.1-405B", 405'853'388'800, 126},
                                         Published{"Llama-3.3-Nemotron-Super-49B", 49'867'145'216, 80},
                                         Published{"Llama-3.1-Nemotron-Ultra-253B", 253'401'268'224, 162}),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           for (char& c : name)
                             if (c == '-' || c == '.') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace ptq::layers
