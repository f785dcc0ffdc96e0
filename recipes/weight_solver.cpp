#include "recipes/weight_solver.h"

#include <algorithm>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::recipes {

namespace {

/// Of the mean of the diagonal, as GPTQ's authors have it.
constexpr float kDamping = 0.01f;
/// Passes of descent over the codes, before and after the scales are fitted to them.
constexpr int kDescents = 2;

bool is_nvfp4(Format format) { return format == Format::kNvfp4 || format == Format::kNvfp4WeightOnly; }

kernels::FeedbackGrid grid_of(Format format) {
  if (is_nvfp4(format)) return {kernels::FeedbackGrid::Kind::kE2M1, 0};
  return {kernels::FeedbackGrid::Kind::kInt4, format == Format::kInt4Fp8 ? -7 : -8};
}

/// Shrinking a group's range costs its largest weights and buys resolution for the rest. NVFP4's block scales are coarse, so that a larger
/// range may fit the others better: 1.5 puts the largest weight on 4 (four over six).
const std::vector<float>& ratios_of(Format format) {
  static const std::vector<float> int4{1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f, 0.55f, 0.5f, 0.45f, 0.4f};
  static const std::vector<float> nvfp4{1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f,
                                        0.6f, 0.55f, 0.5f, 1.1f,  1.2f, 1.3f,  1.4f, 1.5f};
  return is_nvfp4(format) ? nvfp4 : int4;
}

Tensor in_order(const Tensor& x, const std::vector<int32_t>& columns) {
  Tensor out = Tensor::empty({x.dim(0), static_cast<int64_t>(columns.size())}, DType::kF32);
  kernels::gather_columns(x, columns, out);
  return out;
}

/// G with rows and columns in that order.
Tensor reordered(const Tensor& gram, const std::vector<int32_t>& order) {
  Tensor out = Tensor::empty(gram.shape(), DType::kF32);
  const std::vector<int64_t> rows(order.begin(), order.end());
  kernels::gather_rows(gram, rows, {}, out);
  return in_order(out, order);
}

}  // namespace

Curvature::Curvature(std::vector<GramBlock> blocks, const Tensor& factors) : blocks_(std::move(blocks)) {
  if (!factors.defined()) return;
  for (GramBlock& block : blocks_) kernels::scale_gram(block.values, factors.rows(block.columns.begin, block.columns.end));
}

void Curvature::factor() {
  require(factors_.empty(), "a curvature is factored once");
  for (const GramBlock& block : blocks_) {
    const auto n = static_cast<size_t>(block.columns.size());
    Factor factor;
    factor.order.resize(n);
    std::iota(factor.order.begin(), factor.order.end(), 0);
    const auto* values = block.values.data<float>();
    std::stable_sort(factor.order.begin(), factor.order.end(), [&](int32_t a, int32_t b) {
      return values[static_cast<size_t>(a) * (n + 1)] > values[static_cast<size_t>(b) * (n + 1)];
    });
    factor.feedback = reordered(block.values, factor.order);
    kernels::feedback_factor(factor.feedback, kDamping);
    factors_.push_back(std::move(factor));
  }
}

bool is_solvable(Format format) { return is_nvfp4(format) || format == Format::kInt4 || format == Format::kInt4Fp8; }

Tensor solve_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales, const Curvature& curvature, bool clip) {
  Tensor row_scales = minmax_row_scales(encoding, weight, scales);
  if (!clip || !curvature.defined() || weight.dim(0) == 0) return row_scales;
  const std::vector<float>& ratios = ratios_of(encoding.format);
  const int64_t group = group_size(encoding);
  for (const GramBlock& block : curvature.blocks()) {
    const Tensor part = columns_of(weight, block.columns);
    const parallel::Range groups{block.columns.begin / group, block.columns.end / group};
    Tensor found = Tensor::empty({weight.dim(0), groups.size()}, row_scales.dtype());
    if (is_nvfp4(encoding.format))
      kernels::search_nvfp4_scales(part, block.values, scales.weight_scale, ratios, found);
    else
      kernels::search_group_scales(part, block.values, group, grid_of(encoding.format), 7.0f, ratios, found);
    if (curvature.blocks().size() == 1)
      row_scales = found;
    else
      kernels::place_columns(found, groups.begin, row_scales);
  }
  return stored_row_scales(encoding, row_scales);
}

namespace {

/// The step of every group, f32: what codes are multiplied by.
Tensor steps_of(const Encoding& encoding, const Tensor& row_scales, const LinearScales& scales) {
  if (!is_nvfp4(encoding.format)) return row_scales;
  Tensor steps = Tensor::empty(row_scales.shape(), DType::kF32);
  kernels::dequantize_fp8(row_scales, scales.weight_scale, steps);
  return steps;
}

/// The row scales behind steps.
Tensor row_scales_of(const Encoding& encoding, const Tensor& steps, const LinearScales& scales) {
  if (!is_nvfp4(encoding.format)) return steps;
  Tensor codes = Tensor::empty(steps.shape(), DType::kF8E4M3);
  kernels::quantize_fp8(steps, scales.weight_scale, kernels::Fp8Quotient::kExact, codes);
  return codes;
}

kernels::StepGrid step_grid(const Encoding& encoding, const LinearScales& scales) {
  using Kind = kernels::StepGrid::Kind;
  if (is_nvfp4(encoding.format)) return {Kind::kE4M3Times, scales.weight_scale};
  return {encoding.dialect == Dialect::kCompressedTensors ? Kind::kBF16 : Kind::kF32, 1.0f};
}

/// A copy of columns [block] of `steps`, whose columns are groups of `group`.
Tensor steps_in(const Tensor& steps, const GramBlock& block, int64_t group) {
  Tensor mine = Tensor::empty({steps.dim(0), block.columns.size() / group}, DType::kF32);
  kernels::slice_columns(steps, block.columns.begin / group, mine);
  return mine;
}

}  // namespace

void solve_codes(const Encoding& encoding, Tensor& weight, Tensor& row_scales, const LinearScales& scales, const Curvature& curvature) {
  require(curvature.factors().size() == curvature.blocks().size(), "error feedback needs a factored curvature");
  if (weight.dim(0) == 0) return;
  const int64_t group = group_size(encoding);
  const kernels::FeedbackGrid grid = grid_of(encoding.format);
  Tensor steps = steps_of(encoding, row_scales, scales);
  for (size_t b = 0; b < curvature.blocks().size(); ++b) {
    const GramBlock& block = curvature.blocks()[b];
    const Curvature::Factor& factor = curvature.factors()[b];
    const int64_t width = block.columns.size();
    const Tensor target = columns_of(weight, block.columns);
    Tensor mine = steps_in(steps, block, group);
    std::vector<int32_t> step_in_order, step_of;
    for (const int32_t column : factor.order) step_in_order.push_back(static_cast<int32_t>(column / group));
    for (int64_t c = 0; c < width; ++c) step_of.push_back(static_cast<int32_t>(c / group));
    Tensor ordered = in_order(target, factor.order), codes = Tensor::empty(ordered.shape(), DType::kF32);
    kernels::error_feedback(ordered, factor.feedback, mine, step_in_order, grid);
    kernels::scatter_columns(ordered, factor.order, codes);
    codes = rounded_weight(encoding, codes, row_scales_of(encoding, mine, scales), scales);
    kernels::descend_codes(target, codes, block.values, mine, step_of, grid, kDescents);
    kernels::refit_steps(target, codes, block.values, group, step_grid(encoding, scales), 1, mine);
    kernels::descend_codes(target, codes, block.values, mine, step_of, grid, kDescents);
    const Tensor found = row_scales_of(encoding, mine, scales);
    // Channels that were never active have no say in any sum, nor did the fit of the scales move them.
    const auto* gram = block.values.data<float>();
    Tensor plain;
    for (int64_t c = 0; c < width; ++c) {
      if (gram[c * (width + 1)] > 0) continue;
      if (!plain.defined()) plain = rounded_weight(encoding, target, found, scales);
      for (int64_t r = 0; r < codes.dim(0); ++r) codes.data<float>()[r * width + c] = plain.data<float>()[r * width + c];
    }
    if (curvature.blocks().size() == 1) {
      weight = codes;
      row_scales = found;
      return;
    }
    kernels::place_columns(codes, block.columns.begin, weight);
    kernels::place_columns(found, block.columns.begin / group, row_scales);
  }
}

}  // namespace ptq::recipes
