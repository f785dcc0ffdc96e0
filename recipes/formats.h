#pragma once
// THE LIST of what a linear can become: number formats with their names in recipes and checkpoints, dialects, presets. One line in
// formats.cpp each. How a format lies in a file is recipes/encoding.h.

#include <cstdint>
#include <string>
#include <vector>

namespace ptq::recipes {

enum class Format {
  kNone,
  kFp8,             ///< E4M3, one scale a tensor, inputs with one static scale
  kFp8Channels,     ///< E4M3, one scale an output channel, inputs with one scale a token made at run time
  kFp8Blocks,       ///< E4M3, one scale a block of 128 x 128 weights
  kInt8,            ///< one scale an output channel, inputs with one static scale
  kInt8WeightOnly,  ///< the same without the inputs
  kInt4,            ///< one scale a group of inputs, weights only
  kInt4Fp8,         ///< the same weights, inputs in FP8 with one static scale
  kNvfp4,           ///< E2M1 in blocks of 16 with E4M3 scales and one scale a tensor; inputs too
  kNvfp4WeightOnly,
  kMxfp8,  ///< E4M3 in blocks of 32 with power-of-two scales; inputs too, made at run time
  kMxfp4   ///< E2M1, the same
};

/// Whose layout of tensors and JSON files a checkpoint follows.
enum class Dialect { kModelOpt, kCompressedTensors, kDeepseekFp8 };

struct FormatInfo {
  Format format = Format::kNone;
  std::string name;                    ///< in recipes
  std::string quant_algo;              ///< in hf_quant_config.json
  bool quantizes_activations = false;  ///< a server quantizes the inputs as well
  bool has_input_scale = false;        ///< by one static scale, which calibration finds
  bool shares_weight_scale = false;    ///< one global weight scale per scale group
  int64_t group_size = 0;              ///< inputs per scale; 0: none. Must divide the linear's input width
  double bits = 16;                    ///< stored bits per weight, block scales included
  float input_zero_means = 1;          ///< has_input_scale: the amax that an input of zeros is taken for
  float input_step = 1;                ///< has_input_scale: input_scale = amax / input_step
};

struct Preset {
  std::string name, format, method;
};

const FormatInfo& info(Format format);
/// All of them, in the order of the enumeration.
const std::vector<FormatInfo>& all_formats();
/// The format of that name. Throws a user Error with `where` and the list.
const FormatInfo& find_format(const std::string& name, const std::string& where);
/// The preset of that name; likewise.
const Preset& find_preset(const std::string& name, const std::string& where);
const std::vector<Preset>& all_presets();

/// "modelopt", "compressed-tensors", "deepseek-fp8".
std::string dialect_name(Dialect dialect);
Dialect find_dialect(const std::string& name, const std::string& where);

}  // namespace ptq::recipes
