// DeepseekV3ForCausalLM (V3, R1, V3.1; Kimi-K2 under the same name) and KimiK25ForConditionalGeneration, whose language model it is.
// Multi-head latent attention; dense layers, then mixtures with grouped routing. Multi-token prediction layers behind the last are no part.
#include <cmath>

#include "layers/models/deepseek_moe.h"

namespace ptq::layers {

namespace {

struct LatentShape {
  LatentAttentionSpec attention;  ///< without modules and linears
  int64_t query_rank = 0;         ///< 0: q_proj reads the norm's output
  bool bias = false;              ///< of what the hidden state enters and leaves by, except q_proj
};

LatentShape read_latent_attention(const Config& config, const RopeSpec& rope) {
  LatentShape shape;
  LatentAttentionSpec& attention = shape.attention;
  // head_dim, where the config has one, is the rotary width, and num_key_value_heads is not used: every head has a key of its own.
  attention.heads = attention.kv_heads = config.size("num_attention_heads");
  attention.nope = config.size("qk_nope_head_dim");
  attention.rot = config.size("qk_rope_head_dim");
  if (attention.rot != rope.rotary_dim) throw config.error("partial_rotary_factor", "is not 1, which is not supported");
  attention.head_dim = attention.nope + attention.rot;
  attention.v_head_dim = config.size("v_head_dim");
  attention.latent = config.size("kv_lora_rank");
  attention.scale = softmax_factor(rope) / std::sqrt(static_cast<float>(attention.head_dim));
  shape.query_rank = config.size_or("q_lora_rank", 0);
  shape.bias = config.flag_or("attention_bias", false);
  if (!config.flag_or("rope_interleave", true)) throw config.error("rope_interleave", "is false, which is not supported");
  return shape;
}

/// Groups: q_a and kv_a are fused by servers. q_proj is not fused with kv_a, though both read the norm's output.
void add_latent_attention(LayerSpec& layer, const ModelSpec& model, const LatentShape& shape) {
  constexpr float kLatentEps = 1e-6f;  // transformers leaves these two norms their default, whatever rms_norm_eps says
  BlockSpec block{add_block_norm(layer, model, "input_layernorm"), {}};
  LatentAttentionSpec attention = shape.attention;
  attention.module = layer.prefix + ".self_attn";
  const auto name = [&](const char* linear) { return attention.module + linear; };
  const auto norm = [&](const char* module, int64_t size) {
    return add_norm(layer, {NormSpec::Kind::kRms, name(module), kLatentEps}, size);
  };
  const int64_t hidden = model.hidden, heads = attention.heads, query_width = heads * attention.head_dim;
  auto [input, scale] = free_groups(layer);
  const int x = input++;
  int kv_a_scale = scale;
  if (shape.query_rank > 0) {
    attention.q_a = add_linear(layer, {name(".q_a_proj"), shape.query_rank, hidden, shape.bias, Split::kRows, x, scale++});
    attention.q_norm = norm(".q_a_layernorm", shape.query_rank);
    attention.q_b = add_linear(layer, {name(".q_b_proj"), query_width, shape.query_rank, false, Split::kQueryHeads, input++, scale++});
  } else {
    attention.q_b = add_linear(layer, {name(".q_proj"), query_width, hidden, false, Split::kQueryHeads, x, scale++});
    kv_a_scale = scale++;
  }
  attention.kv_a =
      add_linear(layer, {name(".kv_a_proj_with_mqa"), attention.latent + attention.rot, hidden, shape.bias, Split::kRows, x, kv_a_scale});
  attention.kv_norm = norm(".kv_a_layernorm", attention.latent);
  attention.kv_b = add_linear(layer, {name(".kv_b_proj"), heads * (attention.nope + attention.v_head_dim), attention.latent, false,
                                      Split::kQueryHeads, input++, scale++});
  attention.o = add_linear(layer, {name(".o_proj"), hidden, heads * attention.v_head_dim, shape.bias, Split::kRows, input, scale});
  block.body = std::move(attention);
  layer.blocks.push_back(std::move(block));
}

}  // namespace

ModelSpec describe_deepseek_v3(const Config& whole) {
  const auto [config, root] = language_model(whole);
  config.expect_text("hidden_act", "silu");
  ModelSpec model = read_decoder(config, "deepseek_v3", 1e-6, root);
  model.rope = read_rope(config, config.size("qk_rope_head_dim"));
  const LatentShape attention = read_latent_attention(config, model.rope);
  const DeepseekMoe feed_forward = read_deepseek_moe(config, {});
  for (LayerSpec& layer : model.layers) {
    add_latent_attention(layer, model, attention);
    add_deepseek_feed_forward(layer, model, feed_forward);
  }
  return model;
}

}  // namespace ptq::layers
