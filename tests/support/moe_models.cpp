#include "tests/support/moe_models.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "kernels/core/dtype.h"

namespace ptq::test {

namespace {

namespace fs = std::filesystem;

/// A checkpoint in the making.
struct Draft {
  Json config;
  StoredTensors tensors;
  std::mt19937_64 random;

  void weight(const std::string& name, const std::vector<int64_t>& shape) { tensors[name] = random_tensor(shape, 0.1f, random); }
  void linear(const std::string& module, int64_t out, int64_t in, bool has_bias = false) {
    weight(module + ".weight", {out, in});
    if (has_bias) weight(module + ".bias", {out});
  }
  void norm(const std::string& module, int64_t size) { tensors[module + ".weight"] = ones(size); }
  void gated_mlp(const std::string& module, int64_t hidden, int64_t intermediate) {
    linear(module + ".gate_proj", intermediate, hidden);
    linear(module + ".up_proj", intermediate, hidden);
    linear(module + ".down_proj", hidden, intermediate);
  }
  void write(const std::string& folder) const {
    fs::create_directories(folder);
    write_file(folder + "/config.json", config.dump(2));
    write_tensors(folder + "/model.safetensors", tensors);
  }
};

/// Config keys, embedding, head and final norm, as all families have them.
Draft start(const TinyMoe& shape, const std::string& architecture, const std::string& type, const std::string& root = "") {
  Draft draft;
  draft.random.seed(shape.seed);
  draft.config = {{"architectures", {architecture}},
                  {"model_type", type},
                  {"hidden_act", "silu"},
                  {"hidden_size", shape.hidden},
                  {"num_hidden_layers", shape.layers},
                  {"num_attention_heads", shape.heads},
                  {"num_key_value_heads", shape.kv_heads},
                  {"num_experts_per_tok", shape.top_k},
                  {"vocab_size", shape.vocab},
                  {"rms_norm_eps", 1e-5},
                  {"rope_theta", 10000.0},
                  {"rope_scaling", nullptr},
                  {"max_position_embeddings", 1024},
                  {"tie_word_embeddings", false},
                  {"eos_token_id", 1}};
  draft.tensors[root + "model.embed_tokens.weight"] = random_tensor({shape.vocab, shape.hidden}, 1.0f, draft.random);
  draft.linear(root + "lm_head", shape.vocab, shape.hidden);
  draft.norm(root + "model.norm", shape.hidden);
  return draft;
}

void add_attention(Draft& draft, const std::string& layer, const TinyMoe& shape, bool has_bias = false) {
  const int64_t head_dim = shape.hidden / shape.heads;
  for (const std::string norm : {"input_layernorm", "post_attention_layernorm"}) draft.norm(layer + norm, shape.hidden);
  draft.linear(layer + "self_attn.q_proj", shape.hidden, shape.hidden, has_bias);
  draft.linear(layer + "self_attn.k_proj", shape.kv_heads * head_dim, shape.hidden, has_bias);
  draft.linear(layer + "self_attn.v_proj", shape.kv_heads * head_dim, shape.hidden, has_bias);
  draft.linear(layer + "self_attn.o_proj", shape.hidden, shape.hidden, has_bias);
}

constexpr int64_t kRank = 32, kNope = 16, kRotary = 8, kValue = 16;

void add_latent_attention(Draft& draft, const std::string& layer, const TinyMoe& shape) {
  for (const std::string norm : {"input_layernorm", "post_attention_layernorm"}) draft.norm(layer + norm, shape.hidden);
  for (const std::string norm : {"q_a_layernorm", "kv_a_layernorm"}) draft.norm(layer + "self_attn." + norm, kRank);
  draft.linear(layer + "self_attn.q_a_proj", kRank, shape.hidden);
  draft.linear(layer + "self_attn.q_b_proj", shape.heads * (kNope + kRotary), kRank);
  draft.linear(layer + "self_attn.kv_a_proj_with_mqa", kRank + kRotary, shape.hidden);
  draft.linear(layer + "self_attn.kv_b_proj", shape.heads * (kNope + kValue), kRank);
  draft.linear(layer + "self_attn.o_proj", shape.hidden, shape.heads * kValue);
}

void add_deepseek_experts(Draft& draft, const std::string& layer, const TinyMoe& shape) {
  draft.linear(layer + "mlp.gate", shape.experts, shape.hidden);
  StoredTensor& bias = draft.tensors[layer + "mlp.gate.e_score_correction_bias"] = {"F32", {shape.experts}, {}};
  for (int64_t e = 0; e < shape.experts; ++e) {
    const float value = 0.01f * static_cast<float>(e);
    bias.bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    draft.gated_mlp(layer + "mlp.experts." + std::to_string(e), shape.hidden, shape.intermediate);
  }
  draft.gated_mlp(layer + "mlp.shared_experts", shape.hidden, shape.intermediate);
}

void add_vision_tower(Draft& draft, int64_t hidden) {
  constexpr int64_t kWidth = 32;
  draft.linear("vision_model.patch_embedding.linear", kWidth, 12);
  draft.weight("vision_model.class_embedding", {kWidth});
  draft.weight("vision_model.positional_embedding_vlm", {5, kWidth});
  for (const std::string name : {"q_proj", "k_proj", "v_proj", "o_proj"})
    draft.linear("vision_model.model.layers.0.self_attn." + name, kWidth, kWidth, true);
  draft.linear("vision_model.model.layers.0.mlp.fc1", 2 * kWidth, kWidth, true);
  draft.linear("vision_model.model.layers.0.mlp.fc2", kWidth, 2 * kWidth, true);
  draft.norm("vision_model.layernorm_post", kWidth);
  draft.linear("vision_model.vision_adapter.mlp.fc1", kWidth, kWidth);
  draft.linear("multi_modal_projector.linear_1", hidden, kWidth);
}

float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float size =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
  return code & 0x80 ? -size : size;
}

void put_bf16(std::string& bytes, int64_t at, float value) {
  const BF16 stored = to_bf16(value);
  std::memcpy(bytes.data() + 2 * at, &stored, 2);
}

struct CodedWeight {
  StoredTensor codes, scales;
};

constexpr int64_t kBlock = 128;

/// Random codes for `weight`, and a scale for each block.
CodedWeight random_fp8_blocks(const StoredTensor& weight, std::mt19937_64& random) {
  const int64_t row_blocks = (weight.shape[0] + kBlock - 1) / kBlock, column_blocks = (weight.shape[1] + kBlock - 1) / kBlock;
  CodedWeight coded{{"F8_E4M3", weight.shape, {}}, {"F32", {row_blocks, column_blocks}, {}}};
  for (int64_t i = 0; i < row_blocks * column_blocks; ++i) {
    const float scale = 0.0002f + 0.0000004f * static_cast<float>(random() % 1000);
    coded.scales.bytes.append(reinterpret_cast<const char*>(&scale), sizeof(scale));
  }
  for (int64_t i = 0; i < weight.shape[0] * weight.shape[1]; ++i) {
    // Sizes from 1 to 448, as a quantizer that fills the range leaves them; no NaN.
    const uint64_t bits = random();
    coded.codes.bytes.push_back(static_cast<char>((7 + bits % 9) << 3 | (bits >> 8) % 7 | (bits >> 16 & 1) << 7));
  }
  return coded;
}

/// Random codes for stacked experts [E, in, out], whose tensor becomes what they stand for.
CodedWeight random_mxfp4(StoredTensor& weight, std::mt19937_64& random) {
  constexpr int64_t kGroup = 32;
  constexpr float kSizes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const int64_t experts = weight.shape[0], in = weight.shape[1], out = weight.shape[2];
  CodedWeight coded{{"U8", {experts, out, in / kGroup, kGroup / 2}, {}}, {"U8", {experts, out, in / kGroup}, {}}};
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t group = 0; group < in / kGroup; ++group) {
        const int exponent = -6 + static_cast<int>(random() % 3);
        coded.scales.bytes.push_back(static_cast<char>(exponent + 127));
        for (int64_t pair = 0; pair < kGroup / 2; ++pair) {
          const auto code = static_cast<uint8_t>(random());
          coded.codes.bytes.push_back(static_cast<char>(code));
          for (int64_t half = 0; half < 2; ++half) {  // the even column in the low bits
            const int nibble = code >> 4 * half & 15;
            const float value = std::ldexp(kSizes[nibble & 7], exponent);
            put_bf16(weight.bytes, (e * in + group * kGroup + 2 * pair + half) * out + o, nibble & 8 ? -value : value);
          }
        }
      }
  return coded;
}

/// Writes the folder's checkpoint anew: `decoded` with its config as it was, the folder itself with these tensors and words.
void write_both(const std::string& folder, const std::string& decoded, const StoredTensors& plain, const StoredTensors& coded,
                const Json& words) {
  if (!decoded.empty()) {
    fs::create_directories(decoded);
    write_file(decoded + "/config.json", read_file(folder + "/config.json"));
    write_tensors(decoded + "/model.safetensors", plain);
  }
  write_tensors(folder + "/model.safetensors", coded);
  edit_json_file(folder + "/config.json", [&](Json& config) { config["quantization_config"] = words; });
}

}  // namespace

void make_tiny_mixtral(const std::string& folder, const TinyMoe& shape) {
  Draft draft = start(shape, "MixtralForCausalLM", "mixtral");
  draft.config.update({{"intermediate_size", shape.intermediate}, {"num_local_experts", shape.experts}, {"sliding_window", nullptr}});
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".", moe = layer + "block_sparse_moe.";
    add_attention(draft, layer, shape);
    draft.linear(moe + "gate", shape.experts, shape.hidden);
    for (int64_t e = 0; e < shape.experts; ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      draft.linear(expert + "w1", shape.intermediate, shape.hidden);
      draft.linear(expert + "w2", shape.hidden, shape.intermediate);
      draft.linear(expert + "w3", shape.intermediate, shape.hidden);
    }
  }
  draft.write(folder);
}

void make_tiny_deepseek(const std::string& folder, const TinyMoe& shape) {
  Draft draft = start(shape, "DeepseekV3ForCausalLM", "deepseek_v3");
  draft.config.update({{"intermediate_size", 2 * shape.intermediate},
                       {"moe_intermediate_size", shape.intermediate},
                       {"first_k_dense_replace", 1},
                       {"n_routed_experts", shape.experts},
                       {"n_shared_experts", 1},
                       {"n_group", 2},
                       {"topk_group", 1},
                       {"norm_topk_prob", true},
                       {"routed_scaling_factor", 1.5},
                       {"scoring_func", "sigmoid"},
                       {"topk_method", "noaux_tc"},
                       {"q_lora_rank", kRank},
                       {"kv_lora_rank", kRank},
                       {"qk_nope_head_dim", kNope},
                       {"qk_rope_head_dim", kRotary},
                       {"v_head_dim", kValue},
                       {"num_nextn_predict_layers", shape.mtp_layers}});
  for (int64_t i = 0; i < shape.layers + shape.mtp_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add_latent_attention(draft, layer, shape);
    if (i == 0)
      draft.gated_mlp(layer + "mlp", shape.hidden, 2 * shape.intermediate);
    else
      add_deepseek_experts(draft, layer, shape);
    if (i < shape.layers) continue;
    for (const std::string norm : {"enorm", "hnorm", "shared_head.norm"}) draft.norm(layer + norm, shape.hidden);
    draft.linear(layer + "eh_proj", shape.hidden, 2 * shape.hidden);
    draft.linear(layer + "embed_tokens", shape.vocab, shape.hidden);
    draft.linear(layer + "shared_head.head", shape.vocab, shape.hidden);
  }
  draft.write(folder);
}

void make_tiny_llama4(const std::string& folder, const TinyMoe& shape) {
  const std::string root = shape.has_vision ? "language_model." : "";
  Draft draft = start(shape, "Llama4ForCausalLM", "llama4_text", root);
  draft.config.update({{"intermediate_size", shape.intermediate},
                       {"intermediate_size_mlp", 2 * shape.intermediate},
                       {"head_dim", shape.hidden / shape.heads},
                       {"num_local_experts", shape.experts},
                       {"num_experts_per_tok", 1},
                       {"interleave_moe_layer_step", 1},
                       {"attention_chunk_size", 16},
                       {"floor_scale", 8}});
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = root + "model.layers." + std::to_string(i) + ".", moe = layer + "feed_forward.";
    add_attention(draft, layer, shape);
    draft.linear(moe + "router", shape.experts, shape.hidden);
    draft.weight(moe + "experts.gate_up_proj", {shape.experts, shape.hidden, 2 * shape.intermediate});
    draft.weight(moe + "experts.down_proj", {shape.experts, shape.intermediate, shape.hidden});
    draft.gated_mlp(moe + "shared_expert", shape.hidden, shape.intermediate);
  }
  if (shape.has_vision) {
    add_vision_tower(draft, shape.hidden);
    const Json text = draft.config;
    draft.config = {{"architectures", {"Llama4ForConditionalGeneration"}},
                    {"model_type", "llama4"},
                    {"text_config", text},
                    {"vision_config", {{"hidden_size", 32}, {"model_type", "llama4_vision_model"}}},
                    {"image_token_index", 5},
                    {"tie_word_embeddings", false}};
  }
  draft.write(folder);
}

void make_tiny_gpt_oss(const std::string& folder, const TinyMoe& shape) {
  Draft draft = start(shape, "GptOssForCausalLM", "gpt_oss");
  draft.config.update({{"intermediate_size", shape.intermediate},
                       {"head_dim", shape.hidden / shape.heads},
                       {"num_local_experts", shape.experts},
                       {"attention_bias", true},
                       {"sliding_window", 12},
                       {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 150000.0}}}});
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".", moe = layer + "mlp.";
    add_attention(draft, layer, shape, true);
    draft.weight(layer + "self_attn.sinks", {shape.heads});
    draft.linear(moe + "router", shape.experts, shape.hidden, true);
    draft.weight(moe + "experts.gate_up_proj", {shape.experts, shape.hidden, 2 * shape.intermediate});
    draft.weight(moe + "experts.gate_up_proj_bias", {shape.experts, 2 * shape.intermediate});
    draft.weight(moe + "experts.down_proj", {shape.experts, shape.intermediate, shape.hidden});
    draft.weight(moe + "experts.down_proj_bias", {shape.experts, shape.hidden});
  }
  draft.write(folder);
}

void store_in_fp8_blocks(const std::string& folder, const std::string& decoded) {
  StoredTensors plain = read_tensors(folder + "/model.safetensors"), coded;
  std::mt19937_64 random(7);
  for (auto& [name, tensor] : plain) {
    bool is_linear = tensor.shape.size() == 2 && name.ends_with(".weight") && name.find(".layers.") != std::string::npos;
    for (const char* other : {"mlp.gate.weight", "eh_proj", "embed_tokens", "shared_head"})
      is_linear = is_linear && name.find(other) == std::string::npos;
    if (is_linear) {
      CodedWeight fp8 = random_fp8_blocks(tensor, random);
      tensor = decode_fp8_blocks(fp8.codes, fp8.scales);
      coded[name] = std::move(fp8.codes);
      coded[name + "_scale_inv"] = std::move(fp8.scales);
    } else {
      coded[name] = tensor;
    }
  }
  write_both(folder, decoded, plain, coded,
             {{"activation_scheme", "dynamic"}, {"fmt", "e4m3"}, {"quant_method", "fp8"}, {"weight_block_size", {128, 128}}});
}

void store_in_mxfp4(const std::string& folder, const std::string& decoded) {
  StoredTensors plain = read_tensors(folder + "/model.safetensors"), coded;
  std::mt19937_64 random(8);
  for (auto& [name, tensor] : plain) {
    if (tensor.shape.size() == 3) {
      CodedWeight mxfp4 = random_mxfp4(tensor, random);
      coded[name + "_blocks"] = std::move(mxfp4.codes);
      coded[name + "_scales"] = std::move(mxfp4.scales);
    } else {
      coded[name] = tensor;
    }
  }
  write_both(folder, decoded, plain, coded,
             {{"quant_method", "mxfp4"}, {"modules_to_not_convert", {"model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"}}});
}

StoredTensor decode_fp8_blocks(const StoredTensor& codes, const StoredTensor& scales) {
  const int64_t columns = codes.shape[1];
  const std::vector<double> multipliers = scales.values();
  StoredTensor decoded{"BF16", codes.shape, std::string(2 * codes.bytes.size(), '\0')};
  for (int64_t i = 0; i < static_cast<int64_t>(codes.bytes.size()); ++i) {
    const auto scale = static_cast<float>(multipliers[static_cast<size_t>(i / columns / kBlock * scales.shape[1] + i % columns / kBlock)]);
    put_bf16(decoded.bytes, i, e4m3_value(static_cast<uint8_t>(codes.bytes[static_cast<size_t>(i)])) * scale);
  }
  return decoded;
}

}  // namespace ptq::test
