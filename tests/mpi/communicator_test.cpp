#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "tests/mpi/world.h"

namespace ptq::parallel {
namespace {

using test::world;

/// Byte `i` of what rank `rank` gives.
uint8_t byte_of(int rank, int64_t i) { return static_cast<uint8_t>(rank * 71 + i * 13 + 5); }

void expect_gathered(const std::vector<int64_t>& bytes, bool in_place) {
  const int64_t mine = bytes[static_cast<size_t>(world().rank())];
  const int64_t before = std::accumulate(bytes.begin(), bytes.begin() + world().rank(), int64_t{0});
  std::vector<uint8_t> all(static_cast<size_t>(std::accumulate(bytes.begin(), bytes.end(), int64_t{0})) + 1, 0xee), send;
  for (int64_t i = 0; i < mine; ++i) send.push_back(byte_of(world().rank(), i));
  if (in_place) std::copy(send.begin(), send.end(), all.begin() + before);

  world().all_gather(in_place ? all.data() + before : send.data(), bytes, all.data());

  size_t at = 0;
  for (int r = 0; r < world().size(); ++r)
    for (int64_t i = 0; i < bytes[static_cast<size_t>(r)]; ++i) EXPECT_EQ(all[at++], byte_of(r, i)) << "rank " << r << ", byte " << i;
  EXPECT_EQ(all.back(), 0xee) << "wrote past the end";
}

TEST(AllGather, PutsUnevenPiecesInRankOrder) {
  std::vector<int64_t> bytes;
  for (int r = 0; r < world().size(); ++r) bytes.push_back(100 + 37 * r * r);

  expect_gathered(bytes, false);
  expect_gathered(bytes, true);
}

TEST(AllGather, AnyRankMayGiveNothing) {
  for (int empty = 0; empty < world().size(); ++empty) {
    std::vector<int64_t> bytes(static_cast<size_t>(world().size()), 9);
    bytes[static_cast<size_t>(empty)] = 0;

    expect_gathered(bytes, false);
    expect_gathered(bytes, true);
  }
  expect_gathered(std::vector<int64_t>(static_cast<size_t>(world().size()), 0), false);
}

TEST(AllGather, TakesMoreThanMpiSendsEagerly) { expect_gathered(std::vector<int64_t>(static_cast<size_t>(world().size()), 3 << 20), true); }

/// Byte `i` of what rank `from` gives rank `to`.
uint8_t byte_between(int from, int to, int64_t i) { return static_cast<uint8_t>(from * 71 + to * 29 + i * 13 + 5); }

/// Everyone gives `bytes(from, to)` bytes to everyone of the group.
template <class Bytes>
void expect_exchanged(Communicator& group, const Bytes& bytes) {
  std::vector<int64_t> send_bytes, recv_bytes;
  std::vector<uint8_t> send;
  int64_t total = 0;
  for (int r = 0; r < group.size(); ++r) {
    send_bytes.push_back(bytes(group.rank(), r));
    recv_bytes.push_back(bytes(r, group.rank()));
    for (int64_t i = 0; i < send_bytes.back(); ++i) send.push_back(byte_between(group.rank(), r, i));
    total += recv_bytes.back();
  }
  std::vector<uint8_t> received(static_cast<size_t>(total) + 1, 0xee);

  group.all_to_all(send.data(), send_bytes, received.data(), recv_bytes);

  size_t at = 0;
  int64_t wrong = 0;
  for (int r = 0; r < group.size(); ++r)
    for (int64_t i = 0; i < recv_bytes[static_cast<size_t>(r)]; ++i) wrong += received[at++] != byte_between(r, group.rank(), i);
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(received.back(), 0xee) << "wrote past the end";
}

TEST(AllToAll, PutsUnevenPiecesInRankOrder) {
  expect_exchanged(world(), [](int from, int to) { return int64_t{10} + 37 * from + 101 * to; });
  expect_exchanged(world(), [](int from, int to) { return int64_t{1} + (from + to) % 2; });
}

TEST(AllToAll, AnyoneMayGiveAnyoneNothing) {
  for (int quiet = 0; quiet < world().size(); ++quiet) {
    expect_exchanged(world(), [&](int from, int) { return int64_t{from == quiet ? 0 : 9}; });
    expect_exchanged(world(), [&](int, int to) { return int64_t{to == quiet ? 0 : 9}; });
    expect_exchanged(world(), [&](int from, int to) { return int64_t{from == quiet && to == 0 ? 9 : 0}; });
    expect_exchanged(world(), [&](int from, int to) { return int64_t{from == to ? 0 : 9}; });
    expect_exchanged(world(), [&](int from, int to) { return int64_t{from == to ? 9 : 0}; });
  }
  expect_exchanged(world(), [](int, int) { return int64_t{0}; });
}

TEST(AllToAll, TakesMoreThanMpiSendsEagerly) {
  expect_exchanged(world(), [](int from, int to) { return (int64_t{1} << 20) + from - to; });
}

TEST(AllToAll, OneAfterTheOtherDoNotMix) {
  // Ranks that run ahead: what belongs to a later exchange must not end in an earlier one.
  for (int64_t round = 0; round < 50; ++round) expect_exchanged(world(), [&](int from, int to) { return (round * 7 + from * 3 + to) % 5; });
}

TEST(AllToAll, StaysWithinItsGroup) {
  for (int colors = 1; colors <= world().size(); ++colors) {
    const auto part = world().split(world().rank() % colors, -world().rank());

    expect_exchanged(*part, [](int from, int to) { return int64_t{3} * from + 2 * to; });
  }
}

TEST(AllToAll, OfNumbersGivesEachRankItsOwn) {
  for (int colors = 1; colors <= world().size(); ++colors) {
    const auto part = world().split(world().rank() % colors, world().rank());
    std::vector<int64_t> values, expected;
    for (int64_t r = 0; r < part->size(); ++r) {
      values.push_back((int64_t{1} << 40) * part->rank() - r);
      expected.push_back((int64_t{1} << 40) * r - part->rank());
    }

    EXPECT_EQ(part->all_to_all(values), expected);
  }
}

TEST(AllReduce, TakesMaximaElementByElement) {
  const int rank = world().rank(), size = world().size();
  std::vector<float> floats{static_cast<float>(rank), -1.0f - static_cast<float>(rank), rank == 1 ? 1e30f : -1e30f, -0.5f};
  std::vector<int64_t> integers{(int64_t{1} << 40) + rank, -rank};

  world().all_reduce_max(std::span<float>(floats));
  world().all_reduce_max(std::span<int64_t>(integers));

  EXPECT_EQ(floats, (std::vector<float>{static_cast<float>(size - 1), -1.0f, 1e30f, -0.5f}));
  EXPECT_EQ(integers, (std::vector<int64_t>{(int64_t{1} << 40) + size - 1, 0}));
}

TEST(AllReduce, SumsIntegersElementByElement) {
  const int64_t rank = world().rank(), size = world().size();
  std::vector<int64_t> values{rank + 1, (int64_t{1} << 50) * rank, 0};

  world().all_reduce_sum(std::span<int64_t>(values));

  EXPECT_EQ(values, (std::vector<int64_t>{size * (size + 1) / 2, (int64_t{1} << 50) * (size * (size - 1) / 2), 0}));
}

TEST(AllReduce, OfNothingIsNothing) {
  std::vector<float> none;

  world().all_reduce_max(std::span<float>(none));

  EXPECT_TRUE(none.empty());
}

TEST(Broadcast, EveryRankCanBeTheRoot) {
  for (int root = 0; root < world().size(); ++root) {
    std::vector<int32_t> values(1000, world().rank());

    world().broadcast(values.data(), 4000, root);

    EXPECT_EQ(values, std::vector<int32_t>(1000, root));
  }
}

TEST(SendReceive, MessagesOfOneTagArriveInOrder) {
  const int next = (world().rank() + 1) % world().size(), previous = (world().rank() + world().size() - 1) % world().size();
  std::array<int64_t, 3> sent{}, received{};
  std::vector<std::unique_ptr<Transfer>> transfers;
  for (size_t i = 0; i < 3; ++i) {
    sent[i] = 100 * world().rank() + static_cast<int64_t>(i);
    transfers.push_back(world().send(&sent[i], sizeof(int64_t), next, 5));
  }

  for (size_t i = 0; i < 3; ++i) transfers.push_back(world().receive(&received[i], sizeof(int64_t), previous, 5));
  for (auto& transfer : transfers) transfer->wait();

  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(received[static_cast<size_t>(i)], 100 * previous + i);
}

TEST(SendReceive, TagsTellMessagesApart) {
  const int next = (world().rank() + 1) % world().size(), previous = (world().rank() + world().size() - 1) % world().size();
  const int64_t one = 1, two = 2;
  int64_t first = 0, second = 0;
  const auto send_one = world().send(&one, sizeof(one), next, 1), send_two = world().send(&two, sizeof(two), next, 2);

  world().receive(&second, sizeof(second), previous, 2)->wait();
  world().receive(&first, sizeof(first), previous, 1)->wait();
  send_one->wait();
  send_two->wait();

  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 2);
}

TEST(SendReceive, AMessageMayBeEmptyOrLarge) {
  const int next = (world().rank() + 1) % world().size(), previous = (world().rank() + world().size() - 1) % world().size();
  for (const int64_t bytes : {int64_t{0}, int64_t{5} << 20}) {
    std::vector<uint8_t> sent(static_cast<size_t>(bytes)), received(static_cast<size_t>(bytes), 0);
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = byte_of(world().rank(), static_cast<int64_t>(i));
    const auto sending = world().send(sent.data(), bytes, next, 3), receiving = world().receive(received.data(), bytes, previous, 3);

    receiving->wait();
    sending->wait();

    bool same = true;
    for (size_t i = 0; i < received.size(); ++i) same = same && received[i] == byte_of(previous, static_cast<int64_t>(i));
    EXPECT_TRUE(same);
  }
}

TEST(Split, OrdersEachColorByKey) {
  const int rank = world().rank(), size = world().size();

  const auto part = world().split(rank % 2, -rank);

  const int members = (size + 1 - rank % 2) / 2, larger_than_me = members - 1 - rank / 2;
  EXPECT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), larger_than_me) << "the highest world rank has the lowest key";
  int64_t highest = rank;
  part->broadcast(&highest, sizeof(highest), 0);
  EXPECT_EQ(highest, 2 * (members - 1) + rank % 2) << "messages leave their color";
}

TEST(GatherTexts, KeepsEveryRanksTextInOrder) {
  const auto text = [](int r) {
    return r == 1 ? std::string() : std::string(static_cast<size_t>(r * 1000 + 1), static_cast<char>('a' + r)) + '\0';
  };

  const std::vector<std::string> texts = world().gather_texts(text(world().rank()));

  EXPECT_EQ(texts.size(), static_cast<size_t>(world().size()));
  for (int r = 0; r < static_cast<int>(texts.size()); ++r) EXPECT_EQ(texts[static_cast<size_t>(r)], text(r)) << "rank " << r;
}

TEST(Agree, NoErrorOnAnyRankThrowsNothing) { EXPECT_NO_THROW(world().agree(std::nullopt)); }

TEST(Agree, TheLowestFailingRanksErrorReachesAllWhole) {
  for (int lowest = 0; lowest < world().size(); ++lowest) {
    const std::string name = std::to_string(world().rank());
    // Kinds differ too: what every rank throws must be one rank's error, not a mixture.
    const Error mine(world().rank() == lowest ? ErrorKind::kData : ErrorKind::kUser, "what " + name, "where " + name, "fix " + name);

    try {
      world().agree(world().rank() >= lowest ? std::optional<Error>(mine) : std::nullopt);
      ADD_FAILURE() << "no error";
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_EQ(error.message(), "what " + std::to_string(lowest));
      EXPECT_EQ(error.where(), "where " + std::to_string(lowest));
      EXPECT_EQ(error.fix(), "fix " + std::to_string(lowest));
    }
  }
}

TEST(Agree, AnErrorWithoutPlaceOrFixGainsNone) {
  try {
    world().agree(world().rank() == world().size() - 1 ? std::optional<Error>(data_error("alone")) : std::nullopt);
    ADD_FAILURE() << "no error";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_EQ(error.message(), "alone");
    EXPECT_EQ(error.where(), "");
    EXPECT_EQ(error.fix(), "");
  }
}

TEST(Together, OneRanksExceptionEndsItForAll) {
  EXPECT_THROW(world().together([] {
    if (world().rank() == 1) throw std::runtime_error("only here");
  }),
               AgreedError);
  EXPECT_NO_THROW(world().together([] {}));
}

TEST(OnRoot, RunsOnRankZeroAndFailsEverywhere) {
  int runs = 0;

  world().on_root([&] { ++runs; });

  EXPECT_EQ(runs, world().rank() == 0 ? 1 : 0);
  EXPECT_THROW(world().on_root([] { throw user_error("there is no such file"); }), AgreedError);
}

}  // namespace
}  // namespace ptq::parallel
