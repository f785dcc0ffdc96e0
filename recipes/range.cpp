#include "recipes/range.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ops.h"
#include "kernels/search_ops.h"

namespace ptq::recipes {

namespace {

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

namespace {

/// Of some rows, into `best`.
void search_rows(const Encoding& encoding, const Tensor& weight, const LinearScales& scales, Tensor& best) {
  const bool nvfp4 = encoding.format == Format::kNvfp4 || encoding.format == Format::kNvfp4WeightOnly;
  // What has one scale is one row here.
  const int64_t unit = group_size(encoding) > 0 ? group_size(encoding) : weight.dim(1), units = weight.numel() / unit;
  const Tensor exact = kernels::converted(weight.reshaped({units, unit}), DType::kF32);
  Tensor range = Tensor::empty({units, 1}, DType::kF32);
  kernels::row_amax(exact, range);
  std::vector<double> least(static_cast<size_t>(units), -1), losses(least.size());
  Tensor spread = Tensor::zeros({units, unit}, DType::kF32);  // weights of which only the largest counts
  std::vector<float> ratios{1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f, 0.55f, 0.5f, 0.45f, 0.4f};
  if (nvfp4) ratios.insert(ratios.end(), {1.1f, 1.2f, 1.3f, 1.4f, 1.5f});
  const int64_t word = dtype_bytes(best.dtype());
  for (const float ratio : ratios) {
    for (int64_t u = 0; u < units; ++u) spread.data<float>()[u * unit] = ratio * range.data<float>()[u];
    const Tensor candidate = minmax_row_scales(encoding, spread, scales);
    Tensor error = rounded_weight(encoding, exact, candidate, scales);
    kernels::subtract_in_place(error, exact);
    kernels::row_dots(error, error, losses);
    for (int64_t u = 0; u < units; ++u) {
      double& kept = least[static_cast<size_t>(u)];
      if (kept >= 0 && losses[static_cast<size_t>(u)] >= kept) continue;
      kept = losses[static_cast<size_t>(u)];
      std::copy_n(candidate.raw() + u * word, word, best.raw() + u * word);
    }
  }
}

}  // namespace

Tensor mse_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales) {
  require(has_row_range(encoding.format), "a format whose weights have no scales by row");
  constexpr int64_t kElements = int64_t{1} << 21;  // at a time: a few copies of them in f32 are 32 MiB
  Tensor best = minmax_row_scales(encoding, weight, scales);
  const int64_t rows = weight.dim(0), step = std::max<int64_t>(1, kElements / std::max<int64_t>(1, weight.dim(1)));
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    Tensor part = best.rows(begin, end);
    search_rows(encoding, weight.rows(begin, end), scales, part);
  }
  return best;
}

}  // namespace ptq::recipes
