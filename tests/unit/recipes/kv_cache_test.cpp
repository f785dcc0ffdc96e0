#include "recipes/kv_cache.h"

#include <gtest/gtest.h>

#include "recipes/observer.h"
#include "tests/support/expect_error.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/recipes/tiny_model.h"

namespace ptq::recipes {
namespace {

/// Two kv heads of 16.
layers::AttentionHeads heads() {
  layers::AttentionHeads attention;
  attention.kv_heads = 2;
  attention.head_dim = attention.v_head_dim = 16;
  attention.module = "a";
  return attention;
}

std::string tensors_of(Dialect dialect, KvFormat format) {
  std::string text;
  for (const auto& tensor : kv_tensors(dialect, format, heads()))
    text += (text.empty() ? "" : "; ") + tensor.name + " " + std::string(dtype_name(tensor.dtype)) + " " + to_string(tensor.shape);
  return text;
}

TEST(KvTensors, OfEveryFormat) {
  EXPECT_EQ(tensors_of(Dialect::kModelOpt, KvFormat::kNone), "");
  for (const KvFormat format : {KvFormat::kFp8, KvFormat::kNvfp4})
    EXPECT_EQ(tensors_of(Dialect::kModelOpt, format), "a.k_proj.k_scale F32 []; a.v_proj.v_scale F32 []");
  EXPECT_EQ(tensors_of(Dialect::kModelOpt, KvFormat::kNvfp4Affine),
            "a.k_proj.k_scale F32 []; a.v_proj.v_scale F32 []; a.k_proj.k_bias BF16 [1, 2, 1, 16]; a.v_proj.v_bias BF16 [1, 2, 1, 16]");
  EXPECT_EQ(tensors_of(Dialect::kCompressedTensors, KvFormat::kFp8), "a.k_scale F32 [1]; a.v_scale F32 [1]");
}

/// Keys of mean 3 in channel 0 and -1 elsewhere, values of zeros, as two batches of two tokens.
LayerStatistics observed() {
  const auto model = test::tiny_llama(1);
  Observer observer(true);
  for (const float step : {0.5f, 1.0f}) {
    std::vector<float> keys(64, -1.0f);
    keys[0] = 3 - step;
    keys[32] = 3 + step;
    Tensor k = test::tensor_of(keys, {2, 32}), v = Tensor::zeros({2, 32}, DType::kF32);
    observer.key_value(model.layers[0], k, v, layers::make_batch(0, {2}));
  }
  LayerStatistics statistics;
  const auto& seen = observer.maxima().at(0);
  statistics.key_amax = seen.key_amax;
  statistics.value_amax = seen.value_amax;
  statistics.key_channels = seen.key_channels;
  statistics.value_channels = seen.value_channels;
  return statistics;
}

TEST(KvScales, AreTheLargestValueOver448) {
  std::vector<ScaleNote> notes;

  for (const KvFormat format : {KvFormat::kFp8, KvFormat::kNvfp4}) {
    const KvScales scales = kv_scales(format, heads(), observed(), 4, notes);
    EXPECT_EQ(scales.key, 4.0f / 448.0f);
    EXPECT_EQ(scales.value, 1.0f);
    EXPECT_FALSE(scales.key_bias.defined());
  }
  EXPECT_EQ(notes.size(), 2u) << "values of zeros are noted";
}

TEST(KvScales, AffineTakesTheMeanOfEachChannelOff) {
  std::vector<ScaleNote> notes;

  const KvScales scales = kv_scales(KvFormat::kNvfp4Affine, heads(), observed(), 4, notes);

  std::vector<float> means(32, -1.0f);
  means[0] = 3;
  EXPECT_EQ(test::values_of(scales.key_bias), means);
  EXPECT_EQ(test::values_of(scales.value_bias), std::vector<float>(32, 0.0f));
  EXPECT_EQ(scales.key, 1.0f / 448.0f) << "from 2 to 4 around 3";
}

TEST(FakeQuantizeKv, AffineKeepsWhatIsConstant) {
  std::vector<float> values(32, 100.0f);
  values[5] = 101;
  const Tensor bias = test::tensor_of(std::vector<float>(32, 100.0f), {1, 2, 1, 16}, DType::kBF16);
  Tensor affine = test::tensor_of(values, {1, 32}), plain = test::tensor_of(values, {1, 32});

  fake_quantize_kv(KvFormat::kNvfp4Affine, 1.0f / 448.0f, bias, affine);
  fake_quantize_kv(KvFormat::kNvfp4, 101.0f / 448.0f, {}, plain);

  EXPECT_EQ(test::values_of(affine), values);
  EXPECT_NE(test::values_of(plain)[4], 100.0f) << "four bits alone cannot tell 100 from 101";
}

TEST(FakeQuantizeKv, NvfpFourUsesTheWholeRange) {
  Tensor x = test::tensor_of({6, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -6}, {1, 16});
  const std::vector<float> before = test::values_of(x);

  fake_quantize_kv(KvFormat::kNvfp4, 6.0f / 448.0f, {}, x);

  EXPECT_EQ(test::values_of(x), before) << "a block whose largest element is the tensor's has codes of 6, 3, 1";
}

TEST(CheckKvCache, RefusesHeadsThatBlocksOf16DoNotFill) {
  const auto model = test::tiny_llama(1);  // heads of 8
  Recipe recipe;
  recipe.file = "r.yaml";

  for (const char* kv_cache : {"none", "fp8"}) {
    recipe.kv_cache = kv_cache;
    EXPECT_NO_THROW(check_kv_cache(model, recipe));
  }
  for (const char* kv_cache : {"nvfp4", "nvfp4_affine"}) {
    recipe.kv_cache = kv_cache;
    test::expect_error(ErrorKind::kUser, "model.layers.0.self_attn have 8", [&] { check_kv_cache(model, recipe); });
  }
}

}  // namespace
}  // namespace ptq::recipes
