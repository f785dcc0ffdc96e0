#pragma once
// A checkpoint opened and understood: reader, config and spec, with every tensor of the spec checked against the files.

#include <memory>
#include <string>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "layers/model_spec.h"

namespace ptq::runner {

struct SourceModel {
  std::unique_ptr<checkpoint::Reader> reader;
  checkpoint::Json config;
  layers::ModelSpec spec;
  std::string fingerprint;  ///< SHA-256 over config.json, every tensor's name, dtype, shape and place, the files' sizes and times
  int64_t weight_bytes = 0;
  int64_t eos_id = -1;  ///< config.json, else generation_config.json
};

/// Opens the folder and describes its model. Reads headers and JSON only. Throws user Errors (no such folder), data Errors (damaged or
/// unsupported). as_stored: FP8 blocks are not shown as the bf16 weights they stand for.
SourceModel open_source(const std::string& path, bool as_stored = false);

/// True for float checkpoints and for those their publisher quantized, which the reader shows as bf16.
bool is_plain(const SourceModel& source);
/// Throws a data Error unless every tensor of the spec is there, with its shape and a floating-point dtype: for plain sources; says by
/// which tool any other was quantized.
void check_tensors(const SourceModel& source);

/// BF16, F16 or F32: what an unquantized weight may be.
bool is_float(DType dtype);
/// The value of an F32 tensor of one element. Throws a data Error for any other.
float read_scalar(const checkpoint::Reader& reader, const std::string& name);

}  // namespace ptq::runner
