#include "layers/models/models.h"

#include <algorithm>
#include <vector>

// Every model family: the name of its file, and the architectures (config.json) and model_types it stands for. One line each.
#define PTQ_FAMILIES(X)                                                                                                \
  X(llama, ("LlamaForCausalLM"), ("llama"))                                                                            \
  X(mistral, ("MistralForCausalLM"), ("mistral"))                                                                      \
  X(mixtral, ("MixtralForCausalLM"), ("mixtral"))                                                                      \
  X(qwen2, ("Qwen2ForCausalLM"), ("qwen2"))                                                                            \
  X(qwen3, ("Qwen3ForCausalLM"), ("qwen3"))                                                                            \
  X(qwen3_moe, ("Qwen3MoeForCausalLM"), ("qwen3_moe"))                                                                 \
  X(deepseek_v3, ("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration"), ("deepseek_v3", "kimi_k2", "kimi_k25")) \
  X(glm4_moe, ("Glm4MoeForCausalLM"), ("glm4_moe"))                                                                    \
  X(llama4, ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"), ("llama4_text", "llama4"))                        \
  X(gpt_oss, ("GptOssForCausalLM"), ("gpt_oss"))                                                                       \
  X(nemotron_nas, ("DeciLMForCausalLM"), ("nemotron-nas"))                                                             \
  X(nemotron, ("NemotronForCausalLM"), ("nemotron"))

namespace ptq::layers {

#define PTQ_DECLARE(name, architectures, types) ModelSpec describe_##name(const Config& config);
PTQ_FAMILIES(PTQ_DECLARE)
#undef PTQ_DECLARE

namespace {

struct Family {
  ModelSpec (*describe)(const Config& config);
  std::vector<std::string> architectures, types;
};

#define PTQ_LIST(...) \
  { __VA_ARGS__ }
#define PTQ_ROW(name, architectures, types) {describe_##name, PTQ_LIST architectures, PTQ_LIST types},
const std::vector<Family>& families() {
  static const std::vector<Family> list{PTQ_FAMILIES(PTQ_ROW)};
  return list;
}
#undef PTQ_ROW
#undef PTQ_LIST

/// Sizes that are possible one by one may still make a tensor whose bytes cannot be counted.
void check_tensor_sizes(const ModelSpec& model, const Config& config) {
  constexpr int64_t kMost = int64_t{1} << 40;
  for (const LayerSpec& layer : model.layers)
    for (const TensorSpec& tensor : layer.tensors) {
      int64_t elements = 1;
      for (const int64_t extent : tensor.shape) {
        if (extent > kMost / elements)
          throw data_error("tensor '" + tensor.name + "' would have more than 2^40 elements", config.file(),
                           "take the config.json that was published with this checkpoint");
        elements *= extent;
      }
    }
}

}  // namespace

ModelSpec describe_model(const Config& config) {
  const std::string wanted = config.architecture();
  const auto is_in = [&](const std::vector<std::string>& names) { return std::find(names.begin(), names.end(), wanted) != names.end(); };
  std::string known;
  for (const Family& family : families()) {
    if (is_in(family.architectures) || is_in(family.types)) {
      ModelSpec model = family.describe(config);
      check_tensor_sizes(model, config);
      return model;
    }
    for (const std::string& architecture : family.architectures) known += (known.empty() ? "" : ", ") + architecture;
  }
  throw data_error("unknown model architecture '" + wanted + "'", config.file() + ": architectures", "supported are: " + known);
}

}  // namespace ptq::layers
