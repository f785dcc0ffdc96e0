#pragma once
// 4-bit weights with the least error in what a linear gives: row scales by clipping, then every column rounded with feedback of the errors
// of the columns before it (GPTQ, Frantar et al. 2022, in the form of LDLQ, Chee et al. 2023), both under the Gram matrix of the inputs.

#include <vector>

#include "kernels/core/tensor.h"
#include "recipes/encoding.h"
#include "recipes/gram.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

/// The Gram matrix of one smoothed input, ready for all linears that read it.
class Curvature {
 public:
  Curvature() = default;
  /// Takes over the blocks and multiplies them by factors from both sides: the Gram matrix of x·factors. factors [K] f32, or undefined.
  Curvature(std::vector<GramBlock> blocks, const Tensor& factors);
  bool defined() const { return !blocks_.empty(); }
  const std::vector<GramBlock>& blocks() const { return blocks_; }

  /// How a block's columns feed errors forward: `feedback` as kernels::feedback_factor makes it, of the columns in `order`, those with the
  /// largest diagonal first.
  struct Factor {
    std::vector<int32_t> order;
    Tensor feedback;
  };
  /// Makes the factors, by block: another K² f32.
  void factor();
  const std::vector<Factor>& factors() const { return factors_; }

 private:
  std::vector<GramBlock> blocks_;
  std::vector<Factor> factors_;
};

/// Does this format's weight have a grid that the solver knows: INT4 and NVFP4?
bool is_solvable(Format format);

/// Row scales [rows, in/group] of `weight` [rows, in] f32: of least error under the curvature if `clip`, else min-max.
Tensor solve_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales, const Curvature& curvature, bool clip);
/// Codes of least error. `weight` [rows, in] f32 becomes what is stored, exactly: numbers of the format's grid times their scales.
/// `row_scales` are those of solve_row_scales on entry and fitted to the codes afterwards. First error feedback, then descent code by
/// code, the scales fitted to the codes, and descent again: each lowers the same loss. The curvature has its factors.
void solve_codes(const Encoding& encoding, Tensor& weight, Tensor& row_scales, const LinearScales& scales, const Curvature& curvature);
}  // namespace ptq::recipes
