#include "recipes/weight_solver.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops.h"
#include "recipes/minmax.h"
#include "tests/unit/recipes/search_case.h"

namespace ptq::recipes {
namespace {

using test::values_of;

constexpr int64_t kRows = 12, kChannels = 96;

const std::vector<Encoding> kEncodings{{Format::kInt4, Dialect::kModelOpt, 16},
                                       {Format::kInt4, Dialect::kCompressedTensors, 32},
                                       {Format::kInt4Fp8, Dialect::kModelOpt, 16},
                                       {Format::kNvfp4, Dialect::kModelOpt},
                                       {Format::kNvfp4WeightOnly, Dialect::kModelOpt}};

std::string name_of(const Encoding& encoding) { return info(encoding.format).name + " " + dialect_name(encoding.dialect); }

LinearScales scales_of(const Encoding& encoding, const Tensor& weight) {
  std::vector<ScaleNote> notes;
  LinearScales scales;
  scales.weight_scale = weight_scale(encoding, kernels::amax(weight).value, "", notes);
  return scales;
}

Tensor copy(const Tensor& x) { return test::tensor_of(values_of(x), x.shape()); }

void expect_scales(const Tensor& row_scales, const std::string& what) {
  Tensor values = row_scales;
  if (row_scales.dtype() != DType::kF32) {
    values = Tensor::empty(row_scales.shape(), DType::kF32);
    kernels::dequantize_fp8(row_scales, 1.0f, values);
  }
  for (const float scale : values_of(values)) ASSERT_TRUE(std::isfinite(scale) && scale > 0) << what << ": " << scale;
}

struct Solved {
  Tensor weight, row_scales;
};
Solved solve(const Encoding& encoding, const Tensor& weight, const LinearScales& scales, std::vector<GramBlock> gram) {
  Curvature curvature(std::move(gram), Tensor());
  Solved solved{copy(weight), solve_row_scales(encoding, weight, scales, curvature, true)};
  curvature.factor();
  solve_codes(encoding, solved.weight, solved.row_scales, scales, curvature);
  return solved;
}

TEST(SolveRowScales, LoseNoMoreThanMinMaxInAnyGroup) {
  const Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
  const auto gram = test::gram_of(test::uneven_tokens(200, kChannels));
  for (const Encoding& encoding : kEncodings) {
    const LinearScales scales = scales_of(encoding, weight);
    const Tensor plain = minmax_row_scales(encoding, weight, scales),
                 found = solve_row_scales(encoding, weight, scales, Curvature(gram, Tensor()), true);
    const std::vector<float> before = values_of(rounded_weight(encoding, weight, plain, scales)),
                             after = values_of(rounded_weight(encoding, weight, found, scales)), w = values_of(weight);
    const int64_t group = group_size(encoding);
    double sum_before = 0, sum_after = 0;
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t g = 0; g < kChannels; g += group) {
        const auto loss = [&](const std::vector<float>& q) {
          double total = 0;
          for (int64_t i = g; i < g + group; ++i)
            for (int64_t j = g; j < g + group; ++j)
              total += static_cast<double>(w[static_cast<size_t>(r * kChannels + i)] - q[static_cast<size_t>(r * kChannels + i)]) *
                       static_cast<double>(gram[0].values.data<float>()[i * kChannels + j]) *
                       static_cast<double>(w[static_cast<size_t>(r * kChannels + j)] - q[static_cast<size_t>(r * kChannels + j)]);
          return total;
        };
        // Scales that the file keeps in bf16 are rounded after they were chosen.
        const double slack = encoding.dialect == Dialect::kModelOpt && encoding.format != Format::kInt4Fp8 ? 1e-4 : 0.2;
        EXPECT_LE(loss(after), loss(before) * (1 + slack)) << name_of(encoding) << " row " << r << " group " << g;
        sum_before += loss(before);
        sum_after += loss(after);
      }
    EXPECT_LT(sum_after, 0.95 * sum_before) << name_of(encoding);
  }
}

TEST(SolveCodes, LowerTheLossOfPlainRounding) {
  const Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
  const auto gram = test::gram_of(test::uneven_tokens(200, kChannels));
  for (const Encoding& encoding : kEncodings) {
    const LinearScales scales = scales_of(encoding, weight);
    const Tensor searched = solve_row_scales(encoding, weight, scales, Curvature(gram, Tensor()), true);
    const double plain =
        test::loss_of(weight, rounded_weight(encoding, weight, minmax_row_scales(encoding, weight, scales), scales), gram[0].values);
    const double clipped = test::loss_of(weight, rounded_weight(encoding, weight, searched, scales), gram[0].values);
    const double solved =
        test::loss_of(weight, solve(encoding, weight, scales, test::gram_of(test::uneven_tokens(200, kChannels))).weight, gram[0].values);
    EXPECT_LT(solved, 0.5 * plain) << name_of(encoding);
    EXPECT_LT(solved, 0.6 * clipped) << name_of(encoding);
  }
}

TEST(SolveCodes, GiveExactlyWhatIsStored) {
  const Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
  const layers::LinearSpec linear{"m.proj", kRows, kChannels};
  for (const Encoding& encoding : kEncodings) {
    const LinearScales scales = scales_of(encoding, weight);
    const Solved solved = solve(encoding, weight, scales, test::gram_of(test::uneven_tokens(200, kChannels)));
    EXPECT_EQ(values_of(rounded_weight(encoding, solved.weight, solved.row_scales, scales)), values_of(solved.weight)) << name_of(encoding);
    const auto parts = encode_rows(encoding, linear, solved.weight, solved.row_scales, scales, kernels::Fp8Quotient::kExact);
    EXPECT_EQ(values_of(decode_rows(encoding, linear, parts, scales)), values_of(solved.weight)) << name_of(encoding);
  }
}

TEST(SolveCodes, OfZerosAreZerosWithSoundScales) {
  for (const Encoding& encoding : kEncodings)
    for (const char* what : {"rows", "blocks", "channels", "all"}) {
      SCOPED_TRACE(name_of(encoding) + " " + what);
      Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
      const auto is_zero = [&](int64_t r, int64_t c) {
        const std::string kind = what;
        return kind == "all" || (kind == "rows" && r < 3) || (kind == "blocks" && r > 5 && c / 32 == 1) || (kind == "channels" && c == 17);
      };
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t c = 0; c < kChannels; ++c)
          if (is_zero(r, c)) weight.data<float>()[r * kChannels + c] = 0;
      const LinearScales scales = scales_of(encoding, weight);
      const Solved solved = solve(encoding, weight, scales, test::gram_of(test::uneven_tokens(200, kChannels)));
      expect_scales(solved.row_scales, "searched");
      if (std::string(what) == "channels") continue;  // they may make up for the errors of others
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t c = 0; c < kChannels; ++c)
          if (is_zero(r, c) && std::string(what) != "blocks") {
            ASSERT_EQ(solved.weight.data<float>()[r * kChannels + c], 0.0f) << r << " " << c;
          }
      for (const float value : values_of(solved.weight)) ASSERT_TRUE(std::isfinite(value));
    }
}

TEST(SolveCodes, WithoutActivationsAreThoseOfPlainRounding) {
  const Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
  for (const Encoding& encoding : kEncodings) {
    const LinearScales scales = scales_of(encoding, weight);
    const Tensor plain = minmax_row_scales(encoding, weight, scales);
    const Solved solved = solve(encoding, weight, scales, test::gram_of(Tensor::zeros({5, kChannels}, DType::kF32)));
    expect_scales(solved.row_scales, name_of(encoding));
    EXPECT_EQ(values_of(solved.weight), values_of(rounded_weight(encoding, weight, plain, scales))) << name_of(encoding);
  }
}

TEST(SolveCodes, OfChannelsWithoutActivationsAreFinite) {
  const Tensor weight = test::random_tensor({kRows, kChannels}, DType::kF32, 2, 0.1f);
  for (const Encoding& encoding : kEncodings) {
    const LinearScales scales = scales_of(encoding, weight);
    Tensor x = test::uneven_tokens(200, kChannels);
    for (int64_t t = 0; t < 200; ++t)
      for (int64_t c = 0; c < 40; ++c) x.data<float>()[t * kChannels + c] = 0;
    const Solved solved = solve(encoding, weight, scales, test::gram_of(x));
    expect_scales(solved.row_scales, name_of(encoding));
    const std::vector<float> stored = values_of(rounded_weight(encoding, solved.weight, solved.row_scales, scales));
    for (size_t i = 0; i < stored.size(); ++i) {
      ASSERT_TRUE(std::isfinite(stored[i]));
      if (i % kChannels >= 40) {
        ASSERT_EQ(stored[i], solved.weight.data<float>()[i]) << name_of(encoding) << " " << i;
      }
    }
  }
}

TEST(Curvature, IsThatOfTheSmoothedInput) {
  const Tensor x = test::uneven_tokens(50, 20);
  const Tensor factors = test::tensor_of(std::vector<float>(20, 0.5f), {20});
  const Curvature curvature(test::gram_of(x), factors);
  const auto plain = test::gram_of(x);
  for (int64_t i = 0; i < 400; ++i) EXPECT_EQ(curvature.blocks()[0].values.data<float>()[i], 0.25f * plain[0].values.data<float>()[i]) << i;
}

}  // namespace
}  // namespace ptq::recipes
