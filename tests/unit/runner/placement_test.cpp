#include "runner/placement.h"

#include <gtest/gtest.h>

#include "layers/models/models.h"
#include "layers/tensor_slices.h"
#include "tests/support/lonely_mesh.h"

namespace ptq::runner {
namespace {

using test::all_ranks;
using test::Place;

/// 12 heads over `kv_heads` kv heads of 4, H 30, I 50, all biases.
layers::LayerSpec layer_with(int64_t kv_heads) {
  const layers::Config config({{"architectures", {"LlamaForCausalLM"}},
                               {"hidden_size", 30},
                               {"head_dim", 4},
                               {"num_attention_heads", 12},
                               {"num_key_value_heads", kv_heads},
                               {"intermediate_size", 50},
                               {"num_hidden_layers", 1},
                               {"vocab_size", 9},
                               {"attention_bias", true},
                               {"mlp_bias", true}},
                              "config.json");
  return layers::describe_model(config).layers[0];
}

/// One tensor on every rank of one stage: read once, and gathering what the placement says gives each rank the rows it computes with.
void expect_sound(const layers::LayerSpec& layer, const layers::TensorSpec& tensor, parallel::MeshShape shape, int64_t unit = 1) {
  SCOPED_TRACE(tensor.name + " on " + std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " +
               std::to_string(shape.tensor));
  const int64_t rows = tensor.shape[0];
  const auto ranks = all_ranks(shape);
  std::vector<Placement> placements;
  for (const Place& place_of : ranks) placements.push_back(place(layer, tensor, rows, place_of.mesh, unit));
  for (int stage = 0; stage < shape.pipeline; ++stage) {
    std::vector<int> read(static_cast<size_t>(rows), 0);
    for (size_t r = 0; r < ranks.size(); ++r) {
      const parallel::Mesh& mesh = ranks[r].mesh;
      if (mesh.pipeline_rank() != stage) continue;
      const Placement& mine = placements[r];
      EXPECT_EQ(mine.share.begin % unit * (rows - mine.share.begin), 0)
          << "a share begins at a multiple of the unit, or is empty at the end";
      for (int64_t row = mine.share.begin; row < mine.share.end; ++row) ++read[static_cast<size_t>(row)];

      const bool is_linear = tensor.linear >= 0;
      const parallel::Range slice = is_linear ? layers::tensor_slice(layer.linears[static_cast<size_t>(tensor.linear)], layer.attention(),
                                                                     shape.tensor, mesh.tensor_rank())
                                              : parallel::Range{0, rows};
      EXPECT_EQ(mine.slice, slice);
      // The members of the group that gathers, in its rank order, must hold the slice (or the whole tensor) piece after piece.
      int64_t at = mine.over_stage ? 0 : slice.begin;
      size_t member = 0;
      for (size_t other = 0; other < ranks.size(); ++other) {
        const parallel::Mesh& there = ranks[other].mesh;
        if (there.pipeline_rank() != stage || (!mine.over_stage && there.tensor_rank() != mesh.tensor_rank())) continue;
        ASSERT_LT(member, mine.shares.size());
        EXPECT_EQ(mine.shares[member++], placements[other].share.size());
        EXPECT_EQ(placements[other].share.begin, at);
        at = placements[other].share.end;
      }
      EXPECT_EQ(member, mine.shares.size());
      EXPECT_EQ(at, mine.over_stage ? rows : slice.end);
    }
    EXPECT_EQ(read, std::vector<int>(static_cast<size_t>(rows), 1)) << "stage " << stage;
  }
}

TEST(Placement, EveryRowIsReadOnceAndReachesWhoComputesWithIt) {
  for (const int64_t kv_heads : {12, 4, 2, 1}) {
    const layers::LayerSpec layer = layer_with(kv_heads);
    for (int data = 1; data <= 3; ++data)
      for (const int tensor_ranks : {1, 2, 3, 4}) {
        if (kv_heads % tensor_ranks != 0 && tensor_ranks % kv_heads != 0) continue;
        for (const auto& tensor : layer.tensors) expect_sound(layer, tensor, {data, 1, tensor_ranks});
      }
  }
}

TEST(Placement, SharesAreCutAtMultiplesOfTheUnit) {
  for (const int64_t kv_heads : {12, 4, 2}) {
    const layers::LayerSpec layer = layer_with(kv_heads);
    for (int data = 1; data <= 3; ++data)
      for (const int tensor_ranks : {1, 2, 4}) {
        if (kv_heads % tensor_ranks != 0 && tensor_ranks % kv_heads != 0) continue;
        for (const int64_t unit : {2, 8, 16, 128})
          for (const auto& tensor : layer.tensors) expect_sound(layer, tensor, {data, 1, tensor_ranks}, unit);
      }
  }
}

TEST(Placement, ATensorWhoseSlicesAreNoUnitsIsSharedOverTheStage) {
  const layers::LayerSpec layer = layer_with(4);  // q has 48 rows, 24 on each of two tensor ranks

  for (const auto& place_of : all_ranks({2, 1, 2}))
    for (const auto& [unit, over_stage] : {std::pair{8, false}, std::pair{24, false}, std::pair{16, true}, std::pair{128, true}})
      EXPECT_EQ(place(layer, layer.tensors[1], 48, place_of.mesh, unit).over_stage, over_stage) << layer.tensors[1].name << " " << unit;
}

TEST(Placement, EveryStageReadsForItself) {
  const layers::LayerSpec layer = layer_with(2);

  for (const auto& tensor : layer.tensors) expect_sound(layer, tensor, {2, 3, 4});
}

TEST(Placement, SharedKeyValueHeadsAreReadOverTheStage) {
  const layers::LayerSpec layer = layer_with(2);

  for (const auto& place_of : all_ranks({2, 1, 4}))
    for (const auto& tensor : layer.tensors) {
      const bool shared = tensor.linear < 0 || tensor.split == layers::Split::kKeyValueHeads;
      EXPECT_EQ(place(layer, tensor, tensor.shape[0], place_of.mesh).over_stage, shared) << tensor.name;
    }
}

TEST(Placement, AScalarBelongsToOneRank) {
  const layers::LayerSpec layer = layer_with(4);
  int64_t readers = 0;

  for (const auto& place_of : all_ranks({2, 1, 2})) {
    const Placement mine = place(layer, {"scalar", {}, layers::Split::kWhole, -1}, 1, place_of.mesh);
    readers += mine.share.size();
    EXPECT_EQ(mine.slice, (parallel::Range{0, 1}));
  }

  EXPECT_EQ(readers, 1);
}

TEST(WorldShare, CutsAtMultiplesOfTheUnit) {
  int64_t at = 0;

  for (const auto& place_of : all_ranks({2, 3, 2})) {
    const parallel::Range share = world_share(300, place_of.mesh, 128);
    EXPECT_EQ(share.begin, at);
    EXPECT_TRUE(share.begin % 128 == 0 || share.size() == 0);
    at = share.end;
  }

  EXPECT_EQ(at, 300);
}

TEST(WorldShare, CutsOverAllRanks) {
  int64_t at = 0;

  for (const auto& place_of : all_ranks({2, 3, 2})) {
    const parallel::Range share = world_share(50, place_of.mesh);
    EXPECT_EQ(share.begin, at);
    EXPECT_GE(share.size(), 4);
    at = share.end;
  }

  EXPECT_EQ(at, 50);
}

}  // namespace
}  // namespace ptq::runner
