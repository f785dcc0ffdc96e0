// Training checkpoints that are damaged, or made to do harm: one clear message that names file and array, the right exit code, nothing left
// behind, and nothing done that a pickle or an archive asks for.

#include <filesystem>
#include <functional>

#include "tests/e2e/recipe_runs.h"
#include "tests/support/make_dist_checkpoint.h"
#include "tests/support/make_tar.h"

namespace ptq::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kArray = "decoder.layers.mlp.linear_fc2.weight";

class MegatronBadInput : public RecipeRuns {
 protected:
  void SetUp() override { make_tiny_llama(folder_ / "config"); }

  /// A torch_dist checkpoint of one array [4, 6] in two files, which is changed before it is written.
  void expect_refused_array(const std::string& words, const std::function<void(DistArray&)>& change) {
    const TemporaryFolder iteration;
    DistArray array{
        kArray, "uint8", {4, 6}, {byte_chunk({0, 0}, {2, 6}, "__0_0.distcp", 'a'), byte_chunk({2, 0}, {2, 6}, "__1_0.distcp", 'b')}};
    change(array);
    write_dist_checkpoint(iteration, {array});
    iteration.write("metadata.json", R"({"sharded_backend": "torch_dist", "sharded_backend_version": 1})");
    expect_refused(iteration.path(), folder_ / "config", 3, words);
    expect_refused(iteration.path(), folder_ / "config", 3, kArray);
    expect_refused(iteration.path(), folder_ / "config", 3, iteration.path() + "/.metadata");
  }
  void expect_refused_archive(const std::string& members, const std::string& words) {
    const std::string path = folder_.write("model.nemo", tar_member("./model_config.yaml", "precision: bf16\n") + members + tar_end());
    expect_refused(path, folder_ / "config", 3, words);
    expect_refused(path, folder_ / "config", 3, path);
  }
  /// A pickled value in each of the places where a checkpoint may have one: the weights of a Hugging Face model, of a rank of Megatron's,
  /// the metadata of torch_dist, and what its ranks share. The message has the path and `words`.
  void expect_refused_pickle(const std::string& value, const std::string& words = "") {
    const std::string file = torch_file(value, {}), config = folder_ / "config", backend = R"({"sharded_backend": "torch_dist"})";
    fs::remove_all(folder_ / "evil");
    folder_.write("evil/hf/config.json", read_file(config + "/config.json"));
    folder_.write("evil/hf/pytorch_model.bin", file);
    folder_.write("evil/legacy/mp_rank_00/model_optim_rng.pt", file);
    folder_.write("evil/dist/metadata.json", backend);
    folder_.write("evil/dist/.metadata", whole_pickle(value));
    folder_.write("evil/common/metadata.json", backend);
    folder_.write("evil/common/.metadata", dist_metadata({}));
    folder_.write("evil/common/common.pt", file);
    for (const std::string kind : {"hf", "legacy", "dist", "common"}) {
      const std::string path = folder_ / ("evil/" + kind);
      expect_refused(path, kind == "hf" ? "" : config, 3, words.empty() ? path : words);
    }
  }
};

TEST_F(MegatronBadInput, ShardsThatDoNotTileTheirArrayAreNamed) {
  expect_refused_array("overlap", [](DistArray& array) { array.chunks[1] = byte_chunk({1, 0}, {3, 6}, "__1_0.distcp", 'b'); });
  expect_refused_array("leave a hole", [](DistArray& array) { array.chunks[1] = byte_chunk({2, 0}, {1, 6}, "__1_0.distcp", 'b'); });
}

TEST_F(MegatronBadInput, ShardsOfAnUnknownCodecAreNamed) {
  expect_refused_array("is stored through 'stream.lz4/1', which is not read",
                       [](DistArray& array) { array.chunks[1].transforms = {"stream.lz4/1"}; });
}

TEST_F(MegatronBadInput, ArchivesThatLeadOutOfThemselvesAreRefused) {
  expect_refused_archive(tar_header("./model_weights/.metadata", 0, '2'), "member 'model_weights/.metadata' is a link");
  expect_refused_archive(tar_member("./model_weights/../../../etc/passwd", "x"),
                         "member './model_weights/../../../etc/passwd' of the archive has '..' in its name");
}

TEST_F(MegatronBadInput, PicklesDoNothing) {
  const std::string file = folder_ / "was_called", call = pickled_call("posix system", {pickled("touch " + file)});
  for (const std::string& value : {call, pickled_dict({pickled("model"), call}), pickled_dict({pickled("args"), call})})
    expect_refused_pickle(value);
  EXPECT_FALSE(fs::exists(file));
}

TEST_F(MegatronBadInput, PicklesThatNestDeepAreRefusedLikeAnyOther) {
  expect_refused_pickle(std::string(1'000'000, ']') + std::string(999'999, 'a'));
}

TEST_F(MegatronBadInput, PicklesThatAskForMemoryTheyDoNotFillAreTruncated) {
  expect_refused_pickle("\x8e" + little_endian(uint64_t{1} << 46, 8) + "short", "truncated");
  expect_refused_pickle("\x8d" + little_endian(uint64_t{1} << 46, 8) + "short", "truncated");
}

TEST_F(MegatronBadInput, TensorsBeyondTheirStorageAreNamed) {
  const std::vector<int64_t> shape{int64_t{1} << 23, int64_t{1} << 23};
  const std::string tensor = pickled_tensor(pickled_storage("torch ByteStorage", "0", int64_t{1} << 46), 0, shape, {shape[1], 1});
  const std::string name = "decoder.final_layernorm.weight";
  folder_.write("legacy/mp_rank_00/model_optim_rng.pt",
                torch_file(pickled_dict({pickled("model"), pickled_dict({pickled(name), tensor})}), {"few bytes"}));
  expect_refused(folder_ / "legacy", folder_ / "config", 3, name);
  expect_refused(folder_ / "legacy", folder_ / "config", 3, "mp_rank_00/model_optim_rng.pt");
}

}  // namespace
}  // namespace ptq::test
