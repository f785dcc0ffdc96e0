#include "checkpoint/box.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

namespace ptq::checkpoint {
namespace {

/// The byte an element of the array has: from its index alone, so that every place can be checked.
char value_at(const Shape& index) {
  int64_t mixed = 1;
  for (const int64_t i : index) mixed = mixed * 31 + i;
  return static_cast<char>(mixed % 251);
}

template <class Visit>
void for_each_index(const Box& box, const Visit& visit) {
  if (element_count(box.sizes) == 0) return;
  Shape index = box.begin;
  for (;;) {
    visit(index);
    size_t d = index.size();
    while (d > 0 && ++index[d - 1] == box.begin[d - 1] + box.sizes[d - 1]) {
      index[d - 1] = box.begin[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}

std::string bytes_of(const Box& box) {
  std::string bytes;
  for_each_index(box, [&](const Shape& index) { bytes += value_at(index); });
  return bytes;
}

/// Reads the overlap and expects every element of it in place, all others untouched. Returns the number of reads.
int expect_overlap(const Box& chunk, const Box& wanted) {
  const std::string data = bytes_of(chunk);
  std::string out(static_cast<size_t>(element_count(wanted.sizes)), '\xff'), expected;
  int reads = 0;
  const auto read = [&](int64_t offset, std::byte* to, int64_t bytes) {
    ASSERT_LE(offset + bytes, static_cast<int64_t>(data.size()));
    std::memcpy(to, data.data() + offset, static_cast<size_t>(bytes));
    ++reads;
  };
  const int64_t bytes = read_overlap(chunk, wanted, 1, read, reinterpret_cast<std::byte*>(out.data()));

  const Box shared = overlap(chunk, wanted);
  for_each_index(wanted, [&](const Shape& index) {
    bool is_shared = true;
    for (size_t d = 0; d < index.size(); ++d)
      is_shared = is_shared && shared.begin[d] <= index[d] && index[d] < shared.begin[d] + shared.sizes[d];
    expected += is_shared ? value_at(index) : '\xff';
  });
  EXPECT_EQ(out == expected, true) << to_string(chunk.begin) << to_string(chunk.sizes) << to_string(wanted.begin)
                                   << to_string(wanted.sizes);
  EXPECT_EQ(bytes, element_count(shared.sizes));
  return reads;
}

TEST(Box, RandomOverlapsArePutInPlace) {
  std::mt19937 random(11);
  const auto below = [&](int64_t limit) { return std::uniform_int_distribution<int64_t>(0, limit)(random); };
  for (int round = 0; round < 3000; ++round) {
    Box chunk, wanted;
    for (int64_t d = below(4); d > 0; --d) {
      chunk.begin.push_back(below(3));
      chunk.sizes.push_back(below(4));
      const bool same = below(1) == 0;
      wanted.begin.push_back(same ? chunk.begin.back() : below(3));
      wanted.sizes.push_back(same ? chunk.sizes.back() : below(4));
    }
    expect_overlap(chunk, wanted);
  }
}

TEST(Box, WhatIsContiguousInTheChunkIsReadAtOnce) {
  EXPECT_EQ(expect_overlap({{0, 0}, {4, 6}}, {{1, 0}, {2, 6}}), 1) << "rows";
  EXPECT_EQ(expect_overlap({{0, 0}, {4, 6}}, {{0, 0}, {4, 12}}), 1) << "a whole chunk into columns";
  EXPECT_EQ(expect_overlap({{0, 0}, {4, 6}}, {{0, 2}, {4, 3}}), 4) << "columns of a chunk";
  EXPECT_EQ(expect_overlap({{3, 0, 0}, {1, 4, 6}}, {{0, 2, 0}, {8, 2, 9}}), 1) << "one layer of a stack";
  EXPECT_EQ(expect_overlap({{}, {}}, {{}, {}}), 1) << "a scalar";
  EXPECT_EQ(expect_overlap({{0}, {4}}, {{4}, {4}}), 0) << "neighbours";
}

TEST(Box, LargeChunksAreReadInPieces) {
  EXPECT_EQ(expect_overlap({{0, 0}, {3000, 3001}}, {{0, 0}, {3000, 3010}}), 3) << "9 MB into columns";
  EXPECT_EQ(expect_overlap({{0, 0}, {3, 300'000}}, {{0, 0}, {3, 300'001}}), 3) << "long rows go straight to their place";
}

}  // namespace
}  // namespace ptq::checkpoint
