// Checkpoints of a file for each rank: tensors of bytes cut as Megatron's ranks hold them, put together again.

#include "checkpoint/megatron_legacy_store.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/expect_error.h"
#include "tests/support/make_rank_file.h"
#include "tests/support/temporary_folder.h"

namespace ptq::checkpoint {
namespace {

using test::expect_error;
using test::rank_file;
using Bytes = test::RankTensor;

class MegatronLegacy : public ::testing::Test {
 protected:
  void rank(const std::string& folder, const std::string& bytes) { folder_.write(folder + "/model_optim_rng.pt", bytes); }
  std::unique_ptr<ArrayStore> open() const { return MegatronLegacyStore::open(folder_files(folder_.path()), folder_.path()); }
  static std::string box(const ArrayStore& store, const std::string& name, const Shape& begin, const Shape& sizes) {
    std::string bytes(static_cast<size_t>(element_count(sizes)), '?');
    store.read_box(store.arrays().at(name), begin, sizes, reinterpret_cast<std::byte*>(bytes.data()));
    return bytes;
  }
  static std::string all(const ArrayStore& store, const std::string& name) {
    const Shape& shape = store.arrays().at(name).shape;
    return box(store, name, Shape(shape.size(), 0), shape);
  }
  test::TemporaryFolder folder_;
};

TEST_F(MegatronLegacy, TensorRanksAreJoinedAsTheirLinearsWereCut) {
  const std::string mlp = "decoder.layers.0.mlp.";
  const auto part = [&](const std::string& qkv, const std::string& proj, const std::string& fc1, const std::string& fc2) {
    return rank_file({2, 1, 1}, {{{"decoder.layers.0.self_attention.linear_qkv.weight", {1, 2}, qkv},
                                  {"decoder.layers.0.self_attention.linear_proj.weight", {2, 1}, proj},
                                  {mlp + "linear_fc1.weight", {2, 2}, fc1},
                                  {mlp + "linear_fc2.weight", {2, 1}, fc2},
                                  {"decoder.final_layernorm.weight", {2}, "nn"}}});
  };
  rank("mp_rank_00", part("ab", "ik", "ghuv", "02"));
  rank("mp_rank_01", part("cd", "jl", "GHUV", "13"));
  const auto store = open();
  EXPECT_EQ(all(*store, "decoder.layers.0.self_attention.linear_qkv.weight"), "abcd");
  EXPECT_EQ(all(*store, "decoder.layers.0.self_attention.linear_proj.weight"), "ijkl");
  EXPECT_EQ(all(*store, mlp + "linear_fc1.weight"), "ghGHuvUV");
  EXPECT_EQ(box(*store, mlp + "linear_fc1.weight", {1, 1}, {2, 1}), "Hv");
  EXPECT_EQ(all(*store, mlp + "linear_fc2.weight"), "0123");
  EXPECT_EQ(all(*store, "decoder.final_layernorm.weight"), "nn");
  EXPECT_EQ(store->files(), (std::vector<std::string>{"mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"}));
}

TEST_F(MegatronLegacy, LayersRunThroughTheFirstChunksOfAllStagesFirst) {
  const auto norm = [](int64_t local, const std::string& bytes) {
    return Bytes{"decoder.layers." + std::to_string(local) + ".input_layernorm.weight", {1}, bytes};
  };
  rank("mp_rank_00_000", rank_file({1, 2, 1}, {{norm(0, "a"), norm(1, "b")}, {norm(0, "d")}}));
  rank("mp_rank_00_001", rank_file({1, 2, 1}, {{norm(0, "c")}, {norm(0, "e"), norm(1, "f")}}));
  const auto store = open();
  ASSERT_EQ(store->arrays().size(), 6u);
  for (int i = 0; i < 6; ++i)
    EXPECT_EQ(all(*store, "decoder.layers." + std::to_string(i) + ".input_layernorm.weight"), std::string(1, static_cast<char>('a' + i)));
}

TEST_F(MegatronLegacy, ExpertsOfAGroupedProductAreTurnedAround) {
  // Two tensor ranks of one expert each on two expert ranks: hidden 2, two rows of gate and two of up in all.
  const std::string mlp = "decoder.layers.0.mlp.experts.";
  const auto part = [&](const std::string& up, const std::string& down) {
    return rank_file({2, 1, 2, 2}, {{{mlp + "weight1", {2, 2}, up}, {mlp + "weight2", {1, 2}, down}}});
  };
  rank("mp_rank_00_000", part("gugu", "xy"));  // memory [in 2][gate | up]
  rank("mp_rank_01_000", part("GUGU", "XY"));
  rank("mp_rank_00_001", part("1212", "ij"));
  rank("mp_rank_01_001", part("3434", "kl"));
  const auto store = open();
  const std::string up = mlp + "experts.linear_fc1.weight", down = mlp + "experts.linear_fc2.weight";
  EXPECT_EQ(store->arrays().at(up).shape, (Shape{2, 4, 2}));
  EXPECT_EQ(all(*store, up), "ggGGuuUU11332244");
  EXPECT_EQ(box(*store, up, {1, 1, 0}, {1, 2, 1}), "32");
  EXPECT_EQ(store->arrays().at(down).shape, (Shape{2, 2, 2}));
  EXPECT_EQ(all(*store, down), "xXyYikjl");
}

TEST_F(MegatronLegacy, ExpertsAreNumberedThroughTheirRanks) {
  const auto expert = [](int64_t local, const std::string& bytes) {
    return Bytes{"decoder.layers.0.mlp.experts.local_experts." + std::to_string(local) + ".linear_fc2.weight", {1, 1}, bytes};
  };
  const auto grouped = [](int64_t local, const std::string& bytes) {
    return Bytes{"decoder.layers.1.mlp.experts.linear_fc2.weight" + std::to_string(local), {1, 1}, bytes};
  };
  rank("mp_rank_00_000", rank_file({1, 1, 2, 4}, {{expert(0, "a"), expert(1, "b"), grouped(0, "A"), grouped(1, "B")}}));
  rank("mp_rank_00_001", rank_file({1, 1, 2, 4}, {{expert(0, "c"), expert(1, "d"), grouped(0, "C"), grouped(1, "D")}}));
  const auto store = open();
  for (int e = 0; e < 4; ++e) {
    const std::string number = std::to_string(e);
    EXPECT_EQ(all(*store, "decoder.layers.0.mlp.experts.local_experts." + number + ".linear_fc2.weight"),
              std::string(1, static_cast<char>('a' + e)));
    EXPECT_EQ(all(*store, "decoder.layers.1.mlp.experts.local_experts." + number + ".linear_fc2.weight"),
              std::string(1, static_cast<char>('A' + e)));
  }
}

TEST_F(MegatronLegacy, ExpertsMayBeSharedByFewerTensorRanks) {
  // Ranks 0 and 1 of two tensor ranks, two ranks of whole experts: each is one of both.
  const auto part = [&](const std::string& qkv, const std::string& fc1, const std::string& fc2, const std::string& shared) {
    return rank_file({.tensor = 2, .expert = 2, .experts = 2, .expert_tensor = 1},
                     {{{"decoder.layers.0.self_attention.linear_qkv.weight", {1, 2}, qkv},
                       {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight", {2, 2}, fc1},
                       {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight", {2, 1}, fc2},
                       {"decoder.layers.0.mlp.shared_experts.linear_fc2.weight", {2, 1}, shared},
                       {"decoder.final_layernorm.weight", {2}, "nn"}}});
  };
  rank("mp_rank_00_000", part("ab", "gguu", "xy", "02"));
  rank("mp_rank_01_001", part("cd", "GGUU", "XY", "13"));
  const auto store = open();
  const std::string mlp = "decoder.layers.0.mlp.";
  EXPECT_EQ(all(*store, "decoder.layers.0.self_attention.linear_qkv.weight"), "abcd");
  EXPECT_EQ(all(*store, mlp + "shared_experts.linear_fc2.weight"), "0123");
  EXPECT_EQ(all(*store, mlp + "experts.local_experts.0.linear_fc1.weight"), "gguu");
  EXPECT_EQ(all(*store, mlp + "experts.local_experts.1.linear_fc1.weight"), "GGUU");
  EXPECT_EQ(store->arrays().at(mlp + "experts.local_experts.1.linear_fc2.weight").shape, (Shape{2, 1}));
  EXPECT_EQ(all(*store, mlp + "experts.local_experts.1.linear_fc2.weight"), "XY");
  rank("mp_rank_01_000", part("cd", "GGUU", "XY", "13"));
  expect_error(ErrorKind::kData, "leave no room for", [&] { open(); });
}

TEST_F(MegatronLegacy, ExpertsOfFourPartsAreJoinedInTheOrderOfTheirRanks) {
  // Four tensor ranks, two of an expert's tensors, two of experts: rank r is tensor rank r, part r % 2 of expert r / 2.
  for (int r = 0; r < 4; ++r) {
    const std::string number = std::to_string(r);
    rank("mp_rank_0" + number + "_00" + std::to_string(r / 2),
         rank_file({.tensor = 4, .expert = 2, .experts = 2, .expert_tensor = 2},
                   {{{"decoder.layers.0.self_attention.linear_qkv.weight", {1, 1}, number},
                     {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight", {1, 1}, number}}}));
  }
  const auto store = open();
  EXPECT_EQ(all(*store, "decoder.layers.0.self_attention.linear_qkv.weight"), "0123");
  EXPECT_EQ(all(*store, "decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight"), "01");
  EXPECT_EQ(all(*store, "decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight"), "23");
}

TEST_F(MegatronLegacy, ExpertsSharedSoThatWeightsAreLostAreRefused) {
  const Bytes norm{"decoder.final_layernorm.weight", {1}, "n"};
  rank("mp_rank_00_000", rank_file({.tensor = 4, .expert = 2, .experts = 2, .expert_tensor = 1}, {{norm}}));
  expect_error(ErrorKind::kUser, "some tensor ranks wrote no mp_rank folder", [&] { open(); });
  rank("mp_rank_00_000", rank_file({.tensor = 1, .expert = 2, .experts = 2, .expert_tensor = 2}, {{norm}}));
  expect_error(ErrorKind::kUser, "several ranks wrote other parts of experts into one mp_rank folder", [&] { open(); });
}

TEST_F(MegatronLegacy, RanksThatDoNotFitAreRefused) {
  const Bytes norm{"decoder.final_layernorm.weight", {1}, "n"};
  rank("mp_rank_00", rank_file({4, 1, 1}, {{norm}}));
  expect_error(ErrorKind::kData, "tensor_model_parallel_size = 4, but there are the files of 1", [&] { open(); });
  rank("mp_rank_00", rank_file({2, 1, 1}, {{norm}}));
  rank("mp_rank_01", rank_file({2, 1, 1}, {{}}));
  expect_error(ErrorKind::kData, "is in the files of 1 ranks, where 2 should have it", [&] { open(); });
  rank("mp_rank_01", rank_file({2, 1, 1}, {{{"decoder.final_layernorm.weight", {2}, "nn"}}}));
  expect_error(ErrorKind::kData, "has the shape [1] on one rank and [2] on another", [&] { open(); });
}

TEST_F(MegatronLegacy, WhatEveryTensorRankHoldsMustBeTheSame) {
  // More than what is read of each end; the difference is in the second one.
  const int64_t rows = 700'000;
  const std::string same(static_cast<size_t>(2 * rows), 'r');
  std::string other = same;
  other.back() = 's';
  const auto part = [&](const std::string& router, const std::string& counter) {
    return rank_file({3}, {{{"decoder.layers.0.mlp.router.weight", {rows, 2}, router},
                            {"decoder.layers.0.mlp.router.local_tokens_per_expert", {1}, counter}}});
  };
  rank("mp_rank_00", part(same, "0"));
  rank("mp_rank_01", part(same, "1"));
  rank("mp_rank_02", part(same, "2"));
  EXPECT_TRUE(all(*open(), "decoder.layers.0.mlp.router.weight") == same);
  rank("mp_rank_02", part(other, "2"));
  expect_error(ErrorKind::kData,
               "array 'decoder.layers.0.mlp.router.weight' is held whole by every tensor rank, but that of rank 2 is not that of rank 0",
               [&] { open(); });
}

TEST_F(MegatronLegacy, WhatIsLeftOutIsNamedOnceForTheWholeModel) {
  const auto part = [&](const std::string& folder) {
    rank(folder, rank_file({2, 2}, {{{"decoder.layers.0.input_layernorm.weight", {1}, "n"},
                                     {"decoder.layers.0.mlp.linear_fc1._extra_state", {1}, "x"}}}));
  };
  for (const char* folder : {"mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_001", "mp_rank_01_001"}) part(folder);
  EXPECT_EQ(open()->left_out(),
            (std::vector<std::string>{"decoder.layers.0.mlp.linear_fc1._extra_state", "decoder.layers.1.mlp.linear_fc1._extra_state"}));
}

TEST_F(MegatronLegacy, ModelsFromBeforeMegatronCoreHaveItsNames) {
  const std::vector<Bytes> tensors{{"embedding.word_embeddings.weight", {1}, "a"},
                                   {"encoder.layers.12.self_attention.query_key_value.bias", {1}, "b"},
                                   {"encoder.layers.12.mlp.dense_4h_to_h.weight", {1, 1}, "c"},
                                   {"encoder.layers.12.post_attention_norm.weight", {1}, "d"},
                                   {"encoder.final_layernorm.bias", {1}, "e"},
                                   {"encoder.layers.12.adapter.weight", {1}, "f"},
                                   {"output_layer.weight", {1}, "g"}};
  for (const bool is_nested : {true, false}) {
    rank("mp_rank_00", test::precore_rank_file({}, tensors, is_nested, 2));
    const auto store = open();
    EXPECT_EQ(store->arrays().size(), tensors.size());
    EXPECT_EQ(all(*store, "embedding.word_embeddings.weight"), "a");
    EXPECT_EQ(all(*store, "decoder.layers.12.self_attention.linear_qkv.bias"), "b");
    EXPECT_EQ(all(*store, "decoder.layers.12.mlp.linear_fc2.weight"), "c");
    EXPECT_EQ(all(*store, "decoder.layers.12.pre_mlp_layernorm.weight"), "d");
    EXPECT_EQ(all(*store, "decoder.final_layernorm.bias"), "e");
    EXPECT_EQ(all(*store, "language_model.encoder.layers.12.adapter.weight"), "f");
    EXPECT_EQ(all(*store, "output_layer.weight"), "g");
  }
}

TEST_F(MegatronLegacy, ModelsFromBeforeVersionTwoAreRefused) {
  const std::vector<Bytes> tensors{{"output_layer.weight", {1}, "n"}};
  rank("mp_rank_00", test::precore_rank_file({}, tensors, true, 1));
  expect_error(ErrorKind::kUser, "checkpoint_version 0 or 1", [&] { open(); });
  rank("mp_rank_00", test::precore_rank_file({}, tensors, true, 0));
  expect_error(ErrorKind::kUser, "does not say its checkpoint_version", [&] { open(); });
}

}  // namespace
}  // namespace ptq::checkpoint
