#include "recipes/smoothing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "recipes/minmax.h"
#include "recipes/weight_solver.h"

namespace ptq::recipes {

namespace {

/// Enough rows of a weight to tell one exponent from another; fewer of wide ones, whose loss takes longer.
int64_t searched_rows_of(int64_t in) { return in <= 2048 ? 256 : 128; }

/// The activity of every channel, tied channels together: by `merge` of their values.
std::vector<double> tied(const Tensor& values, const std::vector<int32_t>& ties, bool mean) {
  const auto n = static_cast<size_t>(values.numel());
  std::vector<double> result(values.data<float>(), values.data<float>() + n);
  if (ties.empty()) return result;
  const int32_t groups = *std::max_element(ties.begin(), ties.end()) + 1;
  std::vector<double> merged(static_cast<size_t>(groups), 0), counts(static_cast<size_t>(groups), 0);
  for (size_t c = 0; c < n; ++c) {
    double& kept = merged[static_cast<size_t>(ties[c])];
    kept = mean ? kept + result[c] : std::max(kept, result[c]);
    counts[static_cast<size_t>(ties[c])] += 1;
  }
  for (size_t c = 0; c < n; ++c) {
    const auto tie = static_cast<size_t>(ties[c]);
    result[c] = mean ? merged[tie] / counts[tie] : merged[tie];
  }
  return result;
}

float allowed(double factor, int octaves) {
  const double bounded = std::clamp(factor, 1e-4, 1e4);
  return static_cast<float>(octaves == 0 ? bounded : std::exp2(octaves * std::nearbyint(std::log2(bounded) / octaves)));
}

}  // namespace

bool counts_activations(Format format) { return format == Format::kNvfp4 || format == Format::kInt8; }

Tensor reciprocal(const Tensor& factors) {
  Tensor out = Tensor::empty(factors.shape(), DType::kF32);
  std::transform(factors.data<float>(), factors.data<float>() + factors.numel(), out.data<float>(), [](float f) { return 1.0f / f; });
  return out;
}

Tensor norm_ratio(const Tensor& before, const Tensor& after, bool around_one) {
  const Tensor dividend = kernels::converted(before, DType::kF32), divisor = kernels::converted(after, DType::kF32);
  Tensor ratio = Tensor::empty(before.shape(), DType::kF32);
  const float one = around_one ? 1.0f : 0.0f;
  for (int64_t c = 0; c < ratio.numel(); ++c) {
    const float value = (dividend.data<float>()[c] + one) / (divisor.data<float>()[c] + one);
    ratio.data<float>()[c] = std::isfinite(value) && value > 0 ? value : 1.0f;
  }
  return ratio;
}

void merge_values(std::span<double> values, parallel::Communicator& ranks) {
  if (ranks.size() == 1) return;
  // Non-negative doubles are ordered as their bits are.
  std::vector<int64_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = std::bit_cast<int64_t>(values[i]);
  ranks.all_reduce_max(std::span<int64_t>(bits));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::bit_cast<double>(bits[i]);
}

Tensor smoothing_factors(SmoothingRule rule, const InputStatistics& input, const Tensor& weights, const FactorLimits& limits,
                         Exponents exponents) {
  const bool awq = rule == SmoothingRule::kAwq;
  const std::vector<double> largest = tied(input.amax, limits.ties, false), weight = tied(weights, limits.ties, awq),
                            usual = awq ? tied(input.mean_abs, limits.ties, true) : std::vector<double>();
  const double beta = awq ? exponents.beta : 1.0 - exponents.alpha;
  Tensor factors = Tensor::empty({input.amax.numel()}, DType::kF32);
  double least = 0, most = 0;
  std::vector<double> raw(largest.size(), 0);
  for (size_t c = 0; c < raw.size(); ++c) {
    const double activity = awq ? std::sqrt(usual[c] * largest[c]) : largest[c];
    if (!(activity > 0) || !(weight[c] > 0)) continue;
    raw[c] = std::pow(activity, exponents.alpha) / std::pow(weight[c], beta);
    least = least == 0 ? raw[c] : std::min(least, raw[c]);
    most = std::max(most, raw[c]);
  }
  const double middle = most > 0 ? std::sqrt(least * most) : 1.0;
  for (size_t c = 0; c < raw.size(); ++c) factors.data<float>()[c] = raw[c] == 0 ? 1.0f : allowed(raw[c] / middle, limits.octaves);
  return factors;
}

SmoothingLoss::SmoothingLoss(const SmoothedWeight& weight, const InputStatistics& input) : weight_(weight), input_(input) {
  stride_ = std::max<int64_t>(1, weight.out / searched_rows_of(weight.rows.dim(1)));
  searched_ = (weight.out + stride_ - 1) / stride_;
  first_ = (weight.first_row + stride_ - 1) / stride_;
  const int64_t end = weight.first_row + weight.rows.dim(0);
  const int64_t count = std::max<int64_t>(0, (end + stride_ - 1) / stride_ - first_);
  rows_ = Tensor::empty({count, weight.rows.dim(1)}, DType::kF32);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first_ + i) * stride_ - weight.first_row;
    Tensor out = rows_.rows(i, i + 1);
    kernels::convert(weight.rows.rows(row, row + 1), out);
  }
  if (counts_activations(weight.encoding.format) && input.sample.defined() && count > 0) {
    outputs_ = Tensor::empty({count, input.sample.dim(0)}, DType::kF32);
    kernels::matmul(rows_, input.sample, Tensor(), outputs_);
  }
}

void SmoothingLoss::evaluate(const Tensor& factors, std::span<double> losses) const {
  const int64_t count = rows_.dim(0), in = rows_.dim(1);
  if (count == 0) return;
  const Encoding& encoding = weight_.encoding;
  float amax = 0, input_amax = 0;
  for (int64_t c = 0; c < in; ++c) {
    amax = std::max(amax, weight_.column_amax.data<float>()[c] * factors.data<float>()[c]);
    input_amax = std::max(input_amax, input_.amax.data<float>()[c] / factors.data<float>()[c]);
  }
  std::vector<ScaleNote> unnoted;
  LinearScales scales;
  scales.weight_scale = weight_scale(encoding, amax, "", unnoted);
  scales.input_scale = input_scale(encoding, input_amax, "", unnoted);
  Tensor smoothed = Tensor::empty(rows_.shape(), DType::kF32);
  kernels::convert(rows_, smoothed);
  kernels::scale_columns(smoothed, factors);
  const Tensor row_scales = minmax_row_scales(encoding, smoothed, scales);
  Tensor rounded = rounded_weight(encoding, smoothed, row_scales, scales);
  std::vector<double> found(static_cast<size_t>(count), 0);
  const std::span<double> mine = losses.subspan(static_cast<size_t>(first_), static_cast<size_t>(count));
  if (outputs_.defined()) {
    // Both errors, of weights and of activations, in what the linear gives for the sampled tokens.
    Tensor x = Tensor::empty(input_.sample.shape(), DType::kF32);
    kernels::convert(input_.sample, x);
    kernels::scale_columns(x, reciprocal(factors));
    Encoding folded = encoding;
    folded.pre_quant_scale = false;
    fake_quantize_input(folded, scales, x);
    Tensor y = Tensor::empty(outputs_.shape(), DType::kF32);
    kernels::matmul(rounded, x, Tensor(), y);
    kernels::subtract_in_place(y, outputs_);
    if (input_.sample_weights.defined()) kernels::scale_columns(y, input_.sample_weights);
    kernels::row_dots(y, y, mine);
    for (double& loss : mine) loss *= input_.sample_worth;
    return;
  }
  kernels::scale_columns(rounded, reciprocal(factors));
  kernels::subtract_in_place(rounded, rows_);
  std::fill(mine.begin(), mine.end(), 0.0);
  for (const GramBlock& block : input_.gram) {
    const Tensor error = columns_of(rounded, block.columns);
    Tensor product = Tensor::empty(error.shape(), DType::kF32);
    kernels::matmul(error, block.values, Tensor(), product);
    kernels::row_dots(error, product, found);
    for (int64_t r = 0; r < count; ++r) mine[static_cast<size_t>(r)] += std::max(0.0, found[static_cast<size_t>(r)]);
  }
}

std::vector<double> shared_alphas(int64_t grid) {
  std::vector<double> alphas;
  const int64_t width = std::max<int64_t>(1, grid / 10);
  for (int64_t step = 0; step <= grid; step += width) alphas.push_back(static_cast<double>(step) / static_cast<double>(grid));
  return alphas;
}

ChosenSmoothing choose_smoothing(SmoothingRule rule, const std::vector<SmoothedWeight>& weights, const InputStatistics& input,
                                 const Tensor& magnitudes, const FactorLimits& limits, int64_t grid,
                                 const std::vector<double>& other_losses, parallel::Communicator& ranks) {
  std::vector<SmoothingLoss> losses;
  int64_t rows = 0;
  for (const SmoothedWeight& weight : weights) {
    losses.emplace_back(weight, input);
    rows += losses.back().searched_rows();
  }
  using Point = std::pair<double, double>;  // alpha, beta
  std::map<Point, double> found;
  const auto factors_of = [&](const Point& point) {
    return smoothing_factors(rule, input, magnitudes, limits, {point.first, point.second});
  };
  const auto look = [&](const std::vector<Point>& points) {
    std::vector<Point> fresh;
    for (const Point& point : points)
      if (point.first >= 0 && point.first <= 1 && point.second >= 0 && point.second <= 1 && !found.count(point)) fresh.push_back(point);
    std::vector<double> table(fresh.size() * static_cast<size_t>(rows), 0.0);
    for (size_t i = 0; i < fresh.size(); ++i) {
      const Tensor factors = factors_of(fresh[i]);
      size_t at = i * static_cast<size_t>(rows);
      for (const SmoothingLoss& loss : losses) {
        loss.evaluate(factors, std::span<double>(table).subspan(at, static_cast<size_t>(loss.searched_rows())));
        at += static_cast<size_t>(loss.searched_rows());
      }
    }
    merge_values(table, ranks);
    for (size_t i = 0; i < fresh.size(); ++i)
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) found[fresh[i]] += table[i * static_cast<size_t>(rows) + r];
  };
  const auto best = [&] {
    return std::min_element(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
  };
  const std::vector<double> alphas = shared_alphas(grid);
  if (!other_losses.empty()) {
    std::vector<Point> points;
    for (const double alpha : alphas) points.emplace_back(alpha, 0.0);
    look(points);
    for (size_t i = 0; i < points.size(); ++i) found[points[i]] += other_losses[i];
  } else {
    // SmoothQuant's weights go by 1 - alpha.
    const std::vector<double> betas = rule == SmoothingRule::kAwq ? std::vector<double>{0.0, 0.5, 1.0} : std::vector<double>{0.0};
    std::vector<Point> points;
    for (const double beta : betas)
      for (const double alpha : {0.0, 0.25, 0.5, 0.75, 1.0}) points.emplace_back(alpha, beta);
    look(points);
    for (double width = 0.125; width * static_cast<double>(grid) >= 1.0; width /= 2) {
      const Point center = best();
      points.clear();
      for (const double up : {-width, 0.0, width})
        for (const double side : {-2 * width, 0.0, 2 * width})
          if (betas.size() > 1 || side == 0) points.emplace_back(center.first + up, center.second + side);
      look(points);
    }
  }
  const Point point = best();
  return {{point.first, point.second}, factors_of(point), found.at(point), found.at({0.0, 0.0})};
}

}  // namespace ptq::recipes
