#pragma once
// The end of an unquantized model, and the way back from it: final norm, lm_head and a cross-entropy.

#include <functional>
#include <map>
#include <string>

#include "parallel/mesh.h"
#include "runner/source_model.h"

namespace ptq::runner {

class LossHead {
 public:
  /// Reads the norm and the head: every rank a share of the rows, gathered. Holds [V, H] twice. Keeps a reference to `source`. Collective
  /// over the world.
  LossHead(const SourceModel& source, const parallel::Mesh& mesh, DType operand);

  /// ∂/∂hidden of Σ factor·cross-entropy, in nats. hidden [T, H] f32, before the final norm; labels(logits, t) gives those [n] i32 of the
  /// tokens from t on, whose logits are [n, V]. Returns [T, H] f32. Looks at each token by itself.
  Tensor gradient(const Tensor& hidden, const std::function<Tensor(const Tensor& logits, int64_t first)>& labels, float factor) const;
  /// With labels drawn from the model's own distribution, see kernels::draw_labels; chances [T] f32. The second moment of such gradients
  /// is the Fisher information: the curvature of the KL divergence, what a change of the outputs costs.
  Tensor drawn_gradient(const Tensor& hidden, const Tensor& chances) const;

 private:
  const SourceModel& source_;
  DType operand_;
  std::map<std::string, Tensor> vectors_;
  Tensor head_, transposed_;
};

/// A number of [0, 1) for one position of one row: the same wherever and whenever it is asked for.
float chance(int64_t seed, int64_t row, int64_t position);

}  // namespace ptq::runner
