#pragma once
// A quantized KV cache: what the checkpoint says of it beside an attention block, the scales from what calibration saw, and what a server
// does to keys and values. Keys are taken after rope.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/core/tensor.h"
#include "layers/model_spec.h"
#include "recipes/minmax.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

enum class KvFormat {
  kNone,
  kFp8,         ///< E4M3 with one scale
  kNvfp4,       ///< E2M1 in blocks of 16 along the head dim; the stored scale is amax/448 too, the second level amax/2688
  kNvfp4Affine  ///< the same of what is left when each channel's mean, stored in bf16, is taken off
};
/// Of quantization.kv_cache's names.
KvFormat kv_format(const std::string& name);
/// ModelOpt's name; "" for kNone.
std::string kv_algo(KvFormat format);
/// The format that ModelOpt calls so; nothing for names that are not known here.
std::optional<KvFormat> find_kv_algo(const std::string& algo);

/// By attention module, what the cache of every attention block holds.
using KvFormats = std::map<std::string, KvFormat>;
/// The same in all of them.
KvFormats uniform_kv_formats(const layers::ModelSpec& model, KvFormat format);

/// What is stored of one attention block.
struct KvScales {
  float key = 1, value = 1;
  Tensor key_bias, value_bias;  ///< bf16 [1, kv_heads, 1, head_dim], of kNvfp4Affine
};

/// Names of an attention block's tensors in a dialect; all attention kinds have the same.
std::string kv_tensor(Dialect dialect, const std::string& attention, char key_or_value, const std::string& part);
/// Everything that is stored of one attention block, in the order k_scale, v_scale, k_bias, v_bias.
std::vector<checkpoint::OutputTensor> kv_tensors(Dialect dialect, KvFormat format, const layers::AttentionHeads& attention);

/// Throws a user Error when the recipe's KV cache, or one that autoquantize may choose, cannot be that of this model: head dims that 16
/// does not divide, latent attention with biases.
void check_kv_cache(const layers::ModelSpec& model, const Recipe& recipe);

/// `tokens`: of all ranks, what the channel sums are of. An amax of 0 gives 1 and a note.
KvScales kv_scales(KvFormat format, const layers::AttentionHeads& attention, const LayerStatistics& statistics, int64_t tokens,
                   std::vector<ScaleNote>& notes);

/// What a server's cache makes of keys or values x [T, kv_heads·head_dim] f32, in place.
void fake_quantize_kv(KvFormat format, float scale, const Tensor& bias, Tensor& x);

}  // namespace ptq::recipes
