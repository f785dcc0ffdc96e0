// Writes a Llama-shaped checkpoint of random bf16 weights for the benches, one shard file per ~2 GB, streamed. Usage:
//   make_model FOLDER hidden layers intermediate heads kv_heads head_dim vocab [samples tokens]
// Weights are uniform with the standard deviation 0.02 that initialisation would give; the same on every run. With samples and tokens it
// also writes data.safetensors with random input_ids.

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>

#include "checkpoint/files.h"
#include "checkpoint/output_layout.h"

using namespace ptq;

namespace {

uint64_t next(uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/// bf16 numbers uniform in ±0.0346 (or 1 ± 0.1 for norms).
void fill(const checkpoint::OutputTensor& tensor, uint64_t seed, std::vector<uint16_t>& values) {
  values.resize(static_cast<size_t>(element_count(tensor.shape)));
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  const bool is_norm = tensor.shape.size() == 1;
  for (auto& value : values) {
    const float uniform = static_cast<float>(static_cast<int32_t>(next(state) >> 32)) * 0x1p-31f;
    value = to_bf16(is_norm ? 1.0f + 0.1f * uniform : 0.0346f * uniform).bits;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9 && argc != 11) {
    std::fputs("usage: make_model FOLDER hidden layers intermediate heads kv_heads head_dim vocab [samples tokens]\n", stderr);
    return 2;
  }
  const std::string folder = argv[1];
  const auto number = [&](int i) { return std::atoll(argv[i]); };
  const int64_t hidden = number(2), layers = number(3), intermediate = number(4), heads = number(5), kv_heads = number(6),
                head_dim = number(7), vocab = number(8);
  std::vector<checkpoint::OutputTensor> tensors;
  const auto add = [&](const std::string& name, Shape shape) { tensors.push_back({name, DType::kBF16, std::move(shape)}); };
  add("model.embed_tokens.weight", {vocab, hidden});
  for (int64_t l = 0; l < layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l);
    add(layer + ".input_layernorm.weight", {hidden});
    add(layer + ".self_attn.q_proj.weight", {heads * head_dim, hidden});
    add(layer + ".self_attn.k_proj.weight", {kv_heads * head_dim, hidden});
    add(layer + ".self_attn.v_proj.weight", {kv_heads * head_dim, hidden});
    add(layer + ".self_attn.o_proj.weight", {hidden, heads * head_dim});
    add(layer + ".post_attention_layernorm.weight", {hidden});
    add(layer + ".mlp.gate_proj.weight", {intermediate, hidden});
    add(layer + ".mlp.up_proj.weight", {intermediate, hidden});
    add(layer + ".mlp.down_proj.weight", {hidden, intermediate});
  }
  add("model.norm.weight", {hidden});
  add("lm_head.weight", {vocab, hidden});

  checkpoint::make_folder(folder);
  const auto layout = checkpoint::OutputLayout::plan(tensors, 2'000'000'000);
  checkpoint::ShardWriter::create(folder, layout);
  auto writer = checkpoint::ShardWriter::open(folder, layout);
  std::vector<uint16_t> values;
  for (size_t i = 0; i < tensors.size(); ++i) {
    fill(tensors[i], i + 1, values);
    writer.write(tensors[i].name, 0, values.data(), tensors[i].bytes());
  }
  writer.sync();
  if (!layout.index_json().empty()) checkpoint::write_text(folder + "/model.safetensors.index.json", layout.index_json());
  const checkpoint::Json config{{"architectures", {"LlamaForCausalLM"}},
                                {"model_type", "llama"},
                                {"hidden_size", hidden},
                                {"num_hidden_layers", layers},
                                {"intermediate_size", intermediate},
                                {"num_attention_heads", heads},
                                {"num_key_value_heads", kv_heads},
                                {"head_dim", head_dim},
                                {"vocab_size", vocab},
                                {"rms_norm_eps", 1e-5},
                                {"rope_theta", 500000.0},
                                {"max_position_embeddings", 8192},
                                {"eos_token_id", 1},
                                {"torch_dtype", "bfloat16"}};
  checkpoint::write_text(folder + "/config.json", config.dump(2) + "\n");
  if (argc == 11) {
    const int64_t samples = number(9), tokens = number(10);
    std::vector<int32_t> ids(static_cast<size_t>(samples * tokens));
    uint64_t state = 7;
    for (auto& id : ids) id = static_cast<int32_t>(next(state) % static_cast<uint64_t>(vocab));
    checkpoint::write_safetensors(folder + "/data.safetensors", {{"input_ids", DType::kI32, {samples, tokens}}}, {ids.data()});
  }
  fmt::print("{}: {:.1f} M parameters, {:.2f} GB\n", folder, static_cast<double>(layout.tensor_bytes()) / 2e6,
             static_cast<double>(layout.tensor_bytes()) / 1e9);
}
