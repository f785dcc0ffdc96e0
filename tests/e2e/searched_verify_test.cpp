// `verify` on exports whose norms and routers took smoothing factors, and on those whose recipe smooths nothing.

#include "tests/e2e/bad_input.h"
#include "tests/support/moe_models.h"

namespace ptq::test {
namespace {

const std::string kNorm = "model.layers.1.input_layernorm.weight", kExpertNorm = "model.layers.1.post_attention_layernorm.weight",
                  kRouter = "model.layers.1.block_sparse_moe.gate.weight";

float bf16_at(const StoredTensor& tensor, int64_t at) { return static_cast<float>(tensor.values().at(static_cast<size_t>(at))); }

struct Damage {
  const char *name, *preset, *dialect;
  bool has_experts;
  void (*inflict)(StoredTensors& tensors, const StoredTensors& source);
  std::string words;  ///< that the finding must hold
};

std::ostream& operator<<(std::ostream& out, const Damage& damage) { return out << damage.name; }

void scale_norm(StoredTensors& tensors, const std::string& name, float factor) {
  StoredTensor& norm = tensors.at(name);
  for (int64_t c = 0; c < norm.shape[0]; ++c) set_bf16(norm, c, factor * bf16_at(norm, c));
}

const std::vector<Damage>& damages() {
  constexpr const char *kMo = "modelopt", *kCt = "compressed-tensors";
  static const std::vector<Damage> all{
      {"FlippedSign", "nvfp4_awq", kMo, false,
       [](StoredTensors& tensors, const StoredTensors&) { set_bf16(tensors.at(kNorm), 3, -bf16_at(tensors.at(kNorm), 3)); },
       kNorm + " is not the source's by positive factors"},
      {"LostChannel", "int4_awq", kCt, false, [](StoredTensors& tensors, const StoredTensors&) { set_bf16(tensors.at(kNorm), 60, 0); },
       kNorm + " is not the source's by positive factors"},
      {"InfiniteChannel", "int8_sq", kCt, false,
       [](StoredTensors& tensors, const StoredTensors&) { set_bf16(tensors.at(kNorm), 0, std::numeric_limits<float>::infinity()); },
       kNorm + " is not the source's by positive factors"},
      {"RouterLeftAsItWas", "int8_sq", kCt, true,
       [](StoredTensors& tensors, const StoredTensors& source) { tensors.at(kRouter) = source.at(kRouter); },
       kRouter + " did not take the factors that " + kExpertNorm + " gave up"},
      {"RouterByOtherFactors", "int8_sq", kCt, true,
       [](StoredTensors& tensors, const StoredTensors&) { set_bf16(tensors.at(kRouter), 77, 1.0625f * bf16_at(tensors.at(kRouter), 77)); },
       kRouter + " did not take the factors that " + kExpertNorm + " gave up"},
      {"RouterWithoutItsNorm", "int8_sq", kCt, true,
       [](StoredTensors& tensors, const StoredTensors& source) { tensors.at(kExpertNorm) = source.at(kExpertNorm); },
       kRouter + " differs from the source though its input does not"},
      {"NormOfAFormatThatNothingSmooths", "fp8", kMo, false,
       [](StoredTensors& tensors, const StoredTensors&) { scale_norm(tensors, kNorm, 2); },
       kNorm + " differs from the source though it is not quantized"},
      {"NormOfARecipeThatSmoothsNothing", "nvfp4", kMo, false,
       [](StoredTensors& tensors, const StoredTensors&) { scale_norm(tensors, kNorm, 2); },
       kNorm + " differs from the source though it is not quantized"},
      {"RouterOfARecipeThatSmoothsNothing", "nvfp4", kMo, true,
       [](StoredTensors& tensors, const StoredTensors&) { set_bf16(tensors.at(kRouter), 5, 3.0f); },
       kRouter + " differs from the source though it is not quantized"},
  };
  return all;
}

/// A sound export of a tiny model, in folders of its own.
class SearchedVerify : public ::testing::TestWithParam<Damage> {
 protected:
  void make_export(const std::string& preset, const std::string& dialect, bool has_experts) {
    if (has_experts)
      make_tiny_mixtral(model_, {.hidden = 128, .intermediate = 128});
    else
      make_tiny_llama(model_, {.hidden = 128, .intermediate = 256});
    write_file(model_ + "/tokenizer_config.json", "{\"model_max_length\": 64}");
    write_file(model_ + "/generation_config.json", "{\"top_p\": 0.9}");
    // Channels of unequal size, so that there is something to smooth.
    edit_tensors(model_ + "/model.safetensors", [](StoredTensors& tensors) {
      for (auto& [name, tensor] : tensors)
        for (int64_t c = 0; name.ends_with("layernorm.weight") && c < tensor.shape[0]; c += 7) set_bf16(tensor, c, 8.0f);
    });
    folder_.write("data.jsonl", random_documents(4, 32, 128));
    folder_.write("recipe.yaml", recipe_text(model_, folder_ / "data.jsonl", output_, 4, 32, preset));
    expect_success(run_program({folder_ / "recipe.yaml", "calibration.pack=false", "output.dialect=" + dialect}));
    sound_ = read_tensors(output_);
    source_ = read_tensors(model_);
  }
  ProgramResult verify(int ranks) { return run_program({"verify", output_, "--source", model_}, {.ranks = ranks}); }
  void expect_found(const std::string& words) {
    for (const int ranks : {1, 2}) {
      const ProgramResult result = verify(ranks);
      EXPECT_EQ(result.exit_code, 1) << result.report();
      EXPECT_NE(result.out.find(words), std::string::npos) << words << "\n" << result.report();
      EXPECT_EQ(result.errors().size(), 1u) << result.report();
    }
  }

  TemporaryFolder folder_;
  std::string model_ = folder_ / "model", output_ = folder_ / "out";
  StoredTensors sound_, source_;
};

TEST_P(SearchedVerify, FindsTheDamage) {
  const Damage& damage = GetParam();
  make_export(damage.preset, damage.dialect, damage.has_experts);
  expect_success(verify(1));
  const bool smooths = std::string(damage.preset) == "int8_sq";
  EXPECT_EQ(sound_.at(kNorm) == source_.at(kNorm), std::string(damage.preset).find('_') == std::string::npos)
      << "the recipe smooths, or it does not";
  if (smooths && damage.has_experts) {
    EXPECT_FALSE(sound_.at(kRouter) == source_.at(kRouter)) << "the router reads what its norm was divided by";
  }

  edit_tensors(output_ + "/model.safetensors", [&](StoredTensors& tensors) { damage.inflict(tensors, source_); });
  expect_found(damage.words);
}

INSTANTIATE_TEST_SUITE_P(Damages, SearchedVerify, ::testing::ValuesIn(damages()),
                         [](const auto& parameters) { return std::string(parameters.param.name); });

class SearchedVerifyFiles : public SearchedVerify {};

TEST_F(SearchedVerifyFiles, FindsWhatDiffersBesideTheTensors) {
  make_export("int8_sq", "compressed-tensors", false);
  expect_success(verify(1));
  const std::string config = read_file(output_ + "/config.json");
  edit_json_file(output_ + "/config.json", [](Json& json) { json["rms_norm_eps"] = 0.5; });
  expect_found("config.json differs from the source's in more than quantization_config");
  write_file(output_ + "/config.json", config);
  write_file(output_ + "/tokenizer_config.json", "{\"model_max_length\": 65}");
  expect_found("tokenizer_config.json differs from the source's");
  std::filesystem::remove(output_ + "/tokenizer_config.json");
  expect_found("tokenizer_config.json is in the source but not here");
  write_file(output_ + "/tokenizer_config.json", read_file(model_ + "/tokenizer_config.json"));
  edit_json_file(output_ + "/generation_config.json", [](Json& json) { json["do_sample"] = false; });
  expect_found("generation_config.json differs from the source's");
}

}  // namespace
}  // namespace ptq::test
