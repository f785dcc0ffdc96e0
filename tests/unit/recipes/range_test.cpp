// Ranges by percentile and by squared error, against what a plain count and a plain search give.

#include "recipes/range.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "kernels/search_ops.h"
#include "recipes/weight_solver.h"
#include "tests/support/reference_ops.h"

namespace ptq::recipes {
namespace {

using test::random_tensor;
using test::tensor_of;
using test::values_of;

std::vector<int64_t> count(const Tensor& x) {
  std::vector<int64_t> counts(kernels::kMagnitudeBins, 0);
  kernels::count_magnitudes(x, counts);
  return counts;
}

TEST(Magnitudes, AreCountedBetweenTheEdgesOfTheirBins) {
  const Tensor x = random_tensor({37, 1001}, DType::kBF16, 5, 3.0f);
  const std::vector<int64_t> counts = count(x);

  std::vector<int64_t> expected(kernels::kMagnitudeBins, 0);
  for (const float value : values_of(x))
    for (size_t bin = kernels::kMagnitudeBins; bin-- > 0;)
      if (std::abs(static_cast<double>(value)) >= kernels::magnitude_edge(bin)) {
        ++expected[bin];
        break;
      }
  EXPECT_EQ(counts, expected);
}

TEST(Magnitudes, BeyondTheBinsAreInTheFirstAndTheLast) {
  const std::vector<int64_t> counts = count(tensor_of({0.0f, -0.0f, 0x1p-33f, 0x1p33f, -0x1p100f}, {1, 5}));

  EXPECT_EQ(counts.front(), 3);
  EXPECT_EQ(counts.back(), 2);
}

TEST(Percentile, LeavesOutTheRarestMagnitudes) {
  std::vector<float> values(10000, 1.0f);
  values[3] = 100.0f;
  const Tensor x = tensor_of(values, {100, 100});

  EXPECT_LT(percentile_amax(count(x), 99.9, 100.0f), 1.1f);
  EXPECT_GE(percentile_amax(count(x), 99.9, 100.0f), 1.0f);
  EXPECT_EQ(percentile_amax(count(x), 100.0, 100.0f), 100.0f);
}

TEST(SquaredError, ClipsInt8WhereOneOutlierCostsAllOthersTheirResolution) {
  std::vector<float> values = values_of(random_tensor({1, 20000}, DType::kF32, 9, 1.0f));
  values[7] = 30.0f;
  const Tensor x = tensor_of(values, {1, 20000});
  const float amax = 30.0f, chosen = mse_amax(Format::kInt8, count(x), amax);

  const auto loss = [&](float range) {
    Tensor rounded = tensor_of(values, {1, 20000});
    kernels::fake_quantize_int8(rounded, range / 127.0f);
    const std::vector<float> after = values_of(rounded);
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += std::pow(static_cast<double>(after[i]) - static_cast<double>(values[i]), 2);
    return sum;
  };
  EXPECT_LE(loss(chosen), loss(amax));
  EXPECT_LE(chosen, amax);
  EXPECT_EQ(mse_amax(Format::kNvfp4, count(x), amax), amax) << "blocks get their scales at run time";
}

TEST(SquaredError, OfWeightsIsNeverAboveThatOfTheirLargest) {
  const Tensor weight = random_tensor({6, 256}, DType::kBF16, 3, 0.05f);
  for (const Format format : {Format::kFp8Channels, Format::kInt8, Format::kInt8WeightOnly, Format::kInt4, Format::kInt4Fp8, Format::kNvfp4,
                              Format::kNvfp4WeightOnly}) {
    SCOPED_TRACE(info(format).name);
    const Encoding encoding{format, Dialect::kModelOpt};
    LinearScales scales;
    scales.weight_scale = kernels::amax(weight).value / 2688.0f;
    Tensor wide = Tensor::empty(weight.shape(), DType::kF32);
    kernels::convert(weight, wide);
    const auto loss = [&](const Tensor& row_scales) {
      const std::vector<float> rounded = values_of(rounded_weight(encoding, wide, row_scales, scales)), exact = values_of(wide);
      double sum = 0;
      for (size_t i = 0; i < exact.size(); ++i) sum += std::pow(static_cast<double>(rounded[i]) - static_cast<double>(exact[i]), 2);
      return sum;
    };
    const Tensor plain = minmax_row_scales(encoding, weight, scales), found = mse_row_scales(encoding, weight, scales);

    EXPECT_EQ(found.shape(), plain.shape());
    EXPECT_EQ(found.dtype(), plain.dtype());
    EXPECT_LE(loss(found), loss(plain));
    if (group_size(encoding) > 0) {
      EXPECT_LT(loss(found), 0.99 * loss(plain)) << "four bits gain by clipping";
    }
  }
}

}  // namespace
}  // namespace ptq::recipes
