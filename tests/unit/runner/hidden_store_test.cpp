#include "runner/hidden_store.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/expect_error.h"
#include "tests/support/reference_ops.h"
#include "tests/support/temporary_folder.h"

namespace ptq::runner {
namespace {

const std::vector<int64_t> kRows{5, 0, 130, 1};

TEST(HiddenStore, MemoryAndDiskKeepTheSameBytes) {
  const test::TemporaryFolder folder;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    HiddenStore memory = HiddenStore::open(kRows, 33, dtype, ""), disk = HiddenStore::open(kRows, 33, dtype, folder.path());
    std::vector<Tensor> states;
    for (size_t m = 0; m < kRows.size(); ++m) states.push_back(test::random_tensor({kRows[m], 33}, dtype, m + 1));

    // Twice and in another order: later states replace earlier ones, and no neighbour is touched.
    for (const size_t m : {2u, 0u, 3u, 1u})
      for (HiddenStore* store : {&memory, &disk}) {
        store->store(static_cast<int64_t>(m), test::random_tensor({kRows[m], 33}, dtype, 100));
        store->store(static_cast<int64_t>(m), states[m]);
      }

    for (size_t m = 0; m < kRows.size(); ++m) {
      const Tensor scratch = Tensor::empty({130, 33}, dtype);
      EXPECT_TRUE(test::same_bits(memory.load(static_cast<int64_t>(m), scratch), states[m])) << m;
      EXPECT_TRUE(test::same_bits(disk.load(static_cast<int64_t>(m), scratch), states[m])) << m;
    }
    EXPECT_FALSE(memory.spilled());
    EXPECT_TRUE(disk.spilled());
    EXPECT_EQ(disk.bytes(), 136 * 33 * dtype_bytes(dtype));
    EXPECT_EQ(memory.bytes(), disk.bytes());
    EXPECT_EQ(disk.rows(2), 130);
    EXPECT_EQ(disk.dtype(), dtype);
  }
}

TEST(HiddenStore, StoringWhatItLentChangesNothing) {
  HiddenStore store = HiddenStore::open({4}, 8, DType::kF32, "");
  const Tensor states = test::random_tensor({4, 8}, DType::kF32, 1);
  store.store(0, states);

  store.store(0, store.load(0, Tensor()));

  EXPECT_TRUE(test::same_bits(store.load(0, Tensor()), states));
}

TEST(HiddenStore, ItsFileHasNoNameThatCouldBeLeftBehind) {
  const test::TemporaryFolder folder;

  const HiddenStore store = HiddenStore::open(kRows, 33, DType::kBF16, folder.path());

  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(HiddenStore, RefusesStatesOfAnotherShapeAndAFolderThatIsNotThere) {
  HiddenStore store = HiddenStore::open(kRows, 33, DType::kBF16, "");

  test::expect_error(ErrorKind::kBug, "another shape", [&] { store.store(0, Tensor::zeros({5, 33}, DType::kF32)); });
  test::expect_error(ErrorKind::kBug, "another shape", [&] { store.store(0, Tensor::zeros({4, 33}, DType::kBF16)); });
  test::expect_error(ErrorKind::kSystem, "/no/such/folder", [] { HiddenStore::open(kRows, 33, DType::kBF16, "/no/such/folder"); });
}

}  // namespace
}  // namespace ptq::runner
