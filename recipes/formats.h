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

/// A tensor of the output that belongs to one linear: every row of it belongs to one row of the weight, or it is a scalar.
struct EncodedTensor {
  std::string suffix;  ///< ".weight", ".weight_scale", ...
  DType dtype = DType::kF32;
  int64_t row_elements = 0;  ///< elements per weight row; 0: a scalar of the whole linear
};

/// The tensors that `format` stores for a linear [out, in], weight first.
std::vector<EncodedTensor> encoded_tensors(Format format, const layers::LinearSpec& linear);
checkpoint::OutputTensor output_tensor(const EncodedTensor& tensor, const layers::LinearSpec& linear);

/// Rows of a weight in `format`: one tensor per entry of encoded_tensors that has rows, in that order. weight [rows, in].
std::vector<Tensor> encode_rows(Format format, const Tensor& weight, const LinearScales& scales, kernels::Fp8Quotient quotient);
/// The scalar stored under `suffix`.
float scalar_value(Format format, const std::string& suffix, const LinearScales& scales);
/// The weight rows that encoded tensors stand for, [rows, in] f32. `parts` as encode_rows gives them.
Tensor decode_rows(Format format, const std::vector<Tensor>& parts, const LinearScales& scales);
/// What a server does to this linear's input, in place on x [T, in] f32. Nothing for weight-only formats.
void fake_quantize_input(Format format, const LinearScales& scales, Tensor& x);

}  // namespace ptq::recipes
