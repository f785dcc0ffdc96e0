#pragma once
// One decoder layer computed: weights of this rank's rows in, hidden states changed in place. Split along output rows only: what a linear
// makes here is a column slice, and all-gathering it gives every tensor rank the whole, each element computed by one rank alone. So the
// bits do not depend on the number of tensor ranks.

#include <map>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"
#include "layers/model_spec.h"
#include "layers/rope.h"
#include "parallel/communicator.h"
#include "parallel/shard.h"

namespace ptq::layers {

/// A micro-batch: whole sequences one after the other, no padding.
struct Batch {
  int64_t first_row = 0;        ///< index of its first sequence among all calibration rows
  int64_t row_step = 1;         ///< from one of its sequences to the next among all
  parallel::Range all_rows;     ///< what the data ranks have of all rows in this micro-batch and its peers together
  std::vector<int64_t> starts;  ///< B+1 token offsets, starts[0] = 0
  Tensor positions;             ///< [T] i32, counted from each sequence's start
  int64_t tokens() const { return starts.back(); }
  /// The sequence a token belongs to, as an index among all rows.
  int64_t row_of(int64_t token) const;
};
Batch make_batch(int64_t first_row, const std::vector<int64_t>& lengths);

struct LinearWeights {
  Tensor weight;  ///< [O of this rank, C] bf16 | f16 | f32
  Tensor bias;    ///< [O of this rank], or undefined
};

struct LayerWeights {
  std::vector<LinearWeights> linears;     ///< by index in LayerSpec::linears; those of routed experts are empty
  std::map<std::string, Tensor> vectors;  ///< norms, routers, sinks by tensor name
};

/// Which tokens reached an expert, one entry per row of what it reads.
struct ExpertVisits {
  bool forced = false;                 ///< tokens of the statistics-only pass
  const int64_t* positions = nullptr;  ///< of the tokens among all ranks' tokens, ascending within a call
  const float* weights = nullptr;      ///< the router's
};

/// What calibration or evaluation wants to see or change on the way. The default does nothing.
class LayerHooks {
 public:
  virtual ~LayerHooks() = default;
  /// x [T, C] is what the linears of `input_group` read: whole rows, the same on every tensor rank; bf16 or f32.
  virtual void linear_input(const LayerSpec&, int /*input_group*/, const Tensor& /*x*/, const Batch&) {}
  /// x [n, C] is what `linear` of routed expert `expert` reads: the tokens that reached it. Once for gate and up together.
  virtual void expert_input(const LayerSpec&, int /*expert*/, int /*linear*/, const Tensor& /*x*/, const ExpertVisits&) {}
  /// What this one linear is to read instead of x: x itself, or a quantized copy [T, C] f32.
  virtual Tensor quantized_input(const LayerSpec&, int /*linear*/, const Tensor& x) { return x; }
  /// k, v [T, kv heads of this rank · head_dim] f32 after rope, as a KV cache would store them; may be changed in place.
  virtual void key_value(const LayerSpec&, Tensor& /*k*/, Tensor& /*v*/, const Batch&) {}
};

/// Scratch that lives as long as the sweep, so that a micro-batch allocates nothing.
class Workspace {
 public:
  /// Memory for this use, at least as large as asked, contents undefined. A second call with the same name reuses it.
  Tensor get(const std::string& name, Shape shape, DType dtype);
  /// Of all buffers together.
  int64_t bytes() const;

 private:
  std::map<std::string, Tensor> buffers_;
};

struct ForwardContext {
  DType operand = DType::kBF16;  ///< dtype of matrix product inputs: bf16, or f32 for exact checks
  const RopeTables* rope = nullptr;
  int64_t rotary_dim = 0;
  parallel::Communicator* tensor = nullptr;
  LayerHooks* hooks = nullptr;
  Workspace* workspace = nullptr;
};

/// hidden [T, H] f32 += every block of the layer but routed experts, whose input x [T, H] (the norm of hidden before any expert's output)
/// is returned for forward_experts; undefined for layers without. Communicates over the tensor group: every tensor rank calls it with the
/// same batch.
Tensor forward_layer(const LayerSpec& layer, const LayerWeights& weights, const Batch& batch, const ForwardContext& context,
                     Tensor& hidden);

/// out = norm(x), x [T, H] f32, out bf16 | f32. `vectors` holds the norm's tensors.
void apply_norm(const NormSpec& norm, const std::map<std::string, Tensor>& vectors, const Tensor& x, Tensor& out);

}  // namespace ptq::layers
