#include <gtest/gtest.h>

#include <array>
#include <new>
#include <stdexcept>

#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "tests/support/expect_error.h"

namespace ptq::parallel {
namespace {

TEST(SelfCommunicator, IsRankZeroOfOne) {
  const auto self = make_self_communicator();

  EXPECT_EQ(self->rank(), 0);
  EXPECT_EQ(self->size(), 1);
}

TEST(SelfCommunicator, GathersAndReducesItsOwnValues) {
  const auto self = make_self_communicator();
  const std::array<int32_t, 3> send{7, -8, 9};
  std::array<int32_t, 3> received{};
  std::array<float, 2> maxima{-1.5f, 3.0f};
  std::array<int64_t, 2> sums{4, -5};

  self->all_gather(send.data(), std::array<int64_t, 1>{12}, received.data());
  self->all_reduce_max(std::span<float>(maxima));
  self->all_reduce_sum(std::span<int64_t>(sums));
  self->broadcast(received.data(), 12, 0);

  EXPECT_EQ(received, send);
  EXPECT_EQ(maxima, (std::array<float, 2>{-1.5f, 3.0f}));
  EXPECT_EQ(sums, (std::array<int64_t, 2>{4, -5}));
}

TEST(SelfCommunicator, HasNoPeerToSendTo) {
  const auto self = make_self_communicator();
  int64_t value = 0;

  test::expect_error(ErrorKind::kBug, "no peer", [&] { self->send(&value, sizeof(value), 0, 1); });
  test::expect_error(ErrorKind::kBug, "no peer", [&] { self->receive(&value, sizeof(value), 0, 1); });
}

TEST(SelfCommunicator, SplitsIntoItself) {
  const auto part = make_self_communicator()->split(3, 9);

  EXPECT_EQ(part->rank(), 0);
  EXPECT_EQ(part->size(), 1);
}

TEST(SelfCommunicator, GivesToItself) {
  const auto self = make_self_communicator();
  const std::array<int32_t, 3> send{7, -8, 9};
  std::array<int32_t, 3> received{};

  self->all_to_all(send.data(), std::array<int64_t, 1>{12}, received.data(), std::array<int64_t, 1>{12});

  EXPECT_EQ(received, send);
  EXPECT_EQ(self->all_to_all({-5}), std::vector<int64_t>{-5});
  EXPECT_NO_THROW(self->all_to_all(nullptr, std::array<int64_t, 1>{0}, nullptr, std::array<int64_t, 1>{0}));
}

TEST(Communicator, AllToAllNeedsOneSizePerRank) {
  const auto self = make_self_communicator();
  const std::array<int64_t, 1> one{0};
  const std::array<int64_t, 2> two{0, 0};

  test::expect_error(ErrorKind::kBug, "one size per rank", [&] { self->all_to_all(nullptr, two, nullptr, one); });
  test::expect_error(ErrorKind::kBug, "one size per rank", [&] { self->all_to_all(nullptr, one, nullptr, two); });
  test::expect_error(ErrorKind::kBug, "one size per rank", [&] { self->all_to_all({1, 2}); });
}

TEST(Communicator, GathersTheOnlyTextAsItIs) {
  const auto self = make_self_communicator();

  EXPECT_EQ(self->gather_texts(""), std::vector<std::string>{""});
  EXPECT_EQ(self->gather_texts(std::string("a\0b\n", 4)), (std::vector<std::string>{std::string("a\0b\n", 4)}));
}

TEST(Communicator, AgreeingOnNoErrorThrowsNothing) { EXPECT_NO_THROW(make_self_communicator()->agree(std::nullopt)); }

TEST(Communicator, AnAgreedErrorKeepsKindPlaceAndFix) {
  try {
    make_self_communicator()->agree(user_error("what", "where", "fix"));
    FAIL() << "no error";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUser);
    EXPECT_EQ(error.message(), "what");
    EXPECT_EQ(error.where(), "where");
    EXPECT_EQ(error.fix(), "fix");
  }
}

TEST(Communicator, WhatWorkThrowsIsAgreedOn) {
  const auto self = make_self_communicator();
  int runs = 0;

  self->together([&] { ++runs; });
  self->on_root([&] { ++runs; });

  EXPECT_EQ(runs, 2);
  EXPECT_THROW(self->together([] { throw data_error("damaged"); }), AgreedError);
  EXPECT_THROW(self->on_root([] { throw data_error("damaged"); }), AgreedError);
  test::expect_error(ErrorKind::kData, "damaged", [&] { self->together([] { throw data_error("damaged"); }); });
  test::expect_error(ErrorKind::kSystem, "out of memory", [&] { self->together([] { throw std::bad_alloc(); }); });
  test::expect_error(ErrorKind::kBug, "index", [&] { self->on_root([] { throw std::out_of_range("index"); }); });
}

TEST(Mesh, OneRankIsEveryGroup) {
  const auto self = make_self_communicator();

  const Mesh mesh = Mesh::make(*self, {});

  for (const Communicator* group :
       {&mesh.tensor(), &mesh.data(), &mesh.pipeline(), &mesh.stage(), &mesh.world(), &mesh.experts(), &mesh.replicas()})
    EXPECT_EQ(group->size(), 1);
}

TEST(Mesh, RefusesAShapeOfAnotherSize) {
  const auto self = make_self_communicator();

  test::expect_error(ErrorKind::kBug, "mesh", [&] { Mesh::make(*self, {.data = 2, .pipeline = 1, .tensor = 1}); });
  for (const int expert : {0, -1, 2}) test::expect_error(ErrorKind::kBug, "expert ranks", [&] { Mesh::make(*self, {.expert = expert}); });
}

}  // namespace
}  // namespace ptq::parallel
