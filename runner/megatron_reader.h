#pragma once
// A training checkpoint of Megatron-core's models - Megatron-LM, Megatron-Bridge, NeMo - seen as the Hugging Face checkpoint of the same
// model. Rows are put together from the shards as they are read; no converted copy ever exists.

#include <memory>
#include <string>

#include "checkpoint/array_store.h"
#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "layers/model_spec.h"

namespace ptq::runner {

/// `format` is what the reader calls itself. `config_folder` holds the config.json that `config` and `spec` are from, and its companions.
/// Every weight is the array's own bits, except that norms stored in F32 are rounded to the dtype that config.json names; rows that pad the
/// vocabulary are dropped; layers of multi-token prediction follow the last layer, as Hugging Face numbers them.
/// Throws a data Error where checkpoint and config.json are not of one model: arrays that are missing, of other shapes, or left over; a
/// user Error for a tokenizer with more ids than the embedding has rows, and for what cannot be converted.
std::unique_ptr<checkpoint::Reader> open_megatron(std::unique_ptr<checkpoint::ArrayStore> store, const std::string& format,
                                                  const std::string& config_folder, const checkpoint::Json& config,
                                                  const layers::ModelSpec& spec);

}  // namespace ptq::runner
