#pragma once
// Which rows of which Megatron arrays make up each Hugging Face tensor. Layouts differ by rows only: query, key and value rows in groups,
// gate above up, experts stacked. So every tensor is a list of runs of rows, one below another, and rows of it are read from just the runs
// that hold them.

#include <map>
#include <string>
#include <vector>

#include "layers/model_spec.h"
#include "runner/megatron_arrays.h"

namespace ptq::runner {

/// Rows begin .. begin + count of what an array has at `index`.
struct SourceRows {
  const checkpoint::ArrayEntry* array = nullptr;
  Shape index;
  int64_t begin = 0, count = 0;
};

struct MappedTensor {
  DType dtype = DType::kBF16;  ///< as it is shown; the arrays' own but for norms
  Shape shape;
  std::vector<SourceRows> rows;
};

class MegatronMap {
 public:
  /// `norms`: the dtype norms are shown in, which frameworks keep in F32 beside BF16 linears.
  MegatronMap(MegatronArrays& arrays, DType norms) : arrays_(arrays), norms_(norms) {}

  MegatronArrays& arrays() { return arrays_; }
  const std::map<std::string, MappedTensor>& tensors() const { return tensors_; }

  /// The first of these arrays of a layer that is there. Throws a data Error that names `tensor` when none is.
  SourceArray any_of(const LayerNames& layer, const std::vector<std::string>& names, const std::string& tensor);
  /// Throws a data Error unless the array has this shape.
  void check_shape(const SourceArray& array, const Shape& shape, const std::string& tensor) const;

  /// A tensor that is an array as it is. `is_norm`: shown in the dtype of norms.
  void add(const std::string& tensor, const SourceArray& array, const Shape& shape, bool is_norm = false);
  /// A tensor of these runs of the array's rows.
  struct Run {
    int64_t begin, count;
  };
  void add_rows(const std::string& tensor, const SourceArray& array, const std::vector<Run>& runs);

 private:
  Error missing(const std::string& tensor, const std::vector<std::string>& names) const;

  MegatronArrays& arrays_;
  DType norms_;
  std::map<std::string, MappedTensor> tensors_;
};

/// Adds every tensor of a layer. Throws a data Error for arrays that are missing or of other shapes than config.json says, a user Error for
/// a block whose layout is not known.
void map_layer(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer);
/// The shape that config.json gives a tensor of the layer.
const Shape& shape_of(const layers::LayerSpec& layer, const std::string& tensor);
/// Parts of a layer.
void map_attention(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::AttentionSpec& attention);
void map_latent_attention(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer,
                          const layers::LatentAttentionSpec& attention);
void map_experts(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::MoeSpec& moe);
/// A linear that is an array of its own: `name` + ".weight" and, where it has one, ".bias".
void map_linear(MegatronMap& map, const LayerNames& names, const layers::LinearSpec& linear, const std::string& name);
/// Gate above up in `name`.linear_fc1, or in its halves _w and _v, and down in `name`.linear_fc2.
void map_mlp(MegatronMap& map, const LayerNames& names, const layers::LayerSpec& layer, const layers::MlpSpec& mlp,
             const std::string& name);

}  // namespace ptq::runner
