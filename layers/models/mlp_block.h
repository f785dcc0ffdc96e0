#pragma once
// The MLP: of a dense layer, behind post_attention_layernorm, and of the shared experts of a mixture, which are one too.

#include <string>

#include "layers/models/decoder.h"

namespace ptq::layers {

struct MlpShape {
  int64_t intermediate = 0;
  bool bias = false;
  MlpSpec::Kind kind = MlpSpec::Kind::kSiluGated;
  std::string module = "mlp";  ///< follows the layer's prefix
};

/// Adds gate_proj (of a gated kind), up_proj and down_proj. gate and up read `input_group` and share a scale; down has both of its own.
MlpSpec add_mlp_linears(LayerSpec& layer, const MlpShape& shape, int64_t hidden, int input_group);

/// Adds the norm and the block of a dense layer.
void add_mlp(LayerSpec& layer, const ModelSpec& model, const MlpShape& shape);

}  // namespace ptq::layers
