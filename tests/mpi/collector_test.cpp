// Statistics for a search are the same bits over any data and tensor ranks, some without a row in the last micro-batch.

#include <gtest/gtest.h>

#include "parallel/mesh.h"
#include "tests/mpi/world.h"
#include "tests/support/collected_rows.h"

namespace ptq::recipes {
namespace {

using test::world;

void expect_the_bits_of_one_rank(int tensor) {
  if (world().size() % tensor != 0) return;
  const parallel::Mesh mesh = parallel::Mesh::make(world(), {.data = world().size() / tensor, .tensor = tensor});
  const auto self = parallel::make_self_communicator();
  for (const DType dtype : {DType::kBF16, DType::kF32})
    for (const int64_t channels : {6, 300}) {
      const Tensor tokens = test::calibration_tokens(channels, dtype);
      const InputStatistics one = test::collect(tokens, 7, *self, *self);
      for (const int64_t places : {1, 2})
        EXPECT_TRUE(test::same_statistics(one, test::collect(tokens, places, mesh.data(), mesh.stage())))
            << "tensor " << tensor << ", " << channels << " channels, " << places << " rows of a rank at a time";
    }
}

TEST(ActivationCollector, GivesTheBitsOfOneRankOverDataRanks) { expect_the_bits_of_one_rank(1); }
TEST(ActivationCollector, GivesTheBitsOfOneRankOverTensorRanks) { expect_the_bits_of_one_rank(world().size()); }
TEST(ActivationCollector, GivesTheBitsOfOneRankOverBoth) { expect_the_bits_of_one_rank(2); }

}  // namespace
}  // namespace ptq::recipes
