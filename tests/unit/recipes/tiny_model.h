#pragma once
// A model's names and sizes without any weights, for tests of what is decided and written about them.

#include <string>

#include "layers/models/models.h"

namespace ptq::test {

/// Llama with H 32, 4 heads over 2 kv heads, I 64, V 50.
inline layers::ModelSpec tiny_llama(int64_t layers, bool tied = false, int64_t intermediate = 64) {
  return layers::describe_model(layers::Config({{"architectures", {"LlamaForCausalLM"}},
                                                {"hidden_size", 32},
                                                {"num_attention_heads", 4},
                                                {"num_key_value_heads", 2},
                                                {"intermediate_size", intermediate},
                                                {"num_hidden_layers", layers},
                                                {"vocab_size", 50},
                                                {"tie_word_embeddings", tied}},
                                               "config.json"));
}

}  // namespace ptq::test
