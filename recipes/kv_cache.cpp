#include "recipes/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <variant>

#include "kernels/core/error.h"
#include "kernels/ops.h"

namespace ptq::recipes {

namespace {

constexpr float kE4M3Max = 448.0f, kE2M1Max = 6.0f;
constexpr int64_t kBlock = 16;

bool is_nvfp4(KvFormat format) { return format == KvFormat::kNvfp4 || format == KvFormat::kNvfp4Affine; }

/// Token means as stored, and the farthest that any value lies from its channel's.
float centre(const ChannelStatistics& channels, int64_t tokens, const Shape& shape, Tensor& bias) {
  require(static_cast<int64_t>(channels.sums.size()) == element_count(shape) && tokens > 0, "KV channels were not observed");
  bias = Tensor::empty(shape, DType::kBF16);
  float farthest = 0;
  for (size_t c = 0; c < channels.sums.size(); ++c) {
    const double mean = static_cast<double>(channels.sums[c]) / static_cast<double>(tokens) / ChannelStatistics::kOne;
    const BF16 stored = to_bf16(static_cast<float>(mean));
    bias.data<BF16>()[c] = stored;
    farthest = std::max({farthest, channels.maxima[c] - to_float(stored), to_float(stored) - channels.minima[c]});
  }
  return farthest;
}

/// x[t, c] += sign·bias[c].
void shift(Tensor& x, const Tensor& bias, float sign) {
  const int64_t width = x.dim(1);
  for (int64_t t = 0; t < x.dim(0); ++t)
    for (int64_t c = 0; c < width; ++c) x.data<float>()[t * width + c] += sign * to_float(bias.data<BF16>()[c]);
}

}  // namespace

KvFormat kv_format(const std::string& name) {
  if (name == "fp8") return KvFormat::kFp8;
  if (name == "nvfp4") return KvFormat::kNvfp4;
  return name == "nvfp4_affine" ? KvFormat::kNvfp4Affine : KvFormat::kNone;
}

std::string kv_algo(KvFormat format) {
  switch (format) {
    case KvFormat::kNone:
      return "";
    case KvFormat::kFp8:
      return "FP8";
    case KvFormat::kNvfp4:
      return "NVFP4";
    case KvFormat::kNvfp4Affine:
      return "NVFP4_AFFINE";
  }
  throw bug("unknown KV cache format");
}

std::optional<KvFormat> find_kv_algo(const std::string& algo) {
  for (const KvFormat format : {KvFormat::kFp8, KvFormat::kNvfp4, KvFormat::kNvfp4Affine})
    if (kv_algo(format) == algo) return format;
  return std::nullopt;
}

KvFormats uniform_kv_formats(const layers::ModelSpec& model, KvFormat format) {
  KvFormats formats;
  for (const auto& layer : model.layers)
    if (layer.attention()) formats[layer.attention()->module] = format;
  return formats;
}

std::string kv_tensor(Dialect dialect, const std::string& attention, char key_or_value, const std::string& part) {
  const std::string letter(1, key_or_value);
  return attention + (dialect == Dialect::kModelOpt ? "." + letter + "_proj." : ".") + letter + "_" + part;
}

std::vector<checkpoint::OutputTensor> kv_tensors(Dialect dialect, KvFormat format, const layers::AttentionHeads& attention) {
  std::vector<checkpoint::OutputTensor> tensors;
  if (format == KvFormat::kNone) return tensors;
  const Shape scalar = dialect == Dialect::kModelOpt ? Shape{} : Shape{1};
  for (const char letter : {'k', 'v'}) tensors.push_back({kv_tensor(dialect, attention.module, letter, "scale"), DType::kF32, scalar});
  if (format == KvFormat::kNvfp4Affine)
    for (const char letter : {'k', 'v'})
      tensors.push_back({kv_tensor(dialect, attention.module, letter, "bias"),
                         DType::kBF16,
                         {1, attention.kv_heads, 1, letter == 'k' ? attention.head_dim : attention.v_head_dim}});
  return tensors;
}

void check_kv_cache(const layers::ModelSpec& model, const Recipe& recipe) {
  const std::vector<std::string>& candidates = recipe.autoquantize.kv_cache.formats;
  const bool may_choose = recipe.method == "autoquantize" && std::count(candidates.begin(), candidates.end(), "nvfp4") > 0;
  const std::string name = may_choose ? "nvfp4" : recipe.kv_cache;
  const std::string where = recipe.where(may_choose ? "quantization.autoquantize.kv_cache.formats" : "quantization.kv_cache");
  const KvFormat format = kv_format(name);
  if (!is_nvfp4(format)) return;
  for (const auto& layer : model.layers) {
    const layers::AttentionHeads* attention = layer.attention();
    if (!attention) continue;
    const bool is_latent = std::any_of(layer.blocks.begin(), layer.blocks.end(),
                                       [](const auto& block) { return std::holds_alternative<layers::LatentAttentionSpec>(block.body); });
    if (format == KvFormat::kNvfp4Affine && is_latent)
      throw user_error("kv_cache nvfp4_affine has no place for the biases of " + attention->module + ", whose keys are latent", where,
                       "use kv_cache: nvfp4 or fp8");
    if (attention->head_dim % kBlock != 0 || attention->v_head_dim % kBlock != 0)
      throw user_error("kv_cache " + name + " groups 16 channels of a head, and those of " + attention->module + " have " +
                           std::to_string(attention->head_dim % kBlock != 0 ? attention->head_dim : attention->v_head_dim),
                       where, may_choose ? "use fp8 and none" : "use kv_cache: fp8");
  }
}

KvScales kv_scales(KvFormat format, const layers::AttentionHeads& attention, const LayerStatistics& statistics, int64_t tokens,
                   std::vector<ScaleNote>& notes) {
  KvScales scales;
  float key_amax = statistics.key_amax, value_amax = statistics.value_amax;
  if (format == KvFormat::kNvfp4Affine) {
    key_amax = centre(statistics.key_channels, tokens, {1, attention.kv_heads, 1, attention.head_dim}, scales.key_bias);
    value_amax = centre(statistics.value_channels, tokens, {1, attention.kv_heads, 1, attention.v_head_dim}, scales.value_bias);
  }
  scales.key = kv_scale(key_amax, attention.module + ".k_proj", notes);
  scales.value = kv_scale(value_amax, attention.module + ".v_proj", notes);
  return scales;
}

void fake_quantize_kv(KvFormat format, float scale, const Tensor& bias, Tensor& x) {
  if (format == KvFormat::kFp8) return kernels::fake_quantize_fp8(x, scale);
  if (!is_nvfp4(format)) return;
  if (format == KvFormat::kNvfp4Affine) shift(x, bias, -1);
  kernels::fake_quantize_nvfp4(x, scale / kE2M1Max);  // amax/448 is stored, amax/(6·448) is the second level
  if (format == KvFormat::kNvfp4Affine) shift(x, bias, 1);
}

}  // namespace ptq::recipes
