#pragma once
// A training checkpoint of arrays in memory, and one made of a Hugging Face model: names and layouts as Megatron-core has them, written
// down apart from the program's own.

#include <map>
#include <string>
#include <vector>

#include "checkpoint/array_store.h"
#include "tests/support/model_files.h"

namespace ptq::test {

class MemoryArrays : public checkpoint::ArrayStore {
 public:
  explicit MemoryArrays(const StoredTensors& arrays) : contents_(arrays) {
    path_ = "memory";
    for (const auto& [name, array] : arrays) arrays_[name] = {name, *dtype_from_name(array.dtype), array.shape};
  }

  std::vector<std::string> files() const override { return {}; }
  void read_box(const checkpoint::ArrayEntry& array, const Shape& begin, const Shape& sizes, std::byte* out) const override {
    const StoredTensor& content = contents_.at(array.name);
    const int64_t width = dtype_bytes(array.dtype), count = element_count(sizes);
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, element = 0, stride = 1;
      for (size_t d = sizes.size(); d-- > 0;) {
        element += (begin[d] + rest % sizes[d]) * stride;
        rest /= sizes[d];
        stride *= array.shape[d];
      }
      const char* const from = content.bytes.data() + element * width;
      std::copy(from, from + width, reinterpret_cast<char*>(out) + i * width);
    }
    bytes_read_ += count * width;
  }

 private:
  StoredTensors contents_;
};

/// Rows below one another.
inline StoredTensor rows_of(const std::vector<StoredTensor>& parts) {
  StoredTensor all = parts.front();
  for (size_t i = 1; i < parts.size(); ++i) {
    all.shape[0] += parts[i].shape[0];
    all.bytes += parts[i].bytes;
  }
  return all;
}

inline StoredTensor rows_of(const StoredTensor& tensor, int64_t begin, int64_t count) {
  const size_t row = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
  StoredTensor rows{tensor.dtype, tensor.shape, tensor.bytes.substr(static_cast<size_t>(begin) * row, static_cast<size_t>(count) * row)};
  rows.shape[0] = count;
  return rows;
}

/// A Hugging Face checkpoint in Megatron-core's layout with numbered layers; the vocabulary padded to `rows`. Layers from `layers` on are
/// those of multi-token prediction.
inline StoredTensors to_megatron(const StoredTensors& tensors, int64_t kv_heads, int64_t layers, int64_t rows) {
  static const std::map<std::string, std::string> kRenamed{{"self_attn.o_proj", "self_attention.linear_proj"},
                                                           {"self_attn.q_norm", "self_attention.q_layernorm"},
                                                           {"self_attn.k_norm", "self_attention.k_layernorm"},
                                                           {"self_attn.q_a_proj", "self_attention.linear_q_down_proj"},
                                                           {"self_attn.q_a_layernorm", "self_attention.q_layernorm"},
                                                           {"self_attn.q_b_proj", "self_attention.linear_q_up_proj"},
                                                           {"self_attn.kv_a_proj_with_mqa", "self_attention.linear_kv_down_proj"},
                                                           {"self_attn.kv_a_layernorm", "self_attention.kv_layernorm"},
                                                           {"self_attn.kv_b_proj", "self_attention.linear_kv_up_proj"},
                                                           {"input_layernorm", "input_layernorm"},
                                                           {"post_attention_layernorm", "pre_mlp_layernorm"},
                                                           {"mlp.gate", "mlp.router"},
                                                           {"block_sparse_moe.gate", "mlp.router"}};
  StoredTensors arrays;
  for (const auto& [name, tensor] : tensors) {
    if (!name.starts_with("model.layers.")) {
      const bool is_norm = name.starts_with("model.norm");
      StoredTensor padded = tensor;
      if (!is_norm) {
        padded.bytes.resize(padded.bytes.size() / static_cast<size_t>(padded.shape[0]) * static_cast<size_t>(rows), '\x7f');
        padded.shape[0] = rows;
      }
      arrays[is_norm                    ? "decoder.final_layernorm" + name.substr(name.rfind('.'))
             : name == "lm_head.weight" ? "output_layer.weight"
                                        : "embedding.word_embeddings.weight"] = padded;
      continue;
    }
    const size_t number_end = name.find('.', 13), part = name.rfind('.');
    const int64_t number = std::stoll(name.substr(13, number_end - 13));
    const std::string hf = name.substr(0, number_end + 1), kind = name.substr(part);
    std::string module = name.substr(number_end + 1, part - number_end - 1);
    const std::string mtp = "mtp.layers." + std::to_string(number - layers) + ".";
    const std::string layer = number < layers ? "decoder.layers." + std::to_string(number) + "." : mtp + "transformer_layer.";
    const auto other = [&](const std::string& sibling) {
      return tensors.at(name.substr(0, name.rfind('.', part - 1) + 1) + sibling + kind);
    };
    if (module == "embed_tokens" || module == "shared_head.head") continue;  // Megatron shares the model's own
    if (module == "enorm" || module == "hnorm" || module == "eh_proj" || module == "shared_head.norm") {
      arrays[mtp + (module == "shared_head.norm" ? "final_layernorm" : module) + kind] = tensor;
    } else if (kind == ".e_score_correction_bias") {
      arrays[layer + "mlp.router.expert_bias"] = tensor;
    } else if (module == "self_attn.q_proj") {
      const StoredTensor k = other("k_proj"), v = other("v_proj");
      std::vector<StoredTensor> groups;
      for (int64_t g = 0; g < kv_heads; ++g)
        for (const StoredTensor* of : {&tensor, &k, &v})
          groups.push_back(rows_of(*of, g * of->shape[0] / kv_heads, of->shape[0] / kv_heads));
      arrays[layer + "self_attention.linear_qkv" + kind] = rows_of(groups);
    } else if (const auto renamed = kRenamed.find(module); renamed != kRenamed.end()) {
      arrays[layer + renamed->second + kind] = tensor;
    } else if (const std::string linear = module.substr(module.rfind('.') + 1); linear != "k_proj" && linear != "v_proj") {
      std::string mlp = "mlp." + module.substr(module.find('.') + 1, module.rfind('.') - module.find('.'));
      if (const size_t experts = mlp.find("mlp.experts."); experts == 0) mlp.insert(12, "experts.");
      if (linear == "down_proj" || linear == "w2") arrays[layer + mlp + "linear_fc2" + kind] = tensor;
      if (linear == "gate_proj") arrays[layer + mlp + "linear_fc1" + kind] = rows_of({tensor, other("up_proj")});
      if (linear == "w1") arrays[layer + mlp + "linear_fc1" + kind] = rows_of({tensor, other("w3")});
      if (linear == "up_proj" && !tensors.contains(hf + module.substr(0, module.rfind('.') + 1) + "gate_proj" + kind))
        arrays[layer + mlp + "linear_fc1" + kind] = tensor;
    }
  }
  return arrays;
}

/// Numbered layers as one array each with a dimension of layers in front.
inline StoredTensors stacked(const StoredTensors& arrays, int64_t layers) {
  StoredTensors all;
  for (const auto& [name, array] : arrays) {
    const std::string first = "decoder.layers.0.";
    if (!name.starts_with("decoder.layers.")) all[name] = array;
    if (!name.starts_with(first)) continue;
    StoredTensor stack{array.dtype, array.shape, ""};
    stack.shape.insert(stack.shape.begin(), layers);
    for (int64_t i = 0; i < layers; ++i)
      stack.bytes += arrays.at("decoder.layers." + std::to_string(i) + "." + name.substr(first.size())).bytes;
    all["decoder.layers." + name.substr(first.size())] = stack;
  }
  return all;
}

}  // namespace ptq::test
