// The same bytes whatever the ranks, the threads and the memory: the promise that makes every other test at one rank count for all.

#include <cmath>

#include "tests/e2e/recipe_runs.h"

namespace ptq::test {
namespace {

/// One way to run a recipe.
struct Way {
  const char* name;
  int ranks;
  std::vector<std::string> words;
};

const std::vector<Way>& ways() {
  static const std::vector<Way> all{
      {"two_threads", 1, {"--threads", "2"}},
      {"tensor_2", 2, {"parallel.tensor=2"}},
      {"tensor_4", 4, {"parallel.tensor=4"}},
      {"pipeline_2", 2, {"parallel.pipeline=2"}},
      {"data_2", 2, {}},
      {"data_3", 3, {}},
      {"tensor_2_pipeline_2", 4, {"parallel.tensor=2", "parallel.pipeline=2"}},
      {"tensor_2_data_2", 4, {"parallel.tensor=2"}},
  };
  return all;
}

class RankCount : public RecipeRuns {
 protected:
  /// The recipe at one rank and in all other ways.
  void expect_same_bytes_in_all_ways(const std::vector<std::string>& words) {
    std::vector<std::string> one_thread = words;
    one_thread.insert(one_thread.end(), {"--threads", "1"});
    const std::string reference = quantize("one", 1, one_thread);
    ASSERT_EQ(last_.exit_code, 0);
    for (const Way& way : ways()) {
      std::vector<std::string> all = words;
      all.insert(all.end(), way.words.begin(), way.words.end());
      const std::string output = quantize(way.name, way.ranks, all);
      if (last_.exit_code == 0) expect_same_output(reference, output);
    }
  }
};

/// The events of run.jsonl.
std::vector<Json> events(const std::string& output) {
  std::vector<Json> found;
  std::istringstream text(read_file(output + "/ptq-runner/run.jsonl"));
  for (std::string line; std::getline(text, line);) found.push_back(Json::parse(line));
  return found;
}
Json event(const std::string& output, const std::string& phase) {
  for (const Json& found : events(output))
    if (found.at("phase") == phase) return found;
  return Json::object();
}

TEST_F(RankCount, DoesNotChangeTheBytesOfLlama) {
  write_recipe(shipped_llama(), shipped_text(), 16, 512);
  expect_same_bytes_in_all_ways({"quantization.kv_cache=fp8"});
}

TEST_F(RankCount, DoesNotChangeTheBytesOfQwen3) {
  PTQ_NEEDS_SHARED(shared);
  write_recipe(shared + "/fixtures/models/qwen3", shared + "/fixtures/text/calib.jsonl", 16, 512);
  expect_same_bytes_in_all_ways({"quantization.kv_cache=fp8"});
}

TEST_F(RankCount, DoesNotChangeTheBytesOfNemotronNas) {
  PTQ_NEEDS_SHARED(shared);
  write_recipe(shared + "/fixtures/models/nemotron-nas", shared + "/fixtures/text/calib.jsonl", 8, 512);
  const std::string one = quantize("one", 1, {"quantization.kv_cache=fp8"});
  expect_same_output(one, quantize("data", 2, {"quantization.kv_cache=fp8"}));
  expect_same_output(one, quantize("pipeline", 3, {"quantization.kv_cache=fp8", "parallel.pipeline=3"}));
  expect_same_output(one, quantize("tensor", 2, {"quantization.kv_cache=fp8", "parallel.tensor=2"}));
}

TEST_F(RankCount, DoesNotChangeTheBytesOfFp8InFp32) {
  write_recipe(shipped_llama(), shipped_text(), 4, 256);
  const std::vector<std::string> words{"quantization.preset=fp8", "compute=fp32"};
  const std::string one = quantize("one", 1, words);
  expect_same_output(one, quantize("data", 2, words));
  expect_same_output(one, quantize("grid", 4, {"quantization.preset=fp8", "compute=fp32", "parallel.tensor=2", "parallel.pipeline=2"}));
}

TEST_F(RankCount, DoesNotMatterToRowsOfUnequalLength) {
  write_recipe(shipped_llama(), shipped_text(), 24, 300);
  const std::vector<std::string> words{"calibration.pack=false"};
  const std::string one = quantize("one", 1, words);
  expect_same_output(one, quantize("data", 3, words));
  expect_same_output(one, quantize("tensor", 4, {"calibration.pack=false", "parallel.tensor=4"}));
  expect_same_output(one, quantize("pipeline", 2, {"calibration.pack=false", "parallel.pipeline=2"}));
}

TEST_F(RankCount, MayExceedSamplesKeyValueHeadsAndLayers) {
  // Odd sizes everywhere: 3 samples of 7 tokens, 131 words, 2 key-value heads, 3 layers.
  make_tiny_llama(folder_ / "model", {.layers = 3, .vocab = 131});
  folder_.write("data.jsonl", random_documents(3, 7, 131));
  write_recipe(folder_ / "model", folder_ / "data.jsonl", 3, 7);
  const std::vector<std::string> base{"calibration.pack=false", "quantization.kv_cache=fp8", "quantization.ignore=[]"};
  const auto with = [&](std::vector<std::string> words) {
    words.insert(words.end(), base.begin(), base.end());
    return words;
  };
  const std::string one = quantize("one", 1, with({}));
  expect_same_output(one, quantize("data_4", 4, with({})));
  expect_same_output(one, quantize("tensor_4", 4, with({"parallel.tensor=4"})));
  expect_same_output(one, quantize("pipeline_3", 3, with({"parallel.pipeline=3"})));
  expect_same_output(one, quantize("pipeline_2_data_2", 4, with({"parallel.pipeline=2"})));
  expect_same_output(one, quantize("pipeline_2_tensor_4", 8, with({"parallel.pipeline=2", "parallel.tensor=4"})));
}

TEST_F(RankCount, DoesNotChangeMixedFormatsAndAQuantizedHeadInShards) {
  write_recipe(shipped_llama(), shipped_text(), 8, 256);
  const std::vector<std::string> mixed{R"(quantization.rules=[{match: "*.self_attn.*", format: fp8}])", "quantization.ignore=[]"};
  std::vector<std::string> sharded = mixed;
  sharded.emplace_back("output.max_shard_size=1MB");
  std::vector<std::string> at_four = sharded;
  at_four.emplace_back("parallel.tensor=2");

  const std::string single = quantize("single", 1, mixed), one = quantize("one", 1, sharded), four = quantize("four", 4, at_four);

  expect_same_output(one, four);
  const StoredTensors tensors = read_tensors(one);
  EXPECT_TRUE(tensors == read_tensors(single)) << "shards change tensors";
  EXPECT_EQ(tensors.at("model.layers.0.self_attn.q_proj.weight").dtype, "F8_E4M3");
  EXPECT_EQ(tensors.at("model.layers.0.mlp.up_proj.weight").dtype, "U8");
  EXPECT_EQ(tensors.at("lm_head.weight").dtype, "U8");
  const Json index = read_json_file(one + "/model.safetensors.index.json");
  EXPECT_EQ(index.at("weight_map").size(), tensors.size());
  EXPECT_EQ(index.at("metadata").at("total_size"), tensor_bytes(tensors));
  EXPECT_GE(file_sums(one).size(), 6u);
}

TEST_F(RankCount, AndShardsOfTheSourceDoNotChangeTheBytes) {
  copy_folder(shipped_llama(), folder_ / "sharded");
  split_into_shards(folder_ / "sharded", 4);
  write_recipe(shipped_llama(), shipped_text(), 8, 256);
  const std::string one = quantize("one", 1, {});

  expect_same_output(one, quantize("from_shards", 1, {"model.path=" + folder_ / "sharded"}));
  expect_same_output(one, quantize("from_shards_at_two", 2, {"model.path=" + folder_ / "sharded", "parallel.tensor=2"}));
}

TEST_F(RankCount, AndMemoryDoNotChangeTheBytes) {
  write_recipe(shipped_llama(), shipped_text(), 48, 512);
  const std::string one = quantize("one", 1, {});
  // The refusal says how much is needed without the hidden states, which take 12 MiB more: between the two they are spilled.
  const ProgramResult refused = run_program({folder_ / "recipe.yaml", "output.path=" + folder_ / "never", "memory.host=1MiB"});
  const size_t at = refused.err.find("this rank needs ");
  ASSERT_NE(at, std::string::npos) << refused.report();
  const double budget = std::stod(refused.err.substr(at + 16)) + 4;
  const std::string memory = "memory.host=" + std::to_string(static_cast<int>(std::ceil(budget))) + "MiB";

  const std::string spilled = quantize("spilled", 1, {memory});

  EXPECT_NE(last_.err.find("spilled"), std::string::npos) << last_.report();
  expect_same_output(one, spilled);
  const double peak = event(spilled, "written").at("peak_bytes").get<double>() / 0x1p20;
  EXPECT_LE(peak, budget + 1) << "MiB resident, under " << memory;
  std::cout << memory << ", peak " << peak << " MiB\n";
}

TEST_F(RankCount, ReadsEverySourceByteOnce) {
  // 64 distinct tokens, five apart so that no neighbour is read along, all of them in the share of every rank.
  std::string documents;
  for (int row = 0; row < 8; ++row) {
    documents += R"({"input_ids": [)";
    for (int i = 0; i < 128; ++i) documents += (i ? ", " : "") + std::to_string(i % 64 * 5);
    documents += "]}\n";
  }
  folder_.write("data.jsonl", documents);
  write_recipe(shipped_llama(), folder_ / "data.jsonl", 8, 128);
  const int64_t weights = tensor_bytes(read_tensors(shipped_llama() + "/model.safetensors"));
  constexpr int64_t kRows = int64_t{64} * 256 * 2, kNorm = int64_t{256} * 2;
  // Ranks that look up embeddings read the rows of their tokens, and at the end the final norm, for what lm_head reads; both tensors are
  // copied like all others.
  const std::vector<std::pair<Way, int64_t>> cases{{{"one", 1, {}}, 1},
                                                   {{"tensor_2", 2, {"parallel.tensor=2"}}, 2},
                                                   {{"data_2", 2, {}}, 2},
                                                   {{"pipeline_2", 2, {"parallel.pipeline=2"}}, 1},
                                                   {{"grid", 4, {"parallel.pipeline=2", "parallel.tensor=2"}}, 2}};
  for (const auto& [way, lookups] : cases) {
    std::vector<std::string> words = way.words;
    words.insert(words.end(), {"calibration.pack=false", "output.verify=false"});
    const std::string output = quantize(way.name, way.ranks, words);

    const Json transferred = event(output, "transferred");
    EXPECT_EQ(transferred.value("bytes_read", int64_t{0}), weights + lookups * (kRows + kNorm)) << way.name;
    EXPECT_EQ(transferred.value("bytes_written", int64_t{0}), tensor_bytes(read_tensors(output))) << way.name;
  }
}

}  // namespace
}  // namespace ptq::test
