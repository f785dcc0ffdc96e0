#pragma once
// Mixture-of-experts checkpoints for tests: random bf16 weights without a tokenizer, one family for each way in which models store their
// experts, and the number formats in which publishers quantize them.

#include <cstdint>
#include <string>

#include "tests/support/model_files.h"

namespace ptq::test {

/// Sizes; a family leaves alone what it does not have.
struct TinyMoe {
  int64_t hidden = 64, intermediate = 32, layers = 2, experts = 4, top_k = 2, heads = 4, kv_heads = 2, vocab = 128;
  int64_t mtp_layers = 0;   ///< DeepSeek: layers of multi-token prediction behind the last
  bool has_vision = false;  ///< Llama 4: the multimodal checkpoint, of which the language model is a part
  uint64_t seed = 1;
};

/// Experts one by one, softmax routing, a mixture in every layer: "block_sparse_moe.experts.3.w1.weight".
void make_tiny_mixtral(const std::string& folder, const TinyMoe& shape = {});
/// Latent attention, a dense first layer, grouped routing with a correction bias, a shared expert. Experts must be even.
void make_tiny_deepseek(const std::string& folder, const TinyMoe& shape = {});
/// Stacked experts whose input is weighted, one a token, and a shared expert in every layer: "feed_forward.experts.gate_up_proj" [E, in,
/// out].
void make_tiny_llama4(const std::string& folder, const TinyMoe& shape = {});
/// Stacked experts with biases, attention sinks, a clamped activation.
void make_tiny_gpt_oss(const std::string& folder, const TinyMoe& shape = {});

/// Gives every linear of the layers random FP8 codes with a scale for each block of 128 x 128, and config.json the words for it.
/// `decoded`, unless empty, becomes the same checkpoint in bf16.
void store_in_fp8_blocks(const std::string& folder, const std::string& decoded = "");
/// The same with MXFP4 for stacked experts, as gpt-oss is published. Their inputs must be a multiple of 32.
void store_in_mxfp4(const std::string& folder, const std::string& decoded = "");

/// The bf16 weight that FP8 codes and the scales of their blocks of 128 x 128 stand for.
StoredTensor decode_fp8_blocks(const StoredTensor& codes, const StoredTensor& scales);

}  // namespace ptq::test
