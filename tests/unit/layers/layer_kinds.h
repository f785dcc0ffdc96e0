#pragma once
// A small layer of every kind that published models have, for what must hold for all of them. Heads can be split over 2, 3 and 4 ranks
// (two kv heads over 2 and 4); other widths mostly divide by no number of ranks.

#include <string>
#include <vector>

namespace ptq::test {

struct LayerKind {
  std::string name, config;
};

inline std::string tiny_deepseek(const std::string& query_rank, int dense_layers) {
  return R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 23, "num_attention_heads": 12, "num_key_value_heads": 12,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "kv_lora_rank": 25, "intermediate_size": 50,
    "moe_intermediate_size": 11, "num_hidden_layers": 1, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.5, "vocab_size": 9, "first_k_dense_replace": )" +
         std::to_string(dense_layers) + R"(, "q_lora_rank": )" + query_rank + "}";
}

/// Layer 0 with rope and chunks, or without and with a temperature; its mixture reads weighted inputs.
inline std::string tiny_llama4(const std::string& rope) {
  return R"({"architectures": ["Llama4ForCausalLM"], "hidden_size": 23, "num_attention_heads": 12,
    "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 14, "intermediate_size_mlp": 30, "num_hidden_layers": 1, "vocab_size": 9,
    "num_local_experts": 3, "num_experts_per_tok": 1, "attention_chunk_size": 4, "floor_scale": 3, "no_rope_layers": [)" +
         rope + "]}";
}

inline std::vector<LayerKind> layer_kinds() {
  return {
      {"grouped heads, head norms, biases and a window", R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 23,
        "num_attention_heads": 24, "num_key_value_heads": 12, "head_dim": 8, "intermediate_size": 50, "num_hidden_layers": 1,
        "vocab_size": 9, "attention_bias": true, "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 0})"},
      {"one kv head for all", R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_attention_heads": 12,
        "num_key_value_heads": 1, "intermediate_size": 70, "num_hidden_layers": 1, "vocab_size": 9, "mlp_bias": true})"},
      {"two kv heads", R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 70, "num_hidden_layers": 1, "vocab_size": 9})"},
      {"nemotron", R"({"architectures": ["NemotronForCausalLM"], "hidden_size": 48, "num_attention_heads": 12,
        "num_key_value_heads": 12, "intermediate_size": 71, "num_hidden_layers": 1, "vocab_size": 9})"},
      {"latent attention", tiny_deepseek("31", 1)},
      {"latent attention without q_a", tiny_deepseek("null", 1)},
      {"groups of experts beside a shared one", tiny_deepseek("31", 0)},
      {"sinks, clamped experts and a router with a bias", R"({"architectures": ["GptOssForCausalLM"], "hidden_size": 23,
        "num_attention_heads": 24, "num_key_value_heads": 12, "head_dim": 8, "intermediate_size": 10, "num_hidden_layers": 1,
        "vocab_size": 9, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}})"},
      {"weights inside experts, chunks and normed heads", tiny_llama4("1")},
      {"weights inside experts, a temperature and no rope", tiny_llama4("0")},
      {"softmax over all experts", R"({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 23, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 6, "intermediate_size": 30, "moe_intermediate_size": 11, "num_experts": 5,
        "num_experts_per_tok": 2, "norm_topk_prob": true, "num_hidden_layers": 1, "vocab_size": 9})"},
      {"single linears", R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 34, "num_attention_heads": 2, "head_dim": 8,
        "num_hidden_layers": 1, "vocab_size": 9,
        "block_configs": [{"attention": {"replace_with_linear": true}, "ffn": {"replace_with_linear": true}}]})"},
      {"no blocks", R"({"architectures": ["DeciLMForCausalLM"], "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
        "vocab_size": 9, "block_configs": [{"attention": {"no_op": true}, "ffn": {"no_op": true}}]})"},
  };
}

}  // namespace ptq::test
