#pragma once
// Rotary embedding: inverse frequencies of every published scaling rule, and cos/sin tables. models.md-style names: theta, factor,
// original_max_position_embeddings. Tables are f32; angles are pos·f in f32, as transformers computes them.

#include <string>
#include <vector>

#include "kernels/core/tensor.h"
#include "layers/config.h"

namespace ptq::layers {

struct RopeSpec {
  std::string type = "default";  ///< default | linear | llama3 | yarn
  double theta = 10000.0;
  int64_t rotary_dim = 0;  ///< leading dims of a head that are rotated
  double factor = 1.0;
  double original_max_positions = 0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;               // llama3
  double beta_fast = 32.0, beta_slow = 1.0;                           // yarn
  double mscale = 0.0, mscale_all_dim = 0.0, attention_factor = 0.0;  // yarn; 0: not given
  bool truncate = true;                                               // yarn
  std::vector<float> frequencies;                                     ///< not empty: used as they are, whatever the type says
};

/// Reads rope_parameters, else rope_scaling + top-level keys. `head_dim` times partial_rotary_factor is the rotary width.
/// Throws a data Error for a type this project does not know, and for rope that differs by layer type.
RopeSpec read_rope(const Config& config, int64_t head_dim, double default_partial_factor = 1.0, double default_theta = 10000.0);

/// f_i for i in [0, rotary_dim/2), f32.
std::vector<float> inverse_frequencies(const RopeSpec& rope);
/// The factor on cos and sin (yarn's A); 1 for the other types.
float attention_factor(const RopeSpec& rope);
/// DeepSeek's own factor on the softmax scale, beside attention_factor: m², m = 0.1 · mscale_all_dim · ln factor + 1, for every scaled
/// type; 1 where mscale_all_dim is not given.
float softmax_factor(const RopeSpec& rope);

struct RopeTables {
  Tensor cos, sin;  ///< [positions, rotary_dim/2] f32
};
RopeTables make_rope_tables(const RopeSpec& rope, int64_t positions);

}  // namespace ptq::layers
