#include "checkpoint/pickle.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/make_pickle.h"

namespace ptq::checkpoint {
namespace {

using namespace std::string_literals;
using test::expect_error;
using test::little_endian;
using test::pickled;
using test::pickled_call;
using test::pickled_dict;
using test::pickled_global;
using test::pickled_list;
using test::pickled_object;
using test::pickled_tuple;
using test::whole_pickle;

void expect_refused(const std::string& bytes, const std::string& words) {
  expect_error(ErrorKind::kData, words, [&] { parse_pickle(bytes, "a.pkl"); });
}

TEST(Pickle, PlainValuesOfEveryProtocol) {
  const std::string items = "N\x88\x89I01\nI-7\nL12345L\nF2.5\nK\xffM\x01\x02J\xfe\xff\xff\xff\x8a\x02\xff\x7f\x8a\x01\xff\x8a\0"s +
                            "G\x3f\xf8\0\0\0\0\0\0U\x03"s + "abcC\x02xy\x8c\x02\xc3\xa4"s + ")]}\x8f"s;
  const PickleTree tree = parse_pickle("\x80\x04\x95\0\0\0\0\0\0\0\0("s + items + "t.", "a.pkl");

  const PickleValue root = tree.root();
  ASSERT_EQ(root.size(), 21u);
  EXPECT_TRUE(root[0].is(PickleKind::kNone));
  EXPECT_EQ(root[1].integer(), 1);
  EXPECT_EQ(root[2].integer(), 0);
  EXPECT_TRUE(root[3].is(PickleKind::kBool));
  EXPECT_EQ(root[4].integer(), -7);
  EXPECT_EQ(root[5].integer(), 12345);
  EXPECT_EQ(root[6].real(), 2.5);
  EXPECT_EQ(root[7].integer(), 255);
  EXPECT_EQ(root[8].integer(), 0x201);
  EXPECT_EQ(root[9].integer(), -2);
  EXPECT_EQ(root[10].integer(), 0x7fff);
  EXPECT_EQ(root[11].integer(), -1);
  EXPECT_EQ(root[12].integer(), 0);
  EXPECT_EQ(root[13].real(), 1.5);
  EXPECT_EQ(root[14].text(), "abc");
  EXPECT_EQ(root[15].data(), "xy");
  EXPECT_FALSE(root[15].text());
  EXPECT_EQ(root[16].text(), "\xc3\xa4");
  EXPECT_TRUE(root[17].is(PickleKind::kTuple));
  EXPECT_TRUE(root[18].is(PickleKind::kList));
  EXPECT_TRUE(root[19].is(PickleKind::kDict));
  EXPECT_TRUE(root[20].is(PickleKind::kSet));
  EXPECT_FALSE(root[21]) << "past the end";
  EXPECT_FALSE(root[19].find("a")[3].callable().args()) << "a path through what is not there";
}

TEST(Pickle, IntegersBeyond64BitsStayOpaque) {
  const PickleTree tree = parse_pickle("\x8a\x0alF\xf9 j\xa8P\x19\0\0."s, "a.pkl");

  EXPECT_TRUE(tree.root().is(PickleKind::kBigInt));
  EXPECT_EQ(tree.root().data().size(), 10u);
  EXPECT_FALSE(tree.root().integer());
  EXPECT_EQ(parse_pickle("L-123456789012345678901234567890L\n.", "a.pkl").root().data(), "-123456789012345678901234567890");
  expect_refused("L12345678901234567890123456789x\n.", "does not fit 64 bits");
}

TEST(Pickle, ContainersGrowOverSeveralBatchesAndKeepTheirOrder) {
  std::string list = "]", dict = "}";
  for (int64_t batch = 0; batch < 20; ++batch) {
    list += "(";
    dict += "(";
    for (int64_t i = 0; i < batch; ++i) {
      list += pickled(100 * batch + i);
      dict += pickled(std::to_string(100 * batch + i)) + pickled(i);
    }
    list += "e" + pickled(-batch) + "a";
    dict += "u" + pickled("batch " + std::to_string(batch)) + pickled(batch) + "s";
  }
  const PickleTree tree = parse_pickle(whole_pickle(pickled_tuple({list, dict})), "a.pkl");

  const PickleValue numbers = tree.root()[0], entries = tree.root()[1];
  ASSERT_EQ(numbers.size(), 210u);
  size_t at = 0;
  for (int64_t batch = 0; batch < 20; ++batch) {
    for (int64_t i = 0; i < batch; ++i) EXPECT_EQ(numbers[at++].integer(), 100 * batch + i);
    EXPECT_EQ(numbers[at++].integer(), -batch);
    EXPECT_EQ(entries.find("batch " + std::to_string(batch)).integer(), batch);
  }
  EXPECT_EQ(entries.entries().size(), 210u);
  EXPECT_EQ(entries.find("1918").integer(), 18);
}

TEST(Pickle, CallsAreWrittenDownAndNeverMade) {
  const std::string file = ::testing::TempDir() + "/ptq_pickle_was_called";
  const std::string call = pickled_call("posix system", {pickled("touch " + file)});
  const PickleTree tree = parse_pickle(whole_pickle(call), "a.pkl");

  EXPECT_TRUE(tree.root().is_call("posix", "system"));
  EXPECT_EQ(tree.root().args()[0].text(), "touch " + file);
  EXPECT_EQ(std::fopen(file.c_str(), "r"), nullptr);
  parse_pickle(whole_pickle("\x8c\x05posix\x8c\x06system\x93" + pickled_tuple({pickled("false")}) + "R" + pickled("state") + "b"), "a.pkl");
  parse_pickle(whole_pickle(pickled_global("builtins eval") + pickled_tuple({pickled("1/0")}) + "}\x92"), "a.pkl");
}

TEST(Pickle, ObjectsHaveStateAndEntries) {
  const std::string dict = pickled_global("collections OrderedDict") + ")R(" + pickled("a") + "K\x01" + pickled("b") + "K\x02" + "u" +
                           pickled_dict({pickled("_metadata"), "N"}) + "b";
  const std::string old = pickled_call("collections OrderedDict", {pickled_list({pickled_list({pickled("c"), "K\x03"})})});
  const std::string space = pickled_object("argparse Namespace", pickled_dict({pickled("tp"), "K\x02"}));
  const PickleTree tree = parse_pickle(whole_pickle(pickled_tuple({dict, old, space})), "a.pkl");

  EXPECT_EQ(tree.root()[0].size(), 2u);
  EXPECT_EQ(tree.root()[0].find("b").integer(), 2);
  EXPECT_TRUE(tree.root()[0].state().find("_metadata").is(PickleKind::kNone));
  EXPECT_EQ(tree.root()[1].find("c").integer(), 3);
  EXPECT_TRUE(tree.root()[2].is_call("argparse", "Namespace"));
  EXPECT_EQ(tree.root()[2].state().find("tp").integer(), 2);
}

TEST(Pickle, PersistentIdsAreNodesOfTheirOwn) {
  const PickleTree tree = parse_pickle(whole_pickle(pickled_list({pickled_tuple({pickled("storage"), pickled("0")}) + "Q"})), "a.pkl");

  ASSERT_EQ(tree.persistent().size(), 1u);
  EXPECT_EQ(tree.persistent()[0][0][1].text(), "0");
  EXPECT_EQ(tree.root()[0].node(), tree.persistent()[0].node());
}

TEST(Pickle, TheMemoSharesObjectsAndMayMakeATreeContainItself) {
  const PickleTree tree = parse_pickle("]q\0h\0a\x94h\1a."s, "a.pkl");

  const PickleValue root = tree.root();
  ASSERT_EQ(root.size(), 2u);
  EXPECT_EQ(root[0].node(), root.node());
  EXPECT_EQ(root[1][0][1][0].node(), root.node());
}

TEST(Pickle, NestingIsNoDeeperForTheProgramThanAnyOtherTree) {
  std::string deep;
  for (int i = 0; i < 300'000; ++i) deep += "](";
  for (int i = 0; i < 300'000; ++i) deep += "e";
  EXPECT_EQ(parse_pickle(deep + ".", "a.pkl").root().size(), 1u);
  EXPECT_TRUE(parse_pickle(std::string(1'000'000, ']') + ".", "a.pkl").root().is(PickleKind::kList));
}

TEST(Pickle, WhatACheckpointHasNoUseForIsRefused) {
  for (const char opcode : {'\x82', '\x83', '\x84', 'i', 'o', 'P', '\x97', '\x98', 'S', 'V', '\xff', '\0'})
    expect_refused("](]" + std::string(1, opcode) + "\1\1\1\1\n\n.", "unknown or not allowed");
  expect_refused("\x80\x06N."s, "newer than 5");
}

TEST(Pickle, BrokenPicklesAreDataErrors) {
  expect_refused("", "truncated");
  expect_refused("]]]", "truncated");
  expect_refused(
      "X\xff\xff\xff\x7f"
      "abc.",
      "truncated");
  expect_refused(
      "\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
      "abc.",
      "truncated");
  expect_refused(
      "\x8b\xff\xff\xff\xff"
      "abc.",
      "truncated");
  expect_refused(".", "missing on the stack");
  expect_refused("(.", "missing on the stack");
  expect_refused("N(a.", "missing on the stack");
  expect_refused("t.", "a mark is missing");
  expect_refused("}(NNNu.", "a key without a value");
  expect_refused("(NNNd.", "a key without a value");
  expect_refused("NNa.", "no container");
  expect_refused("]NNs.", "no container");
  expect_refused("]Nb.", "given a state");
  expect_refused("NN\x93.", "not text");
  expect_refused("h\x05.", "not set");
  expect_refused("Nr\xff\xff\xff\xff.", "larger than the pickle");
  expect_refused("Ix\n.", "not one");
  expect_refused("ca\nb\n)RNNsNa.", "two kinds of container");
}

TEST(Pickle, ThePrefixTellsAPickleThatGoesOnFromABrokenOne) {
  const std::string text = whole_pickle(pickled("abc")) + "more";

  EXPECT_EQ(parse_pickle_prefix(text, "a.pkl")->bytes, text.size() - 4);
  for (size_t bytes = 0; bytes < text.size() - 4; ++bytes) EXPECT_FALSE(parse_pickle_prefix(text.substr(0, bytes), "a.pkl")) << bytes;
  EXPECT_THROW(parse_pickle_prefix("N\xff", "a.pkl"), Error);
}

TEST(Pickle, LimitsHold) {
  expect_error(ErrorKind::kData, "more nodes", [] { parse_pickle(std::string(100, ']') + ".", "a.pkl", {.max_nodes = 50}); });
  expect_error(ErrorKind::kData, "more than any", [] { parse_pickle(std::string(100, ']') + ".", "a.pkl", {.max_bytes = 50}); });
}

TEST(Pickle, TheRestOfAStateCanBeLeftOut) {
  const std::string large = pickled_list({pickled_object("m Plan", pickled_dict({pickled("items"), pickled_list({"h\0"s, "h\0"s})}))});
  const std::string text = whole_pickle(pickled_object("m Metadata", pickled_dict({pickled("size") + "q\0"s, pickled_tuple({"K\1", "K\2"}),
                                                                                   pickled("plans"), large + "q\7", pickled("x"), "N"})));

  const PickleTree all = parse_pickle(text, "a.pkl"), part = parse_pickle(text, "a.pkl", {.drop_from_key = "plans"});

  EXPECT_TRUE(all.root().state().find("plans")[0].is_call("m", "Plan"));
  EXPECT_EQ(part.root().state().find("size")[1].integer(), 2);
  EXPECT_TRUE(part.root().state().find("plans").is(PickleKind::kDropped));
  EXPECT_LT(part.node_count() + 5, all.node_count());
}

}  // namespace
}  // namespace ptq::checkpoint
