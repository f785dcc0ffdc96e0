#pragma once
// A run that would succeed until something is spoiled, and what must come of it: one clear message, the right exit code, nothing left
// behind and no hang, at one rank and at several.

#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>

#include "kernels/core/dtype.h"
#include "tests/e2e/fixtures.h"

namespace ptq::test {

struct Scene {
  TemporaryFolder folder;
  std::string model = folder / "model", data = folder / "data.jsonl", output = folder / "out", recipe;
  std::vector<std::string> words{"calibration.pack=false"};
  std::string skip;  ///< why the case cannot be made here

  /// `make_model` writes a checkpoint of 128 tokens into the folder it is given.
  explicit Scene(const std::function<void(const std::string&)>& make_model) {
    make_model(model);
    write_file(data, random_documents(8, 32, 128));
    recipe = recipe_text(model, data, output, 4, 32);
  }
  std::string weights() const { return model + "/model.safetensors"; }
  void config(const std::function<void(Json&)>& edit) const { edit_json_file(model + "/config.json", edit); }
  void header(const std::function<void(Json&)>& edit) const { edit_safetensors_header(weights(), edit); }
  void tensors(const std::function<void(StoredTensors&)>& edit) const { edit_tensors(weights(), edit); }
  void add(const std::string& word) { words.push_back(word); }
  std::vector<std::string> command() const {
    std::vector<std::string> all{folder.write("recipe.yaml", recipe)};
    all.insert(all.end(), words.begin(), words.end());
    return all;
  }
};

struct Case {
  const char* name;
  int code;
  std::vector<std::string> words;  ///< that the message must hold
  std::function<void(Scene&)> spoil;
  std::vector<int> ranks{1, 2};
};

struct CaseAtRanks {
  Case input;
  int ranks;
};

inline std::ostream& operator<<(std::ostream& out, const CaseAtRanks& parameter) { return out << parameter.input.name; }

inline std::vector<CaseAtRanks> at_ranks(const std::vector<Case>& cases) {
  std::vector<CaseAtRanks> all;
  for (const Case& input : cases)
    for (const int ranks : input.ranks) all.push_back({input, ranks});
  return all;
}

/// Those of one rank, which are fast, and the others.
inline std::vector<CaseAtRanks> at_one_rank(const std::vector<Case>& cases) {
  std::vector<CaseAtRanks> all = at_ranks(cases);
  std::erase_if(all, [](const CaseAtRanks& input) { return input.ranks != 1; });
  return all;
}
inline std::vector<CaseAtRanks> at_several_ranks(const std::vector<Case>& cases) {
  std::vector<CaseAtRanks> all = at_ranks(cases);
  std::erase_if(all, [](const CaseAtRanks& input) { return input.ranks == 1; });
  return all;
}

inline std::string name_of(const ::testing::TestParamInfo<CaseAtRanks>& info) {
  return std::string(info.param.input.name) + "_" + std::to_string(info.param.ranks) + (info.param.ranks == 1 ? "_rank" : "_ranks");
}

inline void set_bf16(StoredTensor& tensor, int64_t at, float value) {
  const BF16 stored = to_bf16(value);
  std::memcpy(tensor.bytes.data() + 2 * at, &stored, 2);
}

inline constexpr const char* kUp = "model.layers.1.mlp.up_proj.weight";

/// Of a tiny Llama: sample 2 alone overflows, in layer 1: token 127 has nothing but a huge first element, which only the rows of up_proj
/// look at.
inline void make_overflow(const Scene& scene) {
  scene.tensors([](StoredTensors& tensors) {
    StoredTensor& embedding = tensors.at("model.embed_tokens.weight");
    for (int64_t token = 0; token < 128; ++token) set_bf16(embedding, token * 64, token == 127 ? 1000.0f : 0.0f);
    for (const std::string layer : {"model.layers.0.", "model.layers.1."})
      for (const std::string name : {"self_attn.o_proj.weight", "mlp.down_proj.weight"}) {
        StoredTensor& tensor = tensors.at(layer + name);
        for (int64_t in = 0; in < tensor.shape[1]; ++in) set_bf16(tensor, in, 0.0f);
      }
    StoredTensor& up = tensors.at(kUp);
    for (int64_t out = 0; out < up.shape[0]; ++out) set_bf16(up, out * 64, 3e38f);
  });
  std::string documents;
  for (int row = 0; row < 4; ++row) {
    std::string ids = row == 2 ? "127" : "5";
    for (int i = 1; i < 32; ++i) ids += ", " + std::to_string(10 + i);
    documents += "{\"input_ids\": [" + ids + "]}\n";
  }
  write_file(scene.data, documents);
}

/// A run of the scene, which the case has spoiled: one error, with the case's words.
inline void expect_clear_message(const Scene& scene, const Case& input, bool output_was_there, const ProgramResult& result) {
  EXPECT_FALSE(result.is_timed_out) << "it hangs";
  EXPECT_EQ(result.exit_code, input.code) << result.report();
  EXPECT_EQ(result.errors().size(), 1u) << result.report();
  const std::string message = result.err.substr(std::min(result.err.find("error:"), result.err.size()));
  for (const std::string& part : input.words)
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in\n" << result.report();
  std::error_code ignored;
  EXPECT_EQ(std::filesystem::exists(scene.output, ignored), output_was_there);
  // What the system did to a run may be over the next time: then, and only then, what is done is kept, and said to be.
  const bool is_kept = input.code == 4 && result.err.find("the same run goes on from there") != std::string::npos;
  EXPECT_EQ(std::filesystem::exists(scene.output + ".work", ignored), is_kept);
  if (::testing::Test::HasFailure()) return;
  ::testing::Test::RecordProperty("message", message.substr(0, message.find('\n')));
}

/// Spoils the scene and runs it.
inline void expect_one_clear_message(Scene& scene, const Case& input, int ranks) {
  input.spoil(scene);
  if (!scene.skip.empty()) GTEST_SKIP() << scene.skip;
  const bool output_was_there = std::filesystem::exists(scene.output);
  expect_clear_message(scene, input, output_was_there, run_program(scene.command(), {.ranks = ranks}));
}

/// The same for cases at several ranks, some of them at a time: after an error mpirun only waits.
inline void expect_clear_messages(const std::vector<CaseAtRanks>& cases, const std::function<void(const std::string&)>& make_model) {
  constexpr size_t kAtATime = 6;
  for (size_t begin = 0; begin < cases.size(); begin += kAtATime) {
    const size_t end = std::min(cases.size(), begin + kAtATime);
    std::vector<std::unique_ptr<Scene>> scenes;
    std::vector<ProgramCall> calls;
    for (size_t i = begin; i < end; ++i) {
      scenes.push_back(std::make_unique<Scene>(make_model));
      cases[i].input.spoil(*scenes.back());
      calls.push_back({scenes.back()->command(), {.ranks = cases[i].ranks}});
    }
    const std::vector<ProgramResult> results = run_programs(calls, kAtATime);
    for (size_t i = begin; i < end; ++i) {
      SCOPED_TRACE(std::string(cases[i].input.name) + " at " + std::to_string(cases[i].ranks) + " ranks");
      expect_clear_message(*scenes[i - begin], cases[i].input, false, results[i - begin]);
    }
  }
}

}  // namespace ptq::test
