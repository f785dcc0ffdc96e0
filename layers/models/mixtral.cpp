// MixtralForCausalLM: Mistral with a mixture of experts in every layer, under the names of its first release.
#include "layers/models/attention_block.h"
#include "layers/models/moe_block.h"

namespace ptq::layers {

ModelSpec describe_mixtral(const Config& config) {
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "mixtral", 1e-5);
  AttentionSpec attention = read_attention(config);
  model.rope = read_rope(config, attention.head_dim, 1.0, 1e6);
  MoeSpec moe;
  moe.router = read_router(config, RouterSpec::Kind::kSoftmax, "num_local_experts");
  moe.router.normalize = true;
  moe.intermediate = config.size("intermediate_size");
  const MoeTensors tensors{
      .router = "block_sparse_moe.gate", .experts = "block_sparse_moe.experts", .gate = "w1", .up = "w3", .down = "w2"};
  const std::vector<int64_t> windows = mistral_windows(config, model.layers.size());
  for (LayerSpec& layer : model.layers) {
    attention.window = windows[static_cast<size_t>(layer.index)];
    add_attention(layer, model, attention, {});
    add_moe(layer, model, moe, tensors);
  }
  return model;
}

}  // namespace ptq::layers
