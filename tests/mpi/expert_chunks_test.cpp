// Experts that several ranks compute with: each reads its part, and all have them whole.

#include "runner/expert_chunks.h"

#include <gtest/gtest.h>

#include "tests/mpi/world.h"
#include "tests/unit/runner/tiny_mixture.h"

namespace ptq::runner {
namespace {

using parallel::MeshShape;
using parallel::Range;
using test::Mixture;
using test::world;

std::vector<MeshShape> shapes() {
  std::vector<MeshShape> all;
  for (int data = 1; data <= world().size(); ++data)
    for (int tensor = 1; data * tensor <= world().size(); ++tensor)
      for (int expert = 1; expert <= data * tensor; ++expert)
        if (world().size() % (data * tensor) == 0 && data * tensor % expert == 0)
          all.push_back({data, world().size() / (data * tensor), tensor, expert});
  return all;
}

ExpertChunk read_chunk(const Mixture& mixture, Range experts, const parallel::Mesh& mesh) {
  ExpertChunk chunk = place_chunk(mixture.layer, experts, mixture.specs(), mesh);
  WeightLoader loader(mixture.reader, {chunk_unit(chunk, mixture.reader)}, 0);
  fill_chunk(chunk, loader.take());
  return chunk;
}

void expect_whole(const Mixture& mixture, const ExpertChunk& chunk, int64_t expert) {
  const std::vector<Tensor> expected = test::tensors_of(mixture, expert);
  EXPECT_EQ(chunk.of(expert).size(), expected.size()) << "expert " << expert;
  for (size_t i = 0; i < std::min(expected.size(), chunk.of(expert).size()); ++i) {
    EXPECT_TRUE(test::same_bits(chunk.of(expert)[i], expected[i])) << "expert " << expert << ", " << chunk.specs_of(expert)[i].name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(chunk.of(expert)[i].raw()) % 16, 0u) << "not where vectors can be loaded from";
  }
}

TEST(GatherChunk, GivesEveryReplicaAllOfItsExperts) {
  for (const MeshShape& shape : shapes()) {
    const parallel::Mesh mesh = parallel::Mesh::make(world(), shape);
    for (const bool stacked : {false, true})
      for (const int experts : {1, 2, 7}) {
        const Mixture mixture(experts, stacked, stacked ? DType::kF32 : DType::kBF16);
        for (const int64_t per_rank : {1, 2, 7})
          for (const Range& range : cut_experts(experts, per_rank, mesh)) {
            SCOPED_TRACE(std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " + std::to_string(shape.tensor) + ", " +
                         std::to_string(shape.expert) + " expert ranks, experts " + std::to_string(range.begin) + " to " +
                         std::to_string(range.end) + " of " + std::to_string(experts));
            ExpertChunk chunk = read_chunk(mixture, range, mesh);

            gather_chunk(chunk, mixture.reader, mesh);

            for (int64_t e = chunk.mine.begin; e < chunk.mine.end; ++e) expect_whole(mixture, chunk, e);
          }
      }
  }
}

TEST(GatherChunk, ABrokenReplicaKeepsInStep) {
  const parallel::Mesh mesh = parallel::Mesh::make(world(), {.data = world().size()});
  const Mixture mixture(7, false);
  for (int broken = 0; broken < world().size(); ++broken) {
    ExpertChunk chunk =
        world().rank() == broken ? place_chunk(mixture.layer, {0, 7}, mixture.specs(), mesh) : read_chunk(mixture, {0, 7}, mesh);
    chunk.broken = world().rank() == broken;

    gather_chunk(chunk, mixture.reader, mesh);

    const Range lost = parallel::even_share(7, world().size(), broken);
    for (int64_t e = 0; e < 7; ++e) {
      if (chunk.broken)
        EXPECT_TRUE(chunk.of(e).empty());
      else if (e < lost.begin || e >= lost.end)
        expect_whole(mixture, chunk, e);
      else
        EXPECT_EQ(chunk.of(e).size(), 6u) << "nothing of use, but in its place";
    }
  }
}

}  // namespace
}  // namespace ptq::runner
