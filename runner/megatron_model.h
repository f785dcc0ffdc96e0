#pragma once
// A whole model in Megatron-core's layout: embedding and head with their padded vocabulary, the layers, multi-token prediction, and the
// checks that checkpoint, config.json and tokenizer are of one model.

#include <map>
#include <string>

#include "checkpoint/files.h"
#include "runner/megatron_map.h"

namespace ptq::runner {

/// Every tensor by its Hugging Face name. `config_folder` is where config.json and tokenizer.json lie. Reads two rows of a tied head that
/// the checkpoint holds all the same. Throws as open_megatron does.
std::map<std::string, MappedTensor> map_megatron_model(MegatronArrays& arrays, const checkpoint::Json& config,
                                                       const std::string& config_folder, const layers::ModelSpec& spec);

}  // namespace ptq::runner
