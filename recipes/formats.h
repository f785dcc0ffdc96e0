#pragma once
// THE LIST of what a linear can become: number formats with their tensors in the checkpoint, their words in the JSON files, and how rows
// of a weight are written in them. One line in formats.cpp per format and per preset.

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/core/tensor.h"
#include "kernels/ops.h"
#include "layers/model_spec.h"

namespace ptq::recipes {

enum class Format { kNone, kFp8, kNvfp4, kNvfp4WeightOnly };

struct FormatInfo {
  Format format = Format::kNone;
  std::string name;        ///< in recipes
  std::string quant_algo;  ///< in hf_quant_config.json
  bool quantizes_activations = false;
  bool shares_weight_scale = false;  ///< one global weight scale per scale group
  int64_t group_size = 0;            ///< inputs per block scale; 0: none. Must divide the linear's input width
  double bits = 16;                  ///< stored bits per weight, block scales included
};

struct Preset {
  std::string name, format, method;
};

const FormatInfo& info(Format format);
/// The format of that name. Throws a user Error with `where` and the list; says so when the name is one for a later version.
const FormatInfo& find_format(const std::string& name, const std::string& where);
/// The preset of that name; likewise.
Preset find_preset(const std::string& name, const std::string& where);

/// The scalars of one linear. Which are used depends on the format.
struct LinearScales {
  float weight_scale = 1.0f;  ///< FP8: the weight scale; NVFP4: weight_scale_2
  float input_scale = 1.0f;
};

/// A tensor of the output that belongs to one linear: every row of it belongs to one row of the weight (stacked experts: to one expert),
/// or it is a scalar of the whole linear.
struct EncodedTensor {
  std::string part;  ///< ".weight", ".weight_scale", ...: what LinearSpec::tensor names
  checkpoint::OutputTensor tensor;
  bool is_scalar = false;
};

/// The tensors that `format` stores for a linear, weight first. Stacked experts keep [stack, in, out]: packed and scaled along dimension 1.
std::vector<EncodedTensor> encoded_tensors(Format format, const layers::LinearSpec& linear);

/// Rows of a weight in `format`: one tensor per entry of encoded_tensors that is no scalar, in that order. weight [rows, in], or for
/// stacked experts [experts, in, out]; what comes back has as many rows. FP8 of stacked experts always divides exactly.
std::vector<Tensor> encode_rows(Format format, const layers::LinearSpec& linear, const Tensor& weight, const LinearScales& scales,
                                kernels::Fp8Quotient quotient);
/// The scalar stored as `part`.
float scalar_value(Format format, const std::string& part, const LinearScales& scales);
/// The weight rows that encoded tensors stand for, [rows, in] f32, or [experts, out, in] f32 for stacked experts. `parts` as encode_rows
/// gives them.
Tensor decode_rows(Format format, const layers::LinearSpec& linear, const std::vector<Tensor>& parts, const LinearScales& scales);
/// What a server does to this linear's input, in place on x [T, in] f32. Nothing for weight-only formats.
void fake_quantize_input(Format format, const LinearScales& scales, Tensor& x);

}  // namespace ptq::recipes
