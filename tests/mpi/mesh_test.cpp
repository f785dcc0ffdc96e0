#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include "tests/mpi/world.h"

namespace ptq::parallel {
namespace {

using test::world;

/// World ranks of a group's members, in its order. Collective over it.
std::vector<int64_t> members(Communicator& group) {
  std::vector<int64_t> ranks(static_cast<size_t>(group.size()));
  const int64_t mine = world().rank();
  group.all_gather(&mine, std::vector<int64_t>(ranks.size(), 8), ranks.data());
  return ranks;
}

/// Every shape data × pipeline × tensor of as many places as there are ranks, with every number of expert ranks that divides a stage.
std::vector<MeshShape> shapes() {
  std::vector<MeshShape> all;
  for (int d = 1; d <= world().size(); ++d)
    for (int p = 1; p <= world().size(); ++p)
      for (int t = 1; t <= world().size(); ++t)
        for (int e = 1; e <= d * t; ++e)
          if (d * p * t == world().size() && d * t % e == 0) all.push_back({d, p, t, e});
  return all;
}

std::string name(const MeshShape& shape) {
  return std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " + std::to_string(shape.tensor) + ", " +
         std::to_string(shape.expert) + " expert ranks";
}

TEST(MeshGroups, HoldTheRanksOfTheirAxisInOrder) {
  for (const MeshShape shape : shapes()) {
    SCOPED_TRACE(name(shape));

    const Mesh mesh = Mesh::make(world(), shape);

    const auto place = [&](int d, int p, int t) { return (int64_t{d} * shape.pipeline + p) * shape.tensor + t; };
    const int d = mesh.data_rank(), p = mesh.pipeline_rank(), t = mesh.tensor_rank();
    EXPECT_EQ(place(d, p, t), world().rank());
    std::vector<int64_t> data, pipeline, tensor, stage;
    for (int i = 0; i < shape.data; ++i) data.push_back(place(i, p, t));
    for (int i = 0; i < shape.pipeline; ++i) pipeline.push_back(place(d, i, t));
    for (int i = 0; i < shape.tensor; ++i) tensor.push_back(place(d, p, i));
    for (int i = 0; i < shape.data; ++i)
      for (int j = 0; j < shape.tensor; ++j) stage.push_back(place(i, p, j));
    EXPECT_EQ(members(mesh.data()), data);
    EXPECT_EQ(members(mesh.pipeline()), pipeline);
    EXPECT_EQ(members(mesh.tensor()), tensor);
    EXPECT_EQ(members(mesh.stage()), stage);
    EXPECT_EQ(&mesh.world(), &world());
  }
}

TEST(MeshGroups, NeighboursOfAStageSplitTheExperts) {
  for (const MeshShape shape : shapes()) {
    SCOPED_TRACE(name(shape));

    const Mesh mesh = Mesh::make(world(), shape);

    // Ranks of this stage in order: runs of `expert` split the experts, and those at the same place of their run have the same ones.
    std::vector<int64_t> stage = members(mesh.stage()), experts, replicas;
    const auto me = static_cast<size_t>(mesh.stage().rank()), run = static_cast<size_t>(shape.expert);
    for (size_t i = 0; i < stage.size(); ++i) {
      if (i / run == me / run) experts.push_back(stage[i]);
      if (i % run == me % run) replicas.push_back(stage[i]);
    }
    EXPECT_EQ(members(mesh.experts()), experts);
    EXPECT_EQ(members(mesh.replicas()), replicas);
    EXPECT_EQ(mesh.experts().size(), shape.expert);
    EXPECT_EQ(mesh.experts().size() * mesh.replicas().size(), mesh.stage().size());
    EXPECT_EQ(mesh.experts().rank(), mesh.stage().rank() % shape.expert);
    EXPECT_EQ(mesh.replicas().rank(), mesh.stage().rank() / shape.expert);
  }
}

}  // namespace
}  // namespace ptq::parallel
