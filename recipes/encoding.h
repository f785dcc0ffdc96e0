#pragma once
// How one linear lies in a checkpoint: the tensors of its format in a dialect, and the bytes of its rows. Given scales, rows are encoded
// one like another: who owns which rows, and how the scales were found, changes nothing here.

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/core/tensor.h"
#include "kernels/ops.h"
#include "layers/model_spec.h"
#include "recipes/formats.h"

namespace ptq::recipes {

/// How one linear is stored.
struct Encoding {
  Format format = Format::kNone;
  Dialect dialect = Dialect::kModelOpt;
  int64_t group_size = 0;        ///< INT4: inputs per scale; 0: the format's own
  bool pre_quant_scale = false;  ///< a smoothing vector is stored beside the weight: the server multiplies the input by it

  bool is_quantized() const { return format != Format::kNone; }
  bool operator==(const Encoding&) const = default;
};

/// The format's name in this dialect's JSON files: "NVFP4", "NVFP4_AWQ" with a pre_quant_scale, ...
std::string quant_algo(const Encoding& encoding);
/// Inputs per scale: 16, 32, INT4's groups; 0 for formats without groups.
int64_t group_size(const Encoding& encoding);
/// A server quantizes the inputs. The FP8 blocks of compressed-tensors say so, those of ModelOpt do not.
bool quantizes_activations(const Encoding& encoding);
/// By one static scale. W4A8 of compressed-tensors scales every token at run time.
bool has_input_scale(const Encoding& encoding);

/// What belongs to one linear and is the same for all of its rows. Which are used depends on the format.
struct LinearScales {
  float weight_scale = 1.0f;  ///< FP8: the per-tensor scale; NVFP4, W4A8: weight_scale_2
  float input_scale = 1.0f;
  Tensor pre_quant_scale;  ///< [in] bf16 | f32, where it is stored; undefined: ones
};

/// A tensor of the output that belongs to one linear.
struct EncodedTensor {
  enum class Kind {
    kRows,    ///< its rows belong to rows of the weight (of stacked experts: to experts)
    kScalar,  ///< one F32, [] or [1]
    kVector,  ///< pre_quant_scale, [in]
    kShape    ///< weight_shape, I64 [2]
  };
  std::string part;  ///< ".weight", ".weight_scale", ...: what LinearSpec::tensor names
  checkpoint::OutputTensor tensor;
  Kind kind = Kind::kRows;
  int64_t rows = 1;  ///< kRows: weight rows that one row of it stands for: 2 for ModelOpt's INT4 bytes, 128 for block scales
};

/// Why this encoding cannot hold this linear, as words that follow its name; "" where it can.
std::string layout_fault(const Encoding& encoding, const layers::LinearSpec& linear);

/// The tensors that store a linear, the weight's first. Stacked experts keep [stack, in, out]: packed and scaled along dimension 1, one
/// scale per output in [stack, out]; INT4 alone, whose bytes hold two outputs, has [stack, out/2, in] and [stack, out, in/group].
/// Throws a bug for an unquantized linear and where layout_fault finds one.
std::vector<EncodedTensor> encoded_tensors(const Encoding& encoding, const layers::LinearSpec& linear);

/// Weight rows that one rank must own together: 1, 2 (INT4 bytes) or 128 (block scales).
int64_t row_unit(const Encoding& encoding);

/// Min-max scales of the rows of a weight [rows, in] bf16|f16|f32: INT4 f32 [rows, in/group]; FP8 channels and INT8 f32 [rows]; FP8
/// blocks f32 [⌈rows/128⌉, ⌈in/128⌉]; NVFP4 the E4M3 block scales [rows, in/16] under scales.weight_scale. Scales that are stored in bf16
/// are rounded to it. Undefined where the format makes them while encoding (MX) or has none (FP8 per tensor).
Tensor minmax_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales);

/// The row scales that a server will read for these: rounded where the file keeps them in bf16.
Tensor stored_row_scales(const Encoding& encoding, const Tensor& row_scales);

/// The weight [rows, in] f32 that a server reads for `weight` under these row scales: what decode_rows gives for encode_rows, without
/// packing. For formats whose rows or groups have scales of their own; row_scales as they are stored.
Tensor rounded_weight(const Encoding& encoding, const Tensor& weight, const Tensor& row_scales, const LinearScales& scales);

/// Rows of a weight: one tensor per kRows entry of encoded_tensors, in that order. weight [rows, in] bf16|f16|f32, rows cut at multiples of
/// row_unit; for stacked experts [experts, in, out]. row_scales as minmax_row_scales gives them, or undefined: the min-max ones; for
/// stacked experts [experts, ...], each those of the expert's [out, in]. FP8 per tensor of stacked experts always divides exactly.
/// `quotient` is of FP8 per tensor alone.
std::vector<Tensor> encode_rows(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight, const Tensor& row_scales,
                                const LinearScales& scales, kernels::Fp8Quotient quotient);
/// One expert's matrix [out, in] as the parts of its linear: like encode_rows, and for stacked experts the parts of that one expert, [1,
/// ...].
std::vector<Tensor> encode_expert(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight,
                                  const Tensor& row_scales, const LinearScales& scales, kernels::Fp8Quotient quotient);
/// The weight rows that encoded tensors stand for, [rows, in] f32, or [experts, out, in] f32 for stacked experts. `parts` as encode_rows
/// gives them. A pre_quant_scale is not multiplied back: inputs are.
Tensor decode_rows(const Encoding& encoding, const layers::LinearSpec& linear, const std::vector<Tensor>& parts,
                   const LinearScales& scales);

/// The whole tensor of a part that is not kRows.
Tensor constant_part(const EncodedTensor& part, const layers::LinearSpec& linear, const LinearScales& scales);
/// And back: takes a stored part that is not kRows into `scales`.
void read_constant(const EncodedTensor& part, const Tensor& stored, LinearScales& scales);

/// x·pre_quant_scale, in place on x [T, in] f32; nothing where the encoding stores none.
void smooth_input(const Encoding& encoding, const LinearScales& scales, Tensor& x);
/// What a server does to this linear's input, in place on x [T, in] f32: smooth_input, then the format's rounding.
void fake_quantize_input(const Encoding& encoding, const LinearScales& scales, Tensor& x);

}  // namespace ptq::recipes
