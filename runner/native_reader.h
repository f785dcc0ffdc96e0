#pragma once
// Checkpoints whose publishers quantized them - FP8 in 128x128 blocks (DeepSeek, Kimi), MXFP4 experts (gpt-oss) - seen as the bf16 models
// they stand for. Codes are widened piece by piece as they are read, so no bf16 copy of the model ever exists.

#include <memory>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "layers/model_spec.h"

namespace ptq::runner {

/// The quantization that config.json says the publisher shipped: "" none, "fp8" (blocks), "mxfp4"; anything else is another tool's.
std::string native_quantization(const checkpoint::Json& config);
/// "modelopt (NVFP4)", "awq", ...: the tool that quantized this checkpoint, from its config; "" where there is no quantization_config.
std::string quantized_by(const checkpoint::Json& config);

/// `reader` with every weight of the spec's linears that is stored in native FP8 or MXFP4 shown as one BF16 tensor; its scales are no
/// longer listed. All other tensors (multi-token-prediction layers among them) are as they are in the files. Returns `reader` itself for
/// other models. Throws a data Error for missing scales, a grid of the wrong shape, or a dtype that is not known.
std::unique_ptr<checkpoint::Reader> open_native(std::unique_ptr<checkpoint::Reader> reader, const checkpoint::Json& config,
                                                const layers::ModelSpec& spec);

}  // namespace ptq::runner
