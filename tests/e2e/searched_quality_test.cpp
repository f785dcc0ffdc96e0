// What a search of weights gains: KL to the unquantized model on text it was not calibrated on, under ceilings far below what rounding to
// the nearest number reaches.

#include <cstring>

#include "tests/e2e/quality.h"

namespace ptq::test {
namespace {

constexpr const char* kCompressed = "compressed-tensors";

class SearchedQuality : public ::testing::TestWithParam<Bar> {};

TEST_P(SearchedQuality, IsUnderItsCeiling) {
  PTQ_NEEDS_SHARED(shared);

  EXPECT_LE(measure_kl(shared, GetParam(), 128, 60), GetParam().kl);
}

INSTANTIATE_TEST_SUITE_P(Models, SearchedQuality,
                         ::testing::Values(Bar{"llama", "int4_awq", 0.092, kCompressed}, Bar{"qwen3", "int4_awq", 0.0265, kCompressed},
                                           Bar{"qwen3-moe", "int4_awq", 0.027, kCompressed}, Bar{"llama", "w4a16_nvfp4", 0.058},
                                           Bar{"qwen3", "w4a16_nvfp4", 0.0175}, Bar{"llama", "nvfp4_awq", 0.180},
                                           Bar{"qwen3", "nvfp4_awq", 0.059}, Bar{"qwen3-moe", "nvfp4_awq", 0.085},
                                           Bar{"llama", "w4a8_awq", 0.105}, Bar{"qwen3-moe", "w4a8_awq", 0.030},
                                           Bar{"llama", "int8_sq", 1.03 * 0.0125, kCompressed},
                                           Bar{"qwen3", "int8_sq", 1.03 * 0.0038, kCompressed},
                                           Bar{"qwen3-moe", "int8_sq", 0.5 * 0.0577, kCompressed}),
                         name_of);

/// What goes into the neighbours costs what is stored beside the weights does: only the norms' bf16 stands between them.
class FoldedQuality : public ::testing::TestWithParam<Bar> {};

TEST_P(FoldedQuality, IsThatOfStoredFactors) {
  PTQ_NEEDS_SHARED(shared);

  const double stored = measure_kl(shared, GetParam(), 128, 60, {"quantization.awq.fold=none", "output.engine=tensorrt-llm"});
  const double folded = measure_kl(shared, GetParam(), 128, 60, {"quantization.awq.fold=all", "output.engine=tensorrt-llm"});

  EXPECT_LE(folded, GetParam().kl * stored);
}

INSTANTIATE_TEST_SUITE_P(Models, FoldedQuality, ::testing::Values(Bar{"llama", "int4_awq", 1.03}, Bar{"llama", "nvfp4_awq", 1.03}),
                         name_of);

/// The scale of the values is that of what the exported model makes of them, whose rows took factors.
TEST(SearchedCache, HasTheScaleOfFoldedValues) {
  PTQ_NEEDS_SHARED(shared);
  const TemporaryFolder folder;
  const std::string model = shared + "/fixtures/models/llama", output = folder / "out", text = shared + "/fixtures/text/";
  folder.write("recipe.yaml", recipe_text(model, text + "calib.jsonl", output, 16, 256, "nvfp4_awq"));
  const auto kl_of = [&](const std::string& name) {
    return evaluate({"--model", folder / name, "--reference", model, "--text", text + "eval.jsonl", "--samples", "10"})
        .at("kl")
        .get<double>();
  };
  // Of fold: modelopt, the rows of the values keep what they were.
  for (const char* fold : {"modelopt", "all"})
    expect_success(run_program({folder / "recipe.yaml", "output.path=" + folder / fold, std::string("quantization.awq.fold=") + fold,
                                "quantization.kv_cache=fp8"}));
  copy_folder(folder / "all", folder / "other");
  bool has_scales = false;
  edit_tensors(folder / "other/model.safetensors", [&](StoredTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (!name.ends_with("v_scale")) continue;
      const float eighth = tensor.scalar() / 8;
      std::memcpy(tensor.bytes.data(), &eighth, 4);
      has_scales = true;
    }
  });
  ASSERT_TRUE(has_scales) << "no v_scale is stored";

  const double kept = kl_of("modelopt"), folded = kl_of("all"), other = kl_of("other");

  std::cout << "KL with factors beside the values " << kept << ", in them " << folded << ", with an eighth of their scale " << other
            << "\n";
  EXPECT_LT(folded, 1.07 * kept);
  EXPECT_GT(other, 1.2 * folded) << "the comparison sees a wrong scale";
}

}  // namespace
}  // namespace ptq::test
