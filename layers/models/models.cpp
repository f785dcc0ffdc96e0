#include "layers/models/models.h"

// Every model family: the name of its file, and the architectures (config.json) or model_type it stands for. One line each.
#define PTQ_FAMILIES(X)                                \
  X(llama, "LlamaForCausalLM", "llama")                \
  X(mistral, "MistralForCausalLM", "mistral")          \
  X(qwen2, "Qwen2ForCausalLM", "qwen2")                \
  X(qwen3, "Qwen3ForCausalLM", "qwen3")                \
  X(nemotron_nas, "DeciLMForCausalLM", "nemotron-nas") \
  X(nemotron, "NemotronForCausalLM", "nemotron")

namespace ptq::layers {

#define PTQ_DECLARE(name, architecture, type) ModelSpec describe_##name(const Config& config);
PTQ_FAMILIES(PTQ_DECLARE)
#undef PTQ_DECLARE

ModelSpec describe_model(const Config& config) {
  const std::string wanted = config.architecture();
  std::string known;
#define PTQ_TRY(name, architecture, type)                                           \
  if (wanted == (architecture) || wanted == (type)) return describe_##name(config); \
  known += std::string(known.empty() ? "" : ", ") + (architecture);
  PTQ_FAMILIES(PTQ_TRY)
#undef PTQ_TRY
  throw data_error("unknown model architecture '" + wanted + "'", config.file() + ": architectures", "supported are: " + known);
}

}  // namespace ptq::layers
