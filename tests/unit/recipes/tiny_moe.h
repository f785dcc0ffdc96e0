#pragma once
// Mixture-of-experts models as names and sizes alone: H 32, experts of width 16. Only what the recipes look at is filled in.

#include <string>
#include <utility>

#include "layers/model_spec.h"

namespace ptq::test {

constexpr int64_t kHidden = 32, kIntermediate = 16;

/// Adds a linear [out, in] that shares its input and its scale with the others of `group`; returns its index.
inline int add_plain(layers::LayerSpec& layer, const std::string& name, int64_t out, int64_t in, int group) {
  return add_linear(layer, {layer.prefix + "." + name, out, in, false, layers::Split::kRows, group, group});
}

inline void add_swiglu(layers::LayerSpec& layer, const std::string& module, int64_t intermediate, int group) {
  add_plain(layer, module + ".gate_proj", intermediate, kHidden, group);
  add_plain(layer, module + ".up_proj", intermediate, kHidden, group);
  add_plain(layer, module + ".down_proj", kHidden, intermediate, group + 1);
}

/// The block of a mixture: its router's weight and its container; the experts are still to be added.
inline layers::MoeSpec start_moe(layers::LayerSpec& layer, const std::string& router, const std::string& container, int64_t experts) {
  layers::MoeSpec moe;
  moe.router.module = layer.prefix + "." + router;
  moe.router.experts = experts;
  moe.router.top_k = 2;
  moe.module = layer.prefix + "." + container;
  moe.intermediate = kIntermediate;
  layer.tensors.push_back({moe.router.module + ".weight", {experts, kHidden}});
  return moe;
}

inline void finish_moe(layers::LayerSpec& layer, layers::MoeSpec moe) {
  layers::BlockSpec block;
  block.body = std::move(moe);
  layer.blocks.push_back(std::move(block));
}

/// `names`: of gate, up and down. Scale groups from 100 on, all experts read group 90 or, down, 91.
inline void add_experts(layers::LayerSpec& layer, layers::MoeSpec& moe, const std::vector<std::string>& names) {
  for (int e = 0; e < moe.router.experts; ++e) {
    const std::string module = moe.module + "." + std::to_string(e) + ".";
    const auto add = [&](const std::string& name, int64_t out, int64_t in, bool feeds_down) {
      return add_linear(layer, {module + name, out, in, false, layers::Split::kRows, feeds_down ? 90 : 91,
                                100 + 2 * e + (feeds_down ? 0 : 1), e, 0, feeds_down});
    };
    layers::ExpertLinears expert;
    expert.gate = add(names[0], kIntermediate, kHidden, true);
    expert.up = add(names[1], kIntermediate, kHidden, true);
    expert.down = add(names[2], kHidden, kIntermediate, false);
    moe.experts.push_back(expert);
  }
}

inline void add_stacked_experts(layers::LayerSpec& layer, layers::MoeSpec& moe) {
  const int64_t experts = moe.router.experts;
  layers::ExpertLinears expert;
  expert.gate_up = add_linear(layer, {moe.module + ".gate_up_proj", 2 * kIntermediate, kHidden, false, layers::Split::kRows, 90, 100,
                                      layers::kAllExperts, experts, true});
  expert.down = add_linear(layer, {moe.module + ".down_proj", kHidden, kIntermediate, false, layers::Split::kRows, 91, 101,
                                   layers::kAllExperts, experts, false});
  moe.experts.assign(static_cast<size_t>(experts), expert);
}

inline layers::ModelSpec start_model(const std::string& root, int64_t layers) {
  layers::ModelSpec model;
  model.hidden = kHidden;
  model.vocab = 50;
  model.embedding = root + "model.embed_tokens.weight";
  model.final_norm = {layers::NormSpec::Kind::kRms, root + "model.norm", 1e-6f};
  model.lm_head = {root + "lm_head", model.vocab, kHidden, false, layers::Split::kRows, 0, 0};
  for (int64_t i = 0; i < layers; ++i) {
    model.layers.emplace_back();
    model.layers.back().index = i;
    model.layers.back().prefix = root + "model.layers." + std::to_string(i);
  }
  return model;
}

/// Qwen3-MoE (or Mixtral, by other names): grouped attention, every layer a mixture.
inline layers::ModelSpec tiny_qwen3_moe(int64_t layers, int64_t experts, const std::string& block = "mlp",
                                        const std::vector<std::string>& names = {"gate_proj", "up_proj", "down_proj"}) {
  layers::ModelSpec model = start_model("", layers);
  for (auto& layer : model.layers) {
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) add_plain(layer, std::string("self_attn.") + name, kHidden, kHidden, 0);
    add_plain(layer, "self_attn.o_proj", kHidden, kHidden, 1);
    layers::MoeSpec moe = start_moe(layer, block + ".gate", block + ".experts", experts);
    add_experts(layer, moe, names);
    finish_moe(layer, std::move(moe));
  }
  return model;
}

/// DeepSeek-V3: latent attention, the first `dense` layers without experts, the others with a shared expert as well.
inline layers::ModelSpec tiny_deepseek(int64_t layers, int64_t dense, int64_t experts) {
  layers::ModelSpec model = start_model("", layers);
  for (auto& layer : model.layers) {
    add_plain(layer, "self_attn.q_a_proj", kHidden, kHidden, 0);
    add_plain(layer, "self_attn.kv_a_proj_with_mqa", kHidden, kHidden, 0);
    add_plain(layer, "self_attn.q_b_proj", kHidden, kHidden, 1);
    add_plain(layer, "self_attn.kv_b_proj", kHidden, kHidden, 2);
    add_plain(layer, "self_attn.o_proj", kHidden, kHidden, 3);
    if (layer.index < dense) {
      add_swiglu(layer, "mlp", 4 * kIntermediate, 4);
      continue;
    }
    layers::MoeSpec moe = start_moe(layer, "mlp.gate", "mlp.experts", experts);
    layer.tensors.push_back({moe.router.module + ".e_score_correction_bias", {experts}});
    add_experts(layer, moe, {"gate_proj", "up_proj", "down_proj"});
    add_swiglu(layer, "mlp.shared_experts", kIntermediate, 4);
    finish_moe(layer, std::move(moe));
  }
  return model;
}

/// Llama 4's text part: all names below language_model, stacked experts.
inline layers::ModelSpec tiny_llama4(int64_t layers, int64_t experts) {
  layers::ModelSpec model = start_model("language_model.", layers);
  for (auto& layer : model.layers) {
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) add_plain(layer, std::string("self_attn.") + name, kHidden, kHidden, 0);
    add_plain(layer, "self_attn.o_proj", kHidden, kHidden, 1);
    layers::MoeSpec moe = start_moe(layer, "feed_forward.router", "feed_forward.experts", experts);
    add_stacked_experts(layer, moe);
    add_swiglu(layer, "feed_forward.shared_expert", kIntermediate, 4);
    finish_moe(layer, std::move(moe));
  }
  return model;
}

}  // namespace ptq::test
