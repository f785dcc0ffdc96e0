#include "runner/expert_chunks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "runner/sweep.h"
#include "tests/support/lonely_mesh.h"
#include "tests/unit/runner/tiny_mixture.h"

namespace ptq::runner {
namespace {

using parallel::MeshShape;
using parallel::Range;
using test::all_ranks;
using test::Mixture;
using test::tensors_of;

std::vector<MeshShape> many_shapes() {
  std::vector<MeshShape> shapes;
  for (int data = 1; data <= 4; ++data)
    for (int pipeline = 1; pipeline <= 2; ++pipeline)
      for (int tensor = 1; tensor <= 4; ++tensor)
        for (int expert = 1; expert <= data * tensor; ++expert)
          if (data * tensor % expert == 0) shapes.push_back({data, pipeline, tensor, expert});
  return shapes;
}

TEST(GroupByExpert, LeavesOutWhatBelongsToNoExpert) {
  const Mixture mixture(3, false);

  const auto groups = mixture.specs();

  ASSERT_EQ(groups.size(), 3u);
  for (size_t e = 0; e < 3; ++e) {
    std::vector<std::string> names;
    for (const auto& spec : groups[e]) names.push_back(spec.name);
    const std::string module = "l.experts." + std::to_string(e);
    EXPECT_EQ(names, (std::vector<std::string>{module + ".gate.weight", module + ".gate.bias", module + ".up.weight", module + ".up.bias",
                                               module + ".down.weight", module + ".down.bias"}));
  }
}

TEST(GroupByExpert, StackedTensorsBelongToEveryExpert) {
  const Mixture mixture(3, true);

  const auto groups = mixture.specs();

  ASSERT_EQ(groups.size(), 3u);
  for (const auto& group : groups) {
    std::vector<std::string> names;
    for (const auto& spec : group) names.push_back(spec.name);
    EXPECT_EQ(names, (std::vector<std::string>{"l.experts.gate_up", "l.experts.gate_up_bias", "l.experts.down", "l.experts.down_bias"}));
  }
}

TEST(CutExperts, ChunksFollowEachOtherAndFitEveryRank) {
  for (const MeshShape& shape : many_shapes()) {
    const auto ranks = all_ranks(shape);
    for (const int64_t experts : {1, 2, 7, 16})
      for (const int64_t per_rank : {1, 2, 3, 100}) {
        int64_t at = 0;
        for (const Range& chunk : cut_experts(experts, per_rank, ranks.front().mesh)) {
          EXPECT_EQ(chunk.begin, at);
          EXPECT_GT(chunk.size(), 0);
          EXPECT_LE(chunk.size(), per_rank * shape.expert);
          EXPECT_TRUE(chunk.end == experts || chunk.size() == per_rank * shape.expert) << "a chunk that is not full before the last";
          at = chunk.end;
        }
        EXPECT_EQ(at, experts);
      }
  }
}

TEST(PlaceChunk, EveryExpertIsOwnedByOneRankOfTheStageAndHeldByOneOfEachGroup) {
  for (const MeshShape& shape : many_shapes()) {
    SCOPED_TRACE(std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " + std::to_string(shape.tensor) + ", " +
                 std::to_string(shape.expert) + " expert ranks");
    const auto ranks = all_ranks(shape);
    for (const int experts : {1, 5, 16}) {
      const Mixture mixture(experts, false);
      const auto specs = mixture.specs();
      for (const int64_t per_rank : {1, 3, 100}) {
        std::map<int, std::map<int64_t, int>> owners, holders;  // stage -> expert -> ranks
        for (const auto& rank : ranks)
          for (const Range& experts_of_chunk : cut_experts(experts, per_rank, rank.mesh)) {
            const ExpertChunk chunk = place_chunk(mixture.layer, experts_of_chunk, specs, rank.mesh);
            EXPECT_EQ(chunk.layer, &mixture.layer);
            EXPECT_EQ(chunk.experts, experts_of_chunk);
            EXPECT_LE(chunk.mine.size(), per_rank);
            EXPECT_TRUE(chunk.experts.begin <= chunk.mine.begin && chunk.mine.end <= chunk.experts.end);
            EXPECT_TRUE(chunk.mine.begin <= chunk.owned.begin && chunk.owned.end <= chunk.mine.end);
            // The layers compute with this share: the two must mean the same experts.
            const Range share = parallel::even_share(chunk.experts.size(), rank.mesh.experts().size(), rank.mesh.experts().rank());
            EXPECT_EQ(chunk.mine, (Range{chunk.experts.begin + share.begin, chunk.experts.begin + share.end}));
            for (int64_t e = chunk.owned.begin; e < chunk.owned.end; ++e) ++owners[rank.mesh.pipeline_rank()][e];
            for (int64_t e = chunk.mine.begin; e < chunk.mine.end; ++e) {
              ++holders[rank.mesh.pipeline_rank()][e];
              EXPECT_EQ(chunk.specs_of(e).front().name, "l.experts." + std::to_string(e) + ".gate.weight");
              EXPECT_TRUE(chunk.of(e).empty());
            }
          }
        for (int stage = 0; stage < shape.pipeline; ++stage)
          for (int64_t e = 0; e < experts; ++e) {
            EXPECT_EQ(owners[stage][e], 1) << "expert " << e;
            EXPECT_EQ(holders[stage][e], shape.data * shape.tensor / shape.expert) << "expert " << e;
          }
      }
    }
  }
}

TEST(ChunkUnit, ReadsOwnedExpertsWholeAndPutsThemInTheirPlaces) {
  for (const bool stacked : {false, true}) {
    const Mixture mixture(7, stacked);
    for (const auto& rank : all_ranks({.data = 2, .tensor = 2, .expert = 2})) {
      ExpertChunk chunk = place_chunk(mixture.layer, {2, 7}, mixture.specs(), rank.mesh);

      const LoadUnit unit = chunk_unit(chunk, mixture.reader);
      WeightLoader loader(mixture.reader, {unit}, 0);
      fill_chunk(chunk, loader.take());

      ASSERT_EQ(unit.size(), static_cast<size_t>(chunk.owned.size()) * (stacked ? 4 : 6));
      for (size_t i = 0; stacked && i < unit.size(); ++i) {
        const int64_t expert = chunk.owned.begin + static_cast<int64_t>(i / 4);
        EXPECT_EQ(unit[i].rows, (Range{expert, expert + 1})) << "one expert is one row of a stacked tensor";
      }
      for (int64_t e = chunk.mine.begin; e < chunk.mine.end; ++e) {
        if (e < chunk.owned.begin || e >= chunk.owned.end) {
          EXPECT_TRUE(chunk.of(e).empty());
          continue;
        }
        const std::vector<Tensor> expected = tensors_of(mixture, e);
        ASSERT_EQ(chunk.of(e).size(), expected.size());
        for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(test::same_bits(chunk.of(e)[i], expected[i]));
      }
    }
  }
}

TEST(ChunkUnit, ARankWithoutExpertsReadsNothing) {
  const Mixture mixture(2, false);
  const auto ranks = all_ranks({.data = 4, .expert = 4});
  ExpertChunk chunk = place_chunk(mixture.layer, {0, 2}, mixture.specs(), ranks[3].mesh);

  EXPECT_TRUE(chunk_unit(chunk, mixture.reader).empty());
  EXPECT_NO_THROW(fill_chunk(chunk, {}));
  EXPECT_EQ(chunk.mine.size(), 0);
}

TEST(GatherChunk, AnExpertHeldByOneRankIsWholeAlready) {
  const Mixture mixture(4, false);
  for (const auto& rank : all_ranks({.data = 2, .expert = 2})) {
    ExpertChunk chunk = place_chunk(mixture.layer, {0, 4}, mixture.specs(), rank.mesh);
    WeightLoader loader(mixture.reader, {chunk_unit(chunk, mixture.reader)}, 0);
    fill_chunk(chunk, loader.take());

    EXPECT_NO_THROW(gather_chunk(chunk, mixture.reader, rank.mesh)) << "it communicates";
    for (int64_t e = chunk.mine.begin; e < chunk.mine.end; ++e) EXPECT_EQ(chunk.of(e).size(), 6u);
  }
}

TEST(ExpertBytes, CountsEveryTensorOfOneExpert) {
  // bf16: gate and up [5, 6] and [5], down [6, 5] and [6]; each at a multiple of 64 bytes.
  const Mixture single(3, false), stacked(3, true);

  EXPECT_EQ(expert_bytes(single.specs()[1], single.reader), 64 * 6);
  EXPECT_EQ(expert_bytes(stacked.specs()[1], stacked.reader), 128 + 64 + 64 + 64) << "gate and up in one tensor of 120 bytes";
}

/// Any client: what SweepClient itself does.
class PlainClient : public SweepClient {
 public:
  layers::LayerHooks& hooks() override { return hooks_; }

 private:
  layers::LayerHooks hooks_;
};

TEST(ExpertWeights, AreTheChunksTensorsWithStackedOnesTurned) {
  for (const bool stacked : {false, true})
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const Mixture mixture(3, stacked, dtype);
      const auto ranks = all_ranks({});
      ExpertChunk chunk = place_chunk(mixture.layer, {1, 3}, mixture.specs(), ranks[0].mesh);
      WeightLoader loader(mixture.reader, {chunk_unit(chunk, mixture.reader)}, 0);
      fill_chunk(chunk, loader.take());

      const layers::ExpertWeights weights = PlainClient().expert_weights(chunk, 2);

      const auto expect = [&](const layers::LinearWeights& linear, const std::string& name, int64_t out, int64_t in) {
        const std::vector<float> weight = test::values_of(linear.weight), bias = test::values_of(linear.bias);
        const std::string tensor = stacked ? "l.experts." + name : "l.experts.2." + name + ".weight";
        const std::vector<float> stored = test::values_of(mixture.reader.read(tensor));
        const std::vector<float> stored_bias =
            test::values_of(mixture.reader.read(stacked ? tensor + "_bias" : "l.experts.2." + name + ".bias"));
        EXPECT_EQ(linear.weight.shape(), (Shape{out, in}));
        EXPECT_EQ(linear.weight.dtype(), dtype);
        EXPECT_EQ(linear.bias.shape(), (Shape{out}));
        for (int64_t o = 0; o < out; ++o) {
          EXPECT_EQ(bias[static_cast<size_t>(o)], stored_bias[static_cast<size_t>(stacked ? 2 * out + o : o)]);
          for (int64_t i = 0; i < in; ++i)
            EXPECT_EQ(weight[static_cast<size_t>(o * in + i)], stored[static_cast<size_t>(stacked ? (2 * in + i) * out + o : o * in + i)]);
        }
      };
      expect(weights.down, "down", 6, 5);
      if (stacked) {
        expect(weights.gate_up, "gate_up", 10, 6);
        EXPECT_FALSE(weights.gate.weight.defined());
      } else {
        expect(weights.gate, "gate", 5, 6);
        expect(weights.up, "up", 5, 6);
        EXPECT_FALSE(weights.gate_up.weight.defined());
      }
    }
}

}  // namespace
}  // namespace ptq::runner
