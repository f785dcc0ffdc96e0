#pragma once
// A checkpoint opened and understood: reader, config and spec, with every tensor of the spec checked against the files.

#include <map>
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
  int64_t eos_id = -1;               ///< config.json, else generation_config.json
  std::vector<std::string> ignored;  ///< checkpoint::Reader::ignored() of its files
  /// By name: paths of the files that belong beside the weights - config.json, tokenizer - which need not lie in one folder with them.
  std::map<std::string, std::string> companions;

  /// The folder that holds tokenizer.json, or "".
  std::string tokenizer_folder() const;
};

/// What of a checkpoint that its publisher quantized a source shows.
enum class Shown {
  kAsMeant,    ///< the bf16 weights that its codes stand for
  kFp8Blocks,  ///< FP8 blocks as they are stored, MXFP4 as bf16
  kAsStored    ///< all tensors as they are in the files
};

/// Opens a checkpoint and describes its model. `config` is the folder with config.json and tokenizer of a training checkpoint, which
/// carries none; a Hugging Face export that lies beside its weights is taken instead of them where `config` is "". Reads headers and JSON
/// only. Throws user Errors (no such folder, no config.json), data Errors (damaged or unsupported).
SourceModel open_source(const std::string& path, const std::string& config = "", Shown shown = Shown::kAsMeant);

/// True for float checkpoints and for those their publisher quantized, which the reader shows as bf16.
bool is_plain(const SourceModel& source);
/// How many names were ignored, of which kinds, and the first of each kind: "9 arrays of training only: 8 _extra_state (decoder...), ...".
std::string ignored_words(const std::vector<std::string>& ignored);
/// Throws a data Error unless every tensor of the spec is there, with its shape and a floating-point dtype: for plain sources; says by
/// which tool any other was quantized.
void check_tensors(const SourceModel& source);

/// BF16, F16 or F32: what an unquantized weight may be.
bool is_float(DType dtype);
/// The value of an F32 tensor of one element. Throws a data Error for any other.
float read_scalar(const checkpoint::Reader& reader, const std::string& name);

}  // namespace ptq::runner
