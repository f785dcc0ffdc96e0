#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/ops.h"
#include "tests/support/reference_ops.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

using test::random_tensor;

struct Inputs {
  Tensor q, k, v;
};
Inputs random_inputs(int64_t tokens, const AttentionShape& shape, float deviation = 1.0f) {
  return {random_tensor({tokens, shape.heads * shape.head_dim}, DType::kF32, 1, deviation),
          random_tensor({tokens, shape.kv_heads * shape.head_dim}, DType::kF32, 2, deviation),
          random_tensor({tokens, shape.kv_heads * shape.v_head_dim}, DType::kF32, 3)};
}
Tensor attend(const Inputs& in, const std::vector<int64_t>& starts, const AttentionShape& shape, DType dtype = DType::kF32,
              const Tensor& sinks = {}) {
  Tensor out = Tensor::empty({in.q.dim(0), shape.heads * shape.v_head_dim}, dtype);
  std::memset(out.raw(), 0xff, static_cast<size_t>(out.bytes()));
  causal_attention(in.q, in.k, in.v, sinks, starts, shape, out);
  return out;
}
void expect_as_reference(const Inputs& in, const std::vector<int64_t>& starts, const AttentionShape& shape, const Tensor& sinks = {}) {
  const std::vector<double> expected = test::attention_in_f64(in.q, in.k, in.v, sinks, starts, shape);
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    EXPECT_LT(test::relative_error(attend(in, starts, shape, DType::kF32, sinks), expected), 2e-6) << "isa " << static_cast<int>(isa);
  }
}

TEST(Attention, AgreesWithPlainAttentionOnOddShapes) {
  for (const int64_t tokens : {1, 2, 31, 33, 64, 113, 257}) {
    const AttentionShape shape{.heads = 2, .kv_heads = 2, .head_dim = 24, .v_head_dim = 24, .scale = 0.2f};

    expect_as_reference(random_inputs(tokens, shape), {0, tokens}, shape);
  }
}

TEST(Attention, GroupsOfQueryHeadsShareAKeyHead) {
  const AttentionShape shape{.heads = 6, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f};

  expect_as_reference(random_inputs(70, shape), {0, 70}, shape);
}

TEST(Attention, ValuesMayHaveAnotherWidthThanKeys) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 40, .v_head_dim = 17, .scale = 0.15f};

  expect_as_reference(random_inputs(130, shape), {0, 130}, shape);
}

TEST(Attention, HeadsWiderThanABlockOfDepthWork) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .head_dim = 600, .v_head_dim = 20, .scale = 0.04f};

  expect_as_reference(random_inputs(40, shape), {0, 40}, shape);
}

TEST(Attention, SequencesDoNotSeeEachOther) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f};

  expect_as_reference(random_inputs(250, shape), {0, 1, 120, 185, 250}, shape);
}

TEST(Attention, AWindowHidesOlderKeys) {
  for (const int64_t window : {1, 5, 64, 100, 150, 300}) {
    const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f, .window = window};

    expect_as_reference(random_inputs(2 * window, shape), {0, 2 * window}, shape);
    expect_as_reference(random_inputs(333, shape), {0, 100, 333}, shape);
  }
}

TEST(Attention, AChunkHidesTheKeysBeforeIt) {
  for (const int64_t chunk : {1, 5, 64, 100, 112, 150, 300}) {
    const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f, .chunk = chunk};

    expect_as_reference(random_inputs(2 * chunk, shape), {0, 2 * chunk}, shape);
    expect_as_reference(random_inputs(433, shape), {0, 100, 433}, shape);  // chunks count from each sequence's first token
  }
}

TEST(Attention, ASinkTakesItsShareOfEverySoftmax) {
  for (const int64_t window : {0, 1, 70}) {
    const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 24, .v_head_dim = 17, .scale = 0.2f, .window = window};
    for (const int64_t tokens : {1, 33, 257}) {
      expect_as_reference(random_inputs(tokens, shape), {0, tokens}, shape, test::tensor_of({-3.0f, 0.5f, 2.0f, 40.0f}, {4}, DType::kBF16));
      expect_as_reference(random_inputs(tokens, shape), {0, tokens / 3, tokens}, shape, random_tensor({4}, DType::kF32, 9));
    }
  }
}

TEST(Attention, ASinkThatWeighsNothingChangesNoBit) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f, .window = 20};
  const Inputs in = random_inputs(200, shape);
  const float nothing = -std::numeric_limits<float>::infinity();

  const Tensor with = attend(in, {0, 200}, shape, DType::kF32, test::tensor_of({nothing, nothing}, {2}));

  EXPECT_TRUE(test::same_bits(with, attend(in, {0, 200}, shape)));
}

TEST(Attention, DoesNotDependOnWhichQueriesAreAsked) {
  const Tensor sinks = test::tensor_of({0.5f, -1.0f}, {2});
  for (const int64_t window : {0, 50})
    for (const int64_t chunk : {0, 45, 130}) {
      if (window && chunk) continue;
      const AttentionShape shape{
          .heads = 2, .kv_heads = 1, .head_dim = 20, .v_head_dim = 12, .scale = 0.25f, .window = window, .chunk = chunk};
      const Inputs in = random_inputs(280, shape);
      const Tensor whole = attend(in, {0, 280}, shape, DType::kF32, sinks);

      for (const int64_t tokens : {1, 31, 64, 65, 113, 230}) {
        const Inputs part{in.q.rows(0, tokens), in.k.rows(0, tokens), in.v.rows(0, tokens)};
        EXPECT_TRUE(test::same_bits(attend(part, {0, tokens}, shape, DType::kF32, sinks), whole.rows(0, tokens))) << tokens;
      }
      for (const cpu::Isa isa : test::available_isas()) {
        const test::IsaGuard isa_guard(isa);
        const test::ThreadsGuard threads_guard(2);
        EXPECT_TRUE(test::same_bits(attend(in, {0, 280}, shape, DType::kF32, sinks), whole)) << static_cast<int>(isa);
      }
    }
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .head_dim = 32, .v_head_dim = 8, .scale = 1.0f};
  const Inputs in = random_inputs(200, shape, 12.0f);  // scores of some thousands

  const std::vector<double> expected = test::attention_in_f64(in.q, in.k, in.v, {}, {0, 200}, shape);

  // A score of 3000 is rounded by 2⁻²⁴ relative, which is 2e-4 absolute in the exponent.
  EXPECT_LT(test::relative_error(attend(in, {0, 200}, shape), expected), 2e-3);
}

TEST(Attention, EveryInstructionSetGivesTheSameBits) {
  const AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 20, .v_head_dim = 12, .scale = 0.25f, .window = 90};
  const Inputs in = random_inputs(280, shape);
  const Tensor expected = attend(in, {0, 30, 280}, shape);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    EXPECT_TRUE(test::same_bits(attend(in, {0, 30, 280}, shape), expected)) << static_cast<int>(isa);
  }
}

TEST(Attention, DoesNotDependOnGroupingHeadsOrThreads) {
  const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f};
  const Inputs in = random_inputs(300, shape);
  const std::vector<int64_t> starts = {0, 37, 170, 300};
  const Tensor together = attend(in, starts, shape);

  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const Inputs part{in.q.rows(starts[s], starts[s + 1]), in.k.rows(starts[s], starts[s + 1]), in.v.rows(starts[s], starts[s + 1])};
    EXPECT_TRUE(test::same_bits(attend(part, {0, starts[s + 1] - starts[s]}, shape), together.rows(starts[s], starts[s + 1])));
  }
  {
    const test::ThreadsGuard guard(2);
    EXPECT_TRUE(test::same_bits(attend(in, starts, shape), together));
  }
  // The second half of the heads alone, as a rank of two would have them.
  Inputs half{Tensor::empty({300, 32}, DType::kF32), Tensor::empty({300, 16}, DType::kF32), Tensor::empty({300, 16}, DType::kF32)};
  for (int64_t t = 0; t < 300; ++t) {
    std::memcpy(half.q.data<float>() + t * 32, in.q.data<float>() + t * 64 + 32, 32 * sizeof(float));
    std::memcpy(half.k.data<float>() + t * 16, in.k.data<float>() + t * 32 + 16, 16 * sizeof(float));
    std::memcpy(half.v.data<float>() + t * 16, in.v.data<float>() + t * 32 + 16, 16 * sizeof(float));
  }
  const AttentionShape half_shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .v_head_dim = 16, .scale = 0.25f};
  const Tensor alone = attend(half, starts, half_shape);
  for (int64_t t = 0; t < 300; ++t)
    ASSERT_EQ(0, std::memcmp(alone.data<float>() + t * 32, together.data<float>() + t * 64 + 32, 32 * sizeof(float))) << t;
}

TEST(Attention, RoundsOnceToBf16) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .head_dim = 16, .v_head_dim = 19, .scale = 0.25f};
  const Inputs in = random_inputs(50, shape);

  const Tensor wide = attend(in, {0, 50}, shape), narrow = attend(in, {0, 50}, shape, DType::kBF16);

  for (int64_t i = 0; i < wide.numel(); ++i) ASSERT_EQ(narrow.data<BF16>()[i].bits, to_bf16(wide.data<float>()[i]).bits);
}

}  // namespace
}  // namespace ptq::kernels
