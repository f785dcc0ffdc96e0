// Models in Megatron-core's layout, made of Hugging Face checkpoints, must be read as those again; and what does not fit is refused.

#include "runner/megatron_reader.h"

#include <gtest/gtest.h>

#include "checkpoint/megatron_legacy_store.h"
#include "checkpoint/torch_pickle.h"
#include "layers/models/models.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_rank_file.h"
#include "tests/support/memory_arrays.h"
#include "tests/support/shared_folder.h"
#include "tests/support/temporary_folder.h"

namespace ptq::runner {
namespace {

using test::expect_error;
using test::Json;
using test::StoredTensors;

constexpr int64_t kRows = 128;

struct Model {
  explicit Model(const std::string& folder_of)
      : folder(folder_of),
        config(test::read_json_file(folder + "/config.json")),
        tensors(test::read_tensors(folder)),
        layers(config.at("num_hidden_layers").get<int64_t>()) {}

  StoredTensors arrays() const {
    const int64_t rows = std::max(kRows, config.at("vocab_size").get<int64_t>());
    return test::to_megatron(tensors, config.value("num_key_value_heads", int64_t{1}), layers, rows);
  }
  std::unique_ptr<checkpoint::Reader> open(std::unique_ptr<checkpoint::ArrayStore> store) const {
    return open_megatron(std::move(store), "memory", folder, config,
                         layers::describe_model(layers::Config(config, folder + "/config.json")));
  }
  std::unique_ptr<checkpoint::Reader> open(const StoredTensors& stored) const { return open(std::make_unique<test::MemoryArrays>(stored)); }
  void expect_same(const StoredTensors& stored) const { expect_same(std::make_unique<test::MemoryArrays>(stored)); }
  void expect_same(std::unique_ptr<checkpoint::ArrayStore> store) const {
    const auto reader = open(std::move(store));
    EXPECT_EQ(reader->tensors().size(), tensors.size());
    for (const auto& [name, wanted] : tensors) {
      ASSERT_TRUE(reader->find(name)) << name;
      const Tensor found = reader->read(name);
      EXPECT_EQ(dtype_name(found.dtype()), wanted.dtype) << name;
      EXPECT_EQ(found.shape(), wanted.shape) << name;
      EXPECT_TRUE(std::string(reinterpret_cast<const char*>(found.raw()), static_cast<size_t>(found.bytes())) == wanted.bytes) << name;
    }
  }

  std::string folder;
  Json config;
  StoredTensors tensors;
  int64_t layers;
};

/// The tensors of a Megatron-core rank's file under the names they had before, newer ones (input_norm) or older ones (input_layernorm).
std::vector<test::RankTensor> precore_tensors(const std::string& path, bool is_newer) {
  const std::string norm = is_newer ? "_norm." : "_layernorm.";
  const std::vector<std::pair<std::string, std::string>> renamed{{"decoder.", "encoder."},
                                                                 {"final_layernorm.", "final" + norm},
                                                                 {"input_layernorm.", "input" + norm},
                                                                 {"pre_mlp_layernorm.", "post_attention" + norm},
                                                                 {"self_attention.linear_qkv.layer_norm_", "input" + norm},
                                                                 {"mlp.linear_fc1.layer_norm_", "post_attention" + norm},
                                                                 {"linear_qkv.", "query_key_value."},
                                                                 {"linear_proj.", "dense."},
                                                                 {"linear_fc1.", "dense_h_to_4h."},
                                                                 {"linear_fc2.", "dense_4h_to_h."}};
  const checkpoint::TorchFile file(checkpoint::ByteSlice::of_file(path));
  std::vector<test::RankTensor> tensors;
  for (const auto& [key, value] : file.find({"model"}).entries()) {
    if (!checkpoint::TorchFile::is_tensor(value)) continue;
    std::string name(*key.text());
    const checkpoint::TorchTensor tensor = file.tensor(value, name);
    std::string bytes(static_cast<size_t>(tensor.bytes()), '\0');
    checkpoint::read_torch_rows(file.slice(), tensor, 0, tensor.rows(), reinterpret_cast<std::byte*>(bytes.data()));
    for (const auto& [now, before] : renamed)
      if (const size_t found = name.find(now); found != std::string::npos) name.replace(found, now.size(), before);
    tensors.push_back({name, tensor.shape, bytes, tensor.dtype == DType::kBF16 ? "torch BFloat16Storage" : "torch FloatStorage"});
  }
  return tensors;
}

/// Gives the model a layer of multi-token prediction: its last one again, and what is around it.
void add_prediction(Model& one) {
  const std::string last = "model.layers." + std::to_string(one.layers - 1) + ".",
                    extra = "model.layers." + std::to_string(one.layers) + ".";
  for (const auto& [name, tensor] : StoredTensors(one.tensors))
    if (name.starts_with(last)) one.tensors[extra + name.substr(last.size())] = tensor;
  const int64_t hidden = one.config.at("hidden_size");
  std::mt19937_64 random(1);
  for (const char* norm : {"enorm", "hnorm", "shared_head.norm"})
    one.tensors[extra + norm + ".weight"] = test::random_tensor({hidden}, 1.0f, random);
  one.tensors[extra + "eh_proj.weight"] = test::random_tensor({hidden, 2 * hidden}, 1.0f, random);
  one.tensors[extra + "embed_tokens.weight"] = one.tensors.at("model.embed_tokens.weight");
  one.tensors[extra + "shared_head.head.weight"] = one.tensors.at("lm_head.weight");
}

class MegatronReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test::shared_folder().empty()) GTEST_SKIP() << "no test material: neither $PTQ_SHARED nor ../shared is a folder";
  }
  static Model model(const std::string& name) { return Model(test::shared_folder() + "/fixtures/input_formats/hf/" + name); }
};

TEST_F(MegatronReaderTest, EveryFamilyIsReadBackFromNumberedLayers) {
  for (const char* name : {"llama", "qwen2", "qwen3_moe", "mixtral", "nemotron", "deepseek_v3", "glm4_moe"}) {
    SCOPED_TRACE(name);
    model(name).expect_same(model(name).arrays());
  }
}

TEST_F(MegatronReaderTest, EveryFamilyIsReadBackFromStackedLayers) {
  for (const char* name : {"llama", "qwen2", "qwen3_moe", "mixtral", "nemotron"}) {
    SCOPED_TRACE(name);
    const Model one = model(name);
    StoredTensors prefixed;
    for (const auto& [array, content] : test::stacked(one.arrays(), one.layers)) prefixed["module." + array] = content;
    one.expect_same(prefixed);
  }
}

TEST_F(MegatronReaderTest, PredictionLayersFollowTheLastLayer) {
  for (const char* name : {"deepseek_v3", "glm4_moe"}) {
    SCOPED_TRACE(name);
    Model one = model(name);
    add_prediction(one);
    one.expect_same(one.arrays());
  }
}

TEST_F(MegatronReaderTest, PredictionLayersAreThoseOfAPublishedModel) {
  // FP8 blocks stand for what a training run would hold; here their codes are as good as any numbers.
  Model one(test::shared_folder() + "/fixtures/models/deepseek-v3");
  std::erase_if(one.tensors, [](const auto& tensor) { return tensor.first.ends_with("_scale_inv"); });
  const std::string extra = "model.layers." + std::to_string(one.layers) + ".";
  ASSERT_TRUE(one.tensors.contains(extra + "embed_tokens.weight"));
  ASSERT_TRUE(one.tensors.at(extra + "shared_head.head.weight").bytes == one.tensors.at("lm_head.weight").bytes);
  one.expect_same(one.arrays());
}

TEST_F(MegatronReaderTest, ModelsFromBeforeMegatronCoreAreReadBack) {
  const Model one = model("llama");
  const std::string core = test::shared_folder() + "/fixtures/input_formats/legacy_llama_tp2/iter_0000005/";
  for (const bool is_newer : {false, true}) {
    const test::TemporaryFolder folder;
    for (const std::string file : {"mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"})
      folder.write(file, test::precore_rank_file({.tensor = 2}, precore_tensors(core + file, is_newer), is_newer, 3));
    one.expect_same(checkpoint::MegatronLegacyStore::open(checkpoint::folder_files(folder.path()), folder.path()));
  }
}

TEST_F(MegatronReaderTest, TiedHeadsMayBeStoredTwice) {
  Model one = model("llama");
  one.config["tie_word_embeddings"] = true;
  one.tensors.erase("lm_head.weight");
  StoredTensors arrays = one.arrays();
  one.expect_same(arrays);
  arrays["output_layer.weight"] = arrays.at("embedding.word_embeddings.weight");
  one.expect_same(arrays);
  arrays["output_layer.weight"].bytes[0] ^= 1;
  expect_error(ErrorKind::kData, "embeddings are tied", [&] { one.open(arrays); });
}

TEST_F(MegatronReaderTest, OnlyTheRowsWantedAreRead) {
  const Model one = model("llama");
  auto store = std::make_unique<test::MemoryArrays>(one.arrays());
  const test::MemoryArrays& counted = *store;
  const auto reader =
      open_megatron(std::move(store), "memory", one.folder, one.config, layers::describe_model(layers::Config(one.config, "config.json")));
  const checkpoint::TensorEntry& entry = reader->at("model.layers.1.self_attn.q_proj.weight");
  std::vector<std::byte> rows(static_cast<size_t>(20 * entry.row_bytes()));
  const int64_t before = counted.bytes_read();
  reader->read_rows(entry, 6, 26, rows.data());
  EXPECT_EQ(counted.bytes_read() - before, 20 * entry.row_bytes());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(rows.data()), rows.size()), test::rows_of(one.tensors.at(entry.name), 6, 20).bytes);
}

TEST_F(MegatronReaderTest, WhatDoesNotFitIsRefused) {
  const Model one = model("llama");
  const auto refused = [&](const std::string& words, const std::function<void(StoredTensors&)>& edit) {
    StoredTensors arrays = one.arrays();
    edit(arrays);
    expect_error(ErrorKind::kData, words, [&] { one.open(arrays); });
  };
  refused("no place for: 'decoder.layers.0.adapter.weight'",
          [](StoredTensors& arrays) { arrays["decoder.layers.0.adapter.weight"] = test::ones(1); });
  refused("has no array for tensor model.layers.1.mlp.down_proj.weight",
          [](StoredTensors& arrays) { arrays.erase("decoder.layers.1.mlp.linear_fc2.weight"); });
  refused("has no array embedding.word_embeddings.weight", [](StoredTensors& arrays) { arrays = {{"state", test::ones(1)}}; });
  refused("has no array embedding.word_embeddings.weight", [](StoredTensors& arrays) { arrays.clear(); });
  refused("are the same part of the model",
          [](StoredTensors& arrays) { arrays["module.output_layer.weight"] = arrays.at("output_layer.weight"); });
  refused("has the shape [1]", [](StoredTensors& arrays) { arrays["decoder.final_layernorm.weight"] = test::ones(1); });
  StoredTensors with_states = one.arrays();
  with_states["decoder.layers.0.mlp.linear_fc1._extra_state"] = test::ones(1);
  with_states["rotary_pos_emb.inv_freq"] = test::ones(4);
  one.expect_same(with_states);
  EXPECT_EQ(one.open(with_states)->ignored(),
            (std::vector<std::string>{"decoder.layers.0.mlp.linear_fc1._extra_state", "rotary_pos_emb.inv_freq"}));
}

}  // namespace
}  // namespace ptq::runner
