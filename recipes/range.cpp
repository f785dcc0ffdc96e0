#include "recipes/range.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "recipes/weight_solver.h"

namespace ptq::recipes {

namespace {

/// Weights of one scale each, [units, unit] as a view or a copy of weight [rows, in].
int64_t unit_of(const Encoding& encoding, const Tensor& weight) {
  const int64_t group = group_size(encoding);
  return group > 0 ? group : weight.dim(1);
}

/// The value that stands for a bin.
double center_of(size_t bin) { return bin == 0 ? 0.0 : 0.5 * (kernels::magnitude_edge(bin) + kernels::magnitude_edge(bin + 1)); }

}  // namespace

float percentile_amax(std::span<const int64_t> counts, double percentile, float amax) {
  const auto all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double below = 0;
  for (size_t bin = 0; bin < counts.size(); ++bin) {
    below += static_cast<double>(counts[bin]);
    if (below >= all * percentile / 100.0) return std::min(amax, static_cast<float>(kernels::magnitude_edge(bin + 1)));
  }
  return amax;
}

float mse_amax(Format format, std::span<const int64_t> counts, float amax) {
  if ((format != Format::kFp8 && format != Format::kInt8 && format != Format::kInt4Fp8) || !(amax > 0)) return amax;
  const bool is_int8 = format == Format::kInt8;
  std::vector<float> centers;
  std::vector<double> weights;
  for (size_t bin = 1; bin < counts.size(); ++bin)
    if (counts[bin] > 0) {
      centers.push_back(std::min(amax, static_cast<float>(center_of(bin))));
      weights.push_back(static_cast<double>(counts[bin]));
    }
  if (centers.empty()) return amax;
  Tensor values = Tensor::empty({1, static_cast<int64_t>(centers.size())}, DType::kF32);
  float best = amax;
  double least = -1;
  // 64 ranges in steps of about 4 %, down to a thirteenth of the largest.
  for (int step = 0; step < 64; ++step) {
    const float range = amax * std::exp2(-static_cast<float>(step) / 17.0f);
    std::copy(centers.begin(), centers.end(), values.data<float>());
    if (is_int8)
      kernels::fake_quantize_int8(values, range / 127.0f);
    else
      kernels::fake_quantize_fp8(values, range / 448.0f);
    double loss = 0;
    for (size_t i = 0; i < centers.size(); ++i) {
      const double error = static_cast<double>(values.data<float>()[i]) - static_cast<double>(centers[i]);
      loss += weights[i] * error * error;
    }
    if (least < 0 || loss < least) {
      least = loss;
      best = range;
    }
  }
  return best;
}

bool has_row_range(Format format) {
  return format == Format::kFp8Channels || format == Format::kInt8 || format == Format::kInt8WeightOnly || format == Format::kInt4 ||
         format == Format::kInt4Fp8 || format == Format::kNvfp4 || format == Format::kNvfp4WeightOnly;
}

Tensor mse_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales) {
  require(has_row_range(encoding.format), "a format whose weights have no scales by row");
  const int64_t rows = weight.dim(0), unit = unit_of(encoding, weight), units = weight.numel() / std::max<int64_t>(1, unit);
  const bool nvfp4 = encoding.format == Format::kNvfp4 || encoding.format == Format::kNvfp4WeightOnly;
  const bool in_groups = group_size(encoding) > 0;
  Tensor best = minmax_row_scales(encoding, weight, scales);
  if (rows == 0) return best;
  const Tensor flat_weight = weight.reshaped({units, unit});
  Tensor wide = Tensor::empty({units, unit}, DType::kF32), error = Tensor::empty({units, unit}, DType::kF32),
         amaxes = Tensor::empty({units}, DType::kF32);
  kernels::convert(flat_weight, wide);
  kernels::row_amax(wide, amaxes);
  std::vector<double> least(static_cast<size_t>(units), -1), losses(least.size());
  Encoding by_unit = encoding;
  if (in_groups && !nvfp4) by_unit.group_size = unit;
  std::vector<float> ratios{1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f, 0.55f, 0.5f, 0.45f, 0.4f};
  if (nvfp4) ratios.insert(ratios.end(), {1.1f, 1.2f, 1.3f, 1.4f, 1.5f});
  const int64_t word = dtype_bytes(best.dtype());
  for (const float ratio : ratios) {
    // The scales that weights of this range would have: one unit is one row here.
    Tensor range = Tensor::empty({units, unit}, DType::kF32);
    std::fill_n(range.data<float>(), range.numel(), 0.0f);
    for (int64_t u = 0; u < units; ++u) range.data<float>()[u * unit] = ratio * amaxes.data<float>()[u];
    const Tensor candidate = minmax_row_scales(by_unit, range, scales);
    const Tensor rounded = rounded_weight(by_unit, wide, candidate, scales);
    std::copy_n(rounded.data<float>(), rounded.numel(), error.data<float>());
    float* e = error.data<float>();
    const float* w = wide.data<float>();
    for (int64_t i = 0; i < error.numel(); ++i) e[i] -= w[i];
    kernels::row_dots(error, error, losses);
    for (int64_t u = 0; u < units; ++u) {
      double& kept = least[static_cast<size_t>(u)];
      if (kept >= 0 && losses[static_cast<size_t>(u)] >= kept) continue;
      kept = losses[static_cast<size_t>(u)];
      std::copy_n(candidate.raw() + u * word, word, best.raw() + u * word);
    }
  }
  return best;
}

}  // namespace ptq::recipes
