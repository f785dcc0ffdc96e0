#include "runner/weight_loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>

#include "tests/support/expect_error.h"

namespace ptq::runner {
namespace {

using namespace std::chrono_literals;

/// Tensors t0, t1, ... of I32 [8, 4] in memory, element (r, c) of tensor n being 1000·n + 4·r + c; can fail and counts what is read.
class MemoryReader : public checkpoint::Reader {
 public:
  explicit MemoryReader(int64_t tensors) {
    folder_ = "memory";
    for (int64_t n = 0; n < tensors; ++n) {
      const std::string name = "t" + std::to_string(n);
      tensors_[name] = {name, DType::kI32, {8, 4}, "file", 128 * n, 128};
    }
  }
  std::string format() const override { return "memory"; }
  std::vector<std::string> companion_files() const override { return {}; }
  void read_rows(const checkpoint::TensorEntry& tensor, int64_t begin, int64_t end, std::byte* out) const override {
    if (tensor.name == fails_at) throw data_error("cannot read " + tensor.name, "file");
    if (tensor.name == throws_at) throw std::runtime_error("odd");
    order.push_back(tensor.name);
    ++reads;
    auto* values = reinterpret_cast<int32_t*>(out);
    std::iota(values, values + 4 * (end - begin), static_cast<int32_t>(1000 * std::stoll(tensor.name.substr(1)) + 4 * begin));
  }

  std::string fails_at, throws_at;
  mutable std::vector<std::string> order;  ///< by the loader thread; to be looked at when all units are taken
  mutable std::atomic<int> reads{0};
};

/// `count` units of one whole tensor each.
std::vector<LoadUnit> whole_tensors(const MemoryReader& reader, int64_t count) {
  std::vector<LoadUnit> units;
  for (int64_t n = 0; n < count; ++n) units.push_back({{&reader.at("t" + std::to_string(n)), {0, 8}}});
  return units;
}

TEST(WeightLoader, GivesUnitsInOrder) {
  const MemoryReader reader(20);
  WeightLoader loader(reader, whole_tensors(reader, 20), 1 << 20);

  for (int32_t n = 0; n < 20; ++n) {
    const std::vector<Tensor> tensors = loader.take();
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].shape(), (Shape{8, 4}));
    EXPECT_EQ(tensors[0].data<int32_t>()[0], 1000 * n);
    EXPECT_EQ(tensors[0].data<int32_t>()[31], 1000 * n + 31);
  }
}

TEST(WeightLoader, KeepsTheRequestsOrderButReadsInTheFilesOrder) {
  const MemoryReader reader(3);
  WeightLoader loader(
      reader, {{{&reader.at("t2"), {1, 3}}, {&reader.at("t0"), {5, 5}}, {&reader.at("t1"), {7, 8}}, {&reader.at("t0"), {0, 1}}}}, 0);

  const std::vector<Tensor> tensors = loader.take();

  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_EQ(tensors[0].shape(), (Shape{2, 4}));
  EXPECT_EQ(tensors[0].data<int32_t>()[0], 2004);
  EXPECT_EQ(tensors[1].shape(), (Shape{0, 4}));
  EXPECT_EQ(tensors[2].data<int32_t>()[3], 1031);
  EXPECT_EQ(tensors[3].data<int32_t>()[0], 0);
  EXPECT_EQ(reader.order, (std::vector<std::string>{"t0", "t1", "t2"})) << "an empty range is not read";
}

TEST(WeightLoader, AnEmptyUnitIsAUnit) {
  const MemoryReader reader(1);
  WeightLoader loader(reader, {{}, {{&reader.at("t0"), {0, 8}}}, {}}, 0);

  EXPECT_TRUE(loader.take().empty());
  EXPECT_EQ(loader.take().size(), 1u);
  EXPECT_TRUE(loader.take().empty());
}

TEST(WeightLoader, ReadsNoFurtherAheadThanItMay) {
  const MemoryReader reader(10);
  WeightLoader loader(reader, whole_tensors(reader, 10), 300);  // two units of 128 bytes

  for (int round = 0; round < 400 && reader.reads < 2; ++round) std::this_thread::sleep_for(5ms);
  std::this_thread::sleep_for(30ms);  // time for a third, if the loader were wrong
  EXPECT_EQ(reader.reads, 2);

  loader.take();
  for (int round = 0; round < 400 && reader.reads < 3; ++round) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(reader.reads, 3);
}

TEST(WeightLoader, ReadsOneUnitHoweverLittleItMayKeep) {
  const MemoryReader reader(3);
  WeightLoader loader(reader, whole_tensors(reader, 3), 1);

  for (int32_t n = 0; n < 3; ++n) EXPECT_EQ(loader.take()[0].data<int32_t>()[0], 1000 * n);
}

TEST(WeightLoader, AnErrorSurfacesWhereItsUnitIsTaken) {
  MemoryReader reader(5);
  reader.fails_at = "t2";
  WeightLoader loader(reader, whole_tensors(reader, 5), 1 << 20);

  EXPECT_EQ(loader.take()[0].data<int32_t>()[0], 0);
  EXPECT_EQ(loader.take()[0].data<int32_t>()[0], 1000);
  test::expect_error(ErrorKind::kData, "cannot read t2", [&] { loader.take(); });
  test::expect_error(ErrorKind::kData, "cannot read t2", [&] { loader.take(); });
}

TEST(WeightLoader, OtherExceptionsAreBugs) {
  MemoryReader reader(1);
  reader.throws_at = "t0";
  WeightLoader loader(reader, whole_tensors(reader, 1), 1 << 20);

  test::expect_error(ErrorKind::kBug, "odd", [&] { loader.take(); });
}

TEST(WeightLoader, StopsEarlyWithoutHanging) {
  for (const int64_t ahead : {int64_t{0}, int64_t{200}, int64_t{1} << 20})
    for (int taken = 0; taken < 3; ++taken) {
      const MemoryReader reader(50);
      WeightLoader loader(reader, whole_tensors(reader, 50), ahead);
      for (int n = 0; n < taken; ++n) EXPECT_EQ(loader.take().size(), 1u);
    }
}

}  // namespace
}  // namespace ptq::runner
