#include "checkpoint/megatron_args.h"

#include "kernels/core/error.h"

namespace ptq::checkpoint {

MegatronArgs read_megatron_args(const TorchFile& file) {
  const auto number = [&](const char* key) { return file.find({"args", key}).integer().value_or(0); };
  const auto refuse = [&](const std::string& what) {
    return user_error("the checkpoint was trained with " + what + ", which cannot be converted", file.slice().where(),
                      "convert it to Hugging Face's format with the framework that wrote it");
  };
  constexpr double kFirstVersion = 2.0;
  const PickleValue version = file.find({"checkpoint_version"});
  if (version.real().value_or(kFirstVersion) < kFirstVersion || version.integer().value_or(2) < 2)
    throw refuse("a Megatron of before 2021 (checkpoint_version 0 or 1: queries, keys and values in another order)");
  if (number("rotary_interleaved") != 0) throw refuse("--rotary-interleaved");
  if (number("apply_layernorm_1p") != 0 && file.find({"args", "normalization"}).text() == "RMSNorm")
    throw refuse("--apply-layernorm-1p and RMS norms");
  return {.tensor = number("tensor_model_parallel_size"),
          .pipeline = number("pipeline_model_parallel_size"),
          .expert = number("expert_model_parallel_size"),
          .expert_tensor = number("expert_tensor_parallel_size"),
          .experts = number("num_experts")};
}

}  // namespace ptq::checkpoint
